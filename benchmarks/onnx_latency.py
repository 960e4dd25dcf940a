"""ONNX Runtime against torch for the default model:  python benchmarks/onnx_latency.py FOLDER [--size 128] [--threads 2]

FOLDER is what `samdiffsr export --networks -o FOLDER` wrote. Both upscale the same picture with the same number of
threads, in turn, in one process; medians. The parts are timed too: the encoder, and one denoising
step (the runner's with drawing its noise).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch

from samdiffsr import SamDiffSRPipeline
from samdiffsr.export.run_onnx import Upscaler, gaussian


def in_turn(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, one after the other in every round, after a round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            time.sleep(0.3)  # until the other's threads have stopped to spin
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=128, help="side of the LR input")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = options.size
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    pipe = SamDiffSRPipeline.from_pretrained("default")
    pipe.set_progress_bar_config(disable=True)
    upscaler = Upscaler(options.folder, threads=options.threads)

    lr = image.transpose(2, 0, 1)[None] / np.float32(255)
    features, _ = upscaler.encode(lr)
    lr_t = torch.from_numpy(2 * lr - 1).contiguous(memory_format=torch.channels_last)
    features_t, x_t, t = pipe.encoder.encode(lr_t)[0], torch.randn(1, 3, 4 * size, 4 * size), torch.tensor([50])
    x_t = x_t.contiguous(memory_format=torch.channels_last)
    parts: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        f"whole, {pipe.config['steps']} steps": (
            lambda: pipe(image, generator=torch.Generator().manual_seed(0), output_type="np"),
            lambda: upscaler(image),
        ),
        "encoder": (lambda: pipe.encoder.encode(lr_t, with_image=True), lambda: upscaler.encode(lr)),
        "one step": (
            lambda: pipe.denoiser(x_t, t, features_t),
            lambda: next(upscaler.states(features, None, gaussian(0))),
        ),
    }
    print(f"{size}x{size} -> {4 * size}x{4 * size}, {options.threads} threads each, float32, CPU")
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}; medians of {options.repeats} in turn")
    for name, (ours, theirs) in parts.items():
        seconds = in_turn({"torch": ours, "onnxruntime": theirs}, options.repeats)
        ratio = seconds["onnxruntime"] / seconds["torch"]
        print(
            f"{name:16} torch {seconds['torch']:.3f} s, onnxruntime {seconds['onnxruntime']:.3f} s: {ratio:.2f} of it"
        )


if __name__ == "__main__":
    main()
