"""Counts the LR images that imresize(HR, 1/4) reproduces exactly:  python benchmarks/resize_exact.py BENCH

BENCH holds SET/HR/*.png and SET/LR/*.png made with MATLAB's imresize.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from samdiffsr import imresize


def main() -> None:
    files = sorted(Path(sys.argv[1]).glob("*/HR/*.png"))
    exact = 0
    for file in files:
        hr, lr = np.asarray(Image.open(file)), np.asarray(Image.open(file.parents[1] / "LR" / file.name))
        found = imresize(hr[: 4 * lr.shape[0], : 4 * lr.shape[1]], 1 / 4)
        exact += np.array_equal(found, lr)
        if not np.array_equal(found, lr):
            print(f"{file}: differs")
    print(f"{exact} of {len(files)} LR images reproduced exactly")


if __name__ == "__main__":
    main()
