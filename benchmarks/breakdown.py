"""Where the default model's time goes:  python benchmarks/breakdown.py [--size 128] [--threads 1] [--repeats 5]

The peak is the rate of the fastest of a few 3x3 convolutions, measured in the same run before and after; the shares below it
are of a whole call of the pipeline. With one thread times are CPU times, which hold on a busy machine too.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from samdiffsr.load import load_model

SHAPES = [(64, 128), (96, 128), (128, 96), (128, 128), (192, 96), (256, 64)]  # channels, side
GROUPS = {
    "convolution": ("conv",),
    "activation and sums": ("relu", "add", "mul", "clamp", "div", "sub"),
    "bicubic": ("index",),
    "layout and copies": ("copy", "shuffle", "contiguous", "clone", "cat", "empty", "fill", "zero"),
    "noise": ("normal", "randn"),
}


def best(work: Callable[[], object], repeats: int) -> float:
    """Least time of a few calls, seconds: what other processes take is not this program's."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    work()
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def convolution_rates(repeats: int) -> dict[tuple[int, int], float]:
    """FLOP/s of 3x3 convolutions, channels last, float32."""
    rates = {}
    for channels, side in SHAPES:
        x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        seconds = best(lambda x=x, weight=weight: F.conv2d(x, weight, padding=1), repeats)
        rates[channels, side] = 2 * 9 * (channels * side) ** 2 / seconds
    return rates


def times_by_group(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of each group of operations in one call, by the profiler; its own cost is in all of them."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    found: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        name = event.key.lower()
        group = next((group for group, words in GROUPS.items() if any(word in name for word in words)), "other")
        found[group] += event.self_cpu_time_total / 1e6
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="side of the LR input")
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    image = np.random.default_rng(0).integers(0, 256, (options.size, options.size, 3), dtype=np.uint8)
    pipe = load_model(options.model, "cpu")

    def work() -> None:
        pipe(image, generator=torch.Generator().manual_seed(0), output_type="uint8")

    rates = convolution_rates(2 * options.repeats)
    seconds = best(work, options.repeats)
    for shape, rate in convolution_rates(2 * options.repeats).items():
        rates[shape] = max(rate, rates[shape])
    peak = max(rates.values())
    with FlopCounterMode(display=False) as counter:
        work()
    flops = counter.get_total_flops()
    groups = times_by_group(work)
    total = sum(groups.values())

    print(
        f"{options.size}x{options.size}, {pipe.config['steps']} steps, {options.threads} threads, torch {torch.__version__}"
    )
    for (channels, side), rate in rates.items():
        print(f"3x3 convolution, {channels} channels, {side}x{side}: {rate / 1e9:.0f} GFLOP/s")
    print(f"whole call: {seconds:.2f} s, {flops / 1e9:.0f} GFLOP, {flops / seconds / 1e9:.0f} GFLOP/s: ", end="")
    print(f"{100 * flops / seconds / peak:.0f} % of the peak")
    for group, spent in sorted(groups.items(), key=lambda item: -item[1]):
        print(f"  {group:20} {100 * spent / total:5.1f} %  {1000 * spent:7.1f} ms")
    rate = flops / (seconds * groups["convolution"] / total)
    print(f"convolutions alone: {rate / 1e9:.0f} GFLOP/s, {100 * rate / peak:.0f} % of the peak")


if __name__ == "__main__":
    main()
