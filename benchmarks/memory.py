"""Peak memory against the size of the image:  python benchmarks/memory.py [--megapixels 1 4 16 64] [--steps 1] [--threads 1]

Each size runs in a process of its own, with the defaults of the pipeline and 8-bit output. "above imports" is the peak resident
size less that of a process which only loads the same modules and the model. One row of the table is one run.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from samdiffsr import SamDiffSRPipeline

MEBIBYTE = 2**20


def peak() -> int:
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child(megapixels: float, options: argparse.Namespace) -> None:
    """Print baseline, peak (bytes) and seconds of one image."""
    torch.set_num_threads(options.threads)
    pipe = SamDiffSRPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    baseline, start = peak(), time.perf_counter()
    side = round((megapixels * 1e6) ** 0.5 / 4)
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    generator = torch.Generator().manual_seed(0)
    tile = options.tile
    out = pipe(image, options.steps, generator=generator, output_type="uint8", tile=tile).images[0]
    assert out.shape == (4 * side, 4 * side, 3)
    print(baseline, peak(), time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", nargs="+", type=float, default=[1, 4, 16, 64], help="of output")
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps; the peak hardly depends on them")
    parser.add_argument("--tile", type=int, help="default: chosen by the pipeline")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options)
        return
    print(f"{'output':>8} {'seconds':>8} {'imports and model':>18} {'peak':>10} {'above imports':>14}")
    for megapixels in options.megapixels:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", str(megapixels)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        baseline, most, seconds = map(float, done.stdout.split()[-3:])
        sizes = [f"{size / MEBIBYTE:.0f} MiB" for size in (baseline, most, most - baseline)]
        print(f"{megapixels:5.0f} MP {seconds:8.1f} {sizes[0]:>18} {sizes[1]:>10} {sizes[2]:>14}", flush=True)


if __name__ == "__main__":
    main()
