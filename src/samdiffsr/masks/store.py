"""Mask files: a JSON list of records with COCO run-length encodings, as segment-anything's `amg.py --convert-to-rle` writes."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from samdiffsr.errors import MaskError
from samdiffsr.images import write_whole
from samdiffsr.masks.segment import Region


def write_records(path: Path, regions: Sequence[Region]) -> None:
    """Write the mask file of one image, whole or not at all; the same regions give the same bytes.

    Raises:
        ImageError: the file cannot be written (no folder, no permission, disk full).
    """
    write_whole(json.dumps([region.record() for region in regions]).encode(), path)


def read_records(path: Path, shape: tuple[int, int]) -> list[dict]:
    """Read and check the records of one mask file. Masks may overlap and leave gaps; there may be none.

    Args:
        path: `<image stem>.json`.
        shape: (height, width) of the image; the released code resized silently, here a difference is an error.

    Raises:
        MaskError: the file is missing, empty, cut short, not such JSON, or a mask does not have the image's size.
    """
    path = Path(path)
    records = _read_json(path)
    if not isinstance(records, list):
        raise MaskError(f"mask file {path} holds a {type(records).__name__}, but must hold a list of mask records.")
    for number, record in enumerate(records):
        rle = record.get("segmentation") if isinstance(record, dict) else None
        if not (isinstance(rle, dict) and isinstance(rle.get("counts"), str) and isinstance(rle.get("size"), list)):
            raise MaskError(
                f"record {number} of mask file {path} has no run-length 'segmentation' with size and counts; "
                "write it with amg.py --convert-to-rle or samdiffsr masks."
            )
        if rle["size"] != list(shape) or not all(type(n) is int for n in rle["size"]):  # 4.0 == 4 and True == 1
            raise MaskError(f"record {number} of mask file {path} has size {rle['size']}, its image {list(shape)}.")
        try:
            run_lengths(rle["counts"], shape)
        except MaskError as error:
            raise MaskError(f"record {number} of mask file {path}: {error}") from None
    return records


def _read_json(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MaskError(f"mask file {path} is missing; make it or name the folder that has it.") from None
    except OSError as error:
        raise MaskError(f"mask file {path} cannot be read ({error.strerror}); check it and its permissions.") from None
    if not content.strip():
        raise MaskError(f"mask file {path} is empty ({len(content)} bytes); make it again.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MaskError(f"mask file {path} cannot be read: not JSON, or cut short ({error}); make it again.") from None


def decode(records: list[dict]) -> Iterator[np.ndarray]:
    """The bool (H, W) masks of the records, one at a time."""
    for number, record in enumerate(records):
        rle = record["segmentation"]
        try:
            yield decode_mask(rle["counts"], rle["size"])
        except MaskError as error:
            raise MaskError(f"record {number}: {error}") from None


def encode_mask(mask: np.ndarray) -> str:
    """COCO compressed run lengths of a mask (H, W), bool or uint8 of 0 and 1."""
    return _text(coco.encode(np.asfortranarray(mask, dtype=np.uint8)))


def encode_runs(runs: list[int], size: tuple[int, int]) -> str:
    """COCO compressed run lengths from plain ones: pixels outside, inside, outside ..., column by column."""
    uncompressed: Any = {"size": list(size), "counts": runs}
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
    digits = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
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
