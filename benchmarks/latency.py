"""How long an image takes, against the paper's network:  python benchmarks/latency.py [--size 128] [--threads 2]

Both on the same input in one run, on this machine's CPU. The paper-size network (RRDB encoder + U-Net at HR size, random
weights: they do not change the time) is timed for a few denoising steps and EXTRAPOLATED to 100. The last lines give the share
of this machine's matrix-multiply rate, measured in the same run, that the light networks reach.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from samdiffsr import ConditionalUNet, RRDBEncoder, SamDiffSRPipeline

PAPER_STEPS = 100


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time after one call to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_rate() -> float:
    """FLOP/s of a large float32 matrix product."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / seconds(lambda: a @ a, 9)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="side of the LR input")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--paper-steps-timed", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = options.size
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    pipe = SamDiffSRPipeline.from_pretrained("default")
    pipe.set_progress_bar_config(disable=True)

    def light() -> None:
        pipe(image, generator=torch.Generator().manual_seed(0), output_type="np")

    rate_before = matmul_rate()
    ours = seconds(light, 7)
    with FlopCounterMode(display=False) as counter:
        light()
    flops = counter.get_total_flops()

    lr, x_t = torch.rand(1, 3, size, size) * 2 - 1, torch.randn(1, 3, 4 * size, 4 * size)
    encoder, unet = (net.eval().to(memory_format=torch.channels_last) for net in (RRDBEncoder(), ConditionalUNet()))
    features, _ = encoder.encode(lr)
    once = seconds(lambda: encoder.encode(lr), 1)
    step = seconds(lambda: unet(x_t, torch.tensor([50]), features), options.paper_steps_timed)
    paper = once + PAPER_STEPS * step
    rate = max(rate_before, matmul_rate())

    print(f"{size}x{size} -> {4 * size}x{4 * size}, {options.threads} threads, torch {torch.__version__}, float32")
    print(f"default model, {pipe.config['steps']} steps: {ours:.2f} s (median of 7), {flops / 1e9:.0f} GFLOP")
    print(f"paper-size network: encoder {once:.1f} s, one step {step:.2f} s (median of {options.paper_steps_timed});")
    print(f"    extrapolated to {PAPER_STEPS} steps: {paper:.0f} s")
    print(f"ratio: {paper / ours:.0f}x faster")
    print(
        f"matrix multiply here: {rate / 1e9:.0f} GFLOP/s; the default model reaches {flops / ours / 1e9:.0f} GFLOP/s,"
    )
    print(f"    {100 * flops / ours / rate:.0f} % of it")


if __name__ == "__main__":
    main()
