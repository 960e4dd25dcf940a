"""Which HR image goes with which LR image and which result of others; and reading them for comparison."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samdiffsr.errors import ImageError
from samdiffsr.images import image_size, list_images, read_image
from samdiffsr.resize import SCALE, imresize

_SHOWN = 5  # names listed in an error before "and N more"


@dataclass(frozen=True)
class Pair:
    """An HR image and its LR image, by file.

    Attributes:
        name: the HR file's stem, without a final _HR.
        lr: None if LR is to be made from HR.
    """

    name: str
    hr: Path
    lr: Path | None


@dataclass(frozen=True, eq=False)
class Images:
    """Pixels of a pair: uint8, hr (4 h, 4 w, 3), lr (h, w, 3); notes say what reading changed."""

    name: str
    hr: np.ndarray
    lr: np.ndarray
    notes: tuple[str, ...]


def find_pairs(hr: Path, lr: Path | None) -> list[Pair]:
    """One pair for each image in the folder `hr`, sorted by name.

    Raises:
        ImageError: no images, two with one name, an HR image without LR, or the reverse.
    """
    names: dict[str, Path] = {}
    for file in list_images(hr):
        name = re.sub(r"[_-]?HR$", "", file.stem) or file.stem
        if name in names:
            raise ImageError(f"'{names[name]}' and '{file}' are both the HR image '{name}'; leave one out.")
        names[name] = file
    if lr is None:
        return [Pair(name, file, None) for name, file in names.items()]
    found, others = match(lr, names)
    if others:
        raise ImageError(f"No HR image in '{hr}' goes with {_listed(f.name for f in others)} in '{lr}'.")
    return [Pair(name, file, found[name]) for name, file in names.items()]


def match(folder: Path, names: Iterable[str]) -> tuple[dict[str, Path], list[Path]]:
    """The file of each name in a folder: `baby` is `baby.png`, `babyx4.png`, `baby_x4.png` or `baby_` or `baby-` and anything.

    A file goes to the longest name that it fits.

    Returns:
        A file for each name, and the images that fit none.

    Raises:
        ImageError: a name without a file or with several; an empty or missing folder.
    """
    names = list(names)
    found: dict[str, list[Path]] = {name: [] for name in names}
    others = []
    for file in list_images(folder):
        fits = [name for name in names if re.fullmatch(rf"{re.escape(name)}(x{SCALE})?([_-].*)?", file.stem)]
        (found[max(fits, key=len)] if fits else others).append(file)
    if missing := [name for name in names if not found[name]]:
        raise ImageError(
            f"'{folder}' has no image for {_listed(missing)}; a file must be called like the HR image, "
            f"with or without an ending such as _x{SCALE}."
        )
    for name, files in found.items():
        if len(files) > 1:
            raise ImageError(f"Several files in '{folder}' fit '{name}': {_listed(f.name for f in files)}; keep one.")
    return {name: files[0] for name, files in found.items()}, others


def check_sizes(pairs: Iterable[Pair], least: int) -> None:
    """Look at the headers of all HR images before the work.

    Args:
        least: pixels a side that the metrics need after HR is cut to a multiple of 4.

    Raises:
        ImageError: an HR image is smaller or its header unreadable.
    """
    least = -(-least // SCALE) * SCALE
    sizes = {pair.hr: image_size(pair.hr) for pair in pairs}
    if small := [
        f"'{file}' is {width}x{height}" for file, (width, height) in sizes.items() if min(width, height) < least
    ]:
        more = f" (and {len(small) - 1} more are too small)" if len(small) > 1 else ""
        raise ImageError(
            f"{small[0]}{more}, but these metrics need HR images of at least {least}x{least}; leave it out."
        )


def read_pair(pair: Pair) -> Images:
    """HR cut at the bottom and right to a multiple of 4, and LR: the given one, or MATLAB's bicubic x1/4 of the cut HR.

    Raises:
        ImageError: unreadable, smaller than 4x4, or an LR image of another size.
    """
    hr, notes = read_pixels(pair.hr)
    height, width = (side // SCALE for side in hr.shape[:2])
    if min(height, width) < 1:
        raise ImageError(f"'{pair.hr}' is {_size(hr)}, but HR images must be at least {SCALE}x{SCALE}.")
    cut = hr[: SCALE * height, : SCALE * width]
    if cut.shape != hr.shape:
        notes.append(f"'{pair.hr.name}': HR cut from {_size(hr)} to {_size(cut)}, a multiple of {SCALE}")
    if pair.lr is None:
        return Images(pair.name, cut, imresize(cut, 1 / SCALE), tuple(notes))
    lr, lr_notes = read_pixels(pair.lr)
    if lr.shape[:2] != (height, width):
        raise ImageError(
            f"'{pair.lr}' is {_size(lr)}, but '{pair.hr}' of {_size(hr)} needs an LR image of {width}x{height}."
        )
    return Images(pair.name, cut, lr, (*notes, *lr_notes))


def read_result(file: Path, images: Images) -> tuple[np.ndarray, list[str]]:
    """Another program's result: uint8 of HR's size, and notes; ImageError if it has another size."""
    sr, notes = read_pixels(file)
    if sr.shape != images.hr.shape:
        raise ImageError(f"'{file}' is {_size(sr)}, but {SCALE} times the LR image is {_size(images.hr)}.")
    return sr, notes


def read_pixels(file: Path) -> tuple[np.ndarray, list[str]]:
    """uint8 (H, W, 3), alpha left out, and notes on what that changed."""
    picture = read_image(file)
    notes = [f"'{file.name}': {note}" for note in picture.notes]
    if picture.alpha is not None:
        notes.append(f"'{file.name}': transparency is not compared")
    return picture.rgb, notes


def _listed(names: Iterable[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    more = f" and {len(quoted) - _SHOWN} more" if len(quoted) > _SHOWN else ""
    return ", ".join(quoted[:_SHOWN]) + more


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
