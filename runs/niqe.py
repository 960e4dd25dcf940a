"""Fit the parameters of NIQE to free photographs:  python runs/niqe.py FOLDER src/samdiffsr/weights/niqe/niqe.safetensors

Those in the package: the 16 Budgie backgrounds (CC0 1.0) and the 15 Pop!_OS wallpapers (public domain), none above 4.5
megapixels, in a folder of their own.
"""

import sys
from pathlib import Path

from safetensors.numpy import save_file

from samdiffsr.evaluation.niqe import fit
from samdiffsr.images import read_image


def main() -> None:
    folder, target = map(Path, sys.argv[1:])
    photographs = sorted(folder.iterdir())
    made = fit([read_image(file).rgb for file in photographs])
    save_file(made, target, metadata={"photographs": ", ".join(file.stem for file in photographs)})


if __name__ == "__main__":
    main()
