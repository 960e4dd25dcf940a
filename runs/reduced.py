"""Photographs at other sizes, as further photographs to train on:  python runs/reduced.py PHOTOS MASKS OUTPUT

Writes OUTPUT/pictures/<stem>-2of3.png and <stem>-1of2.png, MATLAB bicubic reductions, and links to the masks of the photograph
under those names in OUTPUT/masks, for `samdiffsr prepare --resize-masks`. What is there is kept.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from samdiffsr import imresize
from samdiffsr.files import whole_file
from samdiffsr.images import list_images, read_image

REDUCTIONS = ((2, 3), (1, 2))
SMALLEST = 160  # pixels of the shorter side of a result


def reduce(photo: Path, masks: Path, output: Path) -> int:
    """Write what is missing of one photograph; how many sizes it has."""
    whole, written = read_image(photo).rgb, 0
    for numerator, denominator in REDUCTIONS:
        # Cut so that the sides of the result are whole numbers and multiples of 4, as prepare wants them.
        height, width = (side // (4 * denominator) * 4 * denominator for side in whole.shape[:2])
        if min(height, width) * numerator // denominator < SMALLEST:
            continue
        stem = f"{photo.stem}-{numerator}of{denominator}"
        target, link, regions = (
            output / "pictures" / f"{stem}.png",
            output / "masks" / f"{stem}.json",
            masks / f"{photo.stem}.json",
        )
        if not target.exists():
            picture = imresize(whole[:height, :width], numerator / denominator)
            with whole_file(target) as file:
                Image.fromarray(picture).save(file, format="PNG", compress_level=1)
        if regions.exists() and not link.exists():
            link.symlink_to(regions.resolve())
        written += 1
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("photos", "masks", "output"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    for folder in ("pictures", "masks"):
        (given.output / folder).mkdir(parents=True, exist_ok=True)
    photos = list_images(given.photos)
    with ProcessPoolExecutor() as pool:
        work = partial(reduce, masks=given.masks, output=given.output)
        print(sum(pool.map(work, photos)), "pictures of", len(photos), "photographs")


if __name__ == "__main__":
    main()
