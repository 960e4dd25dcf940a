"""How far the mean colour shifts:  python benchmarks/colour.py BENCH

BENCH holds SET/LR/*.png. For each colour channel the mean of the result minus the mean of the input, in grey levels of 255: of
the network alone, and of what `samdiffsr upscale` writes. The worst of all channels and images is printed.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from samdiffsr.images import Picture, read_image
from samdiffsr.load import load_model
from samdiffsr.upscale.enlarge import enlarge


def main() -> None:
    pipe = load_model("default")
    shifts: dict[str, list[float]] = {"network": [], "upscale": []}
    for file in sorted(Path(sys.argv[1]).glob("*/LR/*.png")):
        lr = read_image(file).rgb
        network = np.asarray(pipe(lr, generator=torch.Generator().manual_seed(0)).images[0])
        for name, sr in (("network", network), ("upscale", enlarge(pipe, Picture(lr)).rgb)):
            shifts[name].append(float(np.abs(sr.mean((0, 1)) - lr.mean((0, 1))).max()))
    for name, found in shifts.items():
        above = sum(shift > 0.2 for shift in found)
        print(f"{name}: worst {max(found):.3f}, mean {np.mean(found):.3f}, above 0.2: {above} of {len(found)}")


if __name__ == "__main__":
    main()
