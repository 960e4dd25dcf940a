"""Run lengths of compressed COCO masks as numbers, so that a region costs its own area and not the image's."""

from collections.abc import Sequence

import numpy as np

from samdiffsr.errors import MaskError


def run_lengths(counts: str, size: Sequence[int]) -> np.ndarray:
    """Decode the `counts` of a compressed RLE of `size` (height, width): runs of 0 and 1 in turn down the columns, int64.

    The format (pycocotools, `rleFrString`): base 48, five bits a character, 32 marks that more follow, the last one's 16
    the sign; from the fourth number on each is the difference to the last but one.

    Raises:
        MaskError: not such a string, or its runs do not fill the mask.
    """
    try:
        code = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise MaskError("counts holds characters that are not ASCII.") from None
    if code.size == 0 or code.min() < 0 or code.max() > 63 or code[-1] & 32:
        raise MaskError(f"counts {counts[:20]!r} is not a compressed run-length encoding, or is cut short.")
    last = np.flatnonzero((code & 32) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(code.size) - np.repeat(first, last - first + 1)
    if place.max() > 11:  # 60 bits: more than any image has pixels
        raise MaskError(f"counts {counts[:20]!r} holds a number of more than 60 bits.")
    lengths = np.add.reduceat((code & 31) << (5 * place), first)
    lengths -= np.where(code[last] & 16, 1 << (5 * (place[last] + 1)), 0)
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    if lengths.min() < 0 or lengths.sum() != size[0] * size[1]:
        raise MaskError(
            f"counts {counts[:20]!r} describes {lengths.sum()} pixels, but the mask has {size[0] * size[1]}."
        )
    return lengths


def region_pixels(counts: str, size: Sequence[int]) -> np.ndarray:
    """The pixels of a mask of `size` (height, width), ascending, counted down the columns (y + H x); errors as above."""
    lengths = run_lengths(counts, size)
    ends = np.cumsum(lengths)
    starts, ones = (ends - lengths)[1::2], lengths[1::2]
    before = np.cumsum(ones) - ones
    return np.repeat(starts - before, ones) + np.arange(ones.sum())
