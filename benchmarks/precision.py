"""What bfloat16 costs and gains:  OMP_NUM_THREADS=1 python benchmarks/precision.py BENCH

BENCH holds SET/LR/*.png. Each picture of Set5, Set14 and BSD100 is enlarged by the default model in float32 and in bfloat16, in
turns in one process: PSNR of one result against the other (all channels, before rounding), and float32's time over bfloat16's.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from samdiffsr.images import read_image
from samdiffsr.load import load_model
from samdiffsr.sampling.ranges import Precision


def main() -> None:
    pipe = load_model("default", "cpu")
    for name in ("Set5", "Set14", "BSD100"):
        psnr, largest = [], 0.0
        seconds: dict[Precision, float] = {"float32": 0.0, "bfloat16": 0.0}
        for file in sorted((Path(sys.argv[1]) / name / "LR").glob("*.png")):
            results = {}
            for precision in seconds:
                noise, started = torch.Generator().manual_seed(0), time.perf_counter()
                output = pipe(read_image(file).rgb, generator=noise, output_type="np", precision=precision)
                seconds[precision] += time.perf_counter() - started
                results[precision] = output.images[0].astype(np.float64)
            apart = np.abs(results["float32"] - results["bfloat16"])
            psnr.append(-10 * np.log10((apart**2).mean()))
            largest = max(largest, 255 * apart.max())
        ratio = seconds["float32"] / seconds["bfloat16"]
        print(f"{name}: least {min(psnr):.1f} dB, mean {np.mean(psnr):.1f} dB, largest {largest:.2f} levels;", end=" ")
        print(f"bfloat16 {ratio:.2f}x as fast", flush=True)


if __name__ == "__main__":
    main()
