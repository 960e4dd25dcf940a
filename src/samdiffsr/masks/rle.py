"""COCO run-length encodings of one mask: to and from masks, run lengths and lists of pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from samdiffsr.errors import MaskError


def encode_mask(mask: np.ndarray) -> str:
    """COCO compressed run lengths of a mask (H, W), bool or uint8 of 0 and 1."""
    return _text(coco.encode(np.asfortranarray(mask, dtype=np.uint8)))


def encode_run_lengths(lengths: list[int], size: tuple[int, int]) -> str:
    """COCO compressed run lengths from plain ones: pixels outside, inside, outside ..., column by column."""
    uncompressed: Any = {"size": list(size), "counts": lengths}
    return _text(coco.frPyObjects(uncompressed, *size))


def _text(rle: Any) -> str:
    return rle["counts"].decode("ascii")


def decode_mask(counts: str, size: Sequence[int]) -> np.ndarray:
    """The bool mask of `size` (height, width) from its compressed run lengths; MaskError if they do not fit it."""
    run_lengths(counts, size)  # pycocotools reads past its memory when they do not
    return coco.decode({"size": list(size), "counts": counts.encode("ascii")}).astype(bool)


def run_lengths(counts: str, size: Sequence[int]) -> np.ndarray:
    """Decode COCO compressed run lengths: pixels outside, inside, outside ... column by column, int64.

    A number is written in digits of 5 bits, lowest first, as characters from "0" (48) on; bit 32 says that another digit
    follows, bit 16 of the last one is the sign. From the fourth number on it is the difference to the last but one.

    Raises:
        MaskError: other characters, a number without end or out of range, or runs that do not fill height * width.
    """
    digits = np.frombuffer(counts.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    if digits.size and not 0 <= digits.min() <= digits.max() < 64:
        raise MaskError("its counts are no run lengths: they hold a character outside '0' to 'o'; make the file again.")
    last = np.flatnonzero(digits < 32)
    if not last.size or last[-1] != digits.size - 1:
        raise MaskError("its counts are cut short; make the file again.")
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(digits.size) - np.repeat(first, last - first + 1)
    if place.max() > 7:  # 2^35 pixels and more
        raise MaskError("its counts hold a number that no image is large enough for; make the file again.")
    numbers = np.add.reduceat((digits & 31) << (5 * place), first)
    numbers -= np.where(digits[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    if numbers.min() < 0 or numbers.sum() != size[0] * size[1]:
        raise MaskError(
            f"its counts cover {numbers.sum()} pixels or run backwards, but {size[0]}x{size[1]} has "
            f"{size[0] * size[1]}; make the file again."
        )
    return numbers


def region_pixels(counts: str, size: Sequence[int]) -> np.ndarray:
    """The pixels of a mask of `size` (height, width), ascending, counted down the columns (y + H x); errors as above.

    So a region costs its own area and not the image's.
    """
    lengths = run_lengths(counts, size)
    ends = np.cumsum(lengths)
    starts, ones = (ends - lengths)[1::2], lengths[1::2]
    before = np.cumsum(ones) - ones
    return np.repeat(starts - before, ones) + np.arange(ones.sum())
