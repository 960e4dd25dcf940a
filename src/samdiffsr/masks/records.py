"""Mask files: a JSON list of records with COCO run-length encodings, as segment-anything's `amg.py --convert-to-rle` writes."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samdiffsr.errors import MaskError
from samdiffsr.files import write_whole
from samdiffsr.masks.region import Region
from samdiffsr.masks.rle import decode_mask, run_lengths


def write_records(path: Path, regions: Sequence[Region]) -> None:
    """Write the mask file of one image, whole or not at all; the same regions give the same bytes.

    Raises:
        SamDiffSRError: the file cannot be written (no folder, no permission, disk full).
    """
    write_whole(json.dumps([region.record() for region in regions]).encode(), path)


def read_records(path: Path, shape: tuple[int, int] | None) -> list[dict]:
    """Read and check the records of one mask file. Masks may overlap and leave gaps; there may be none.

    Args:
        path: `<image stem>.json`.
        shape: (height, width) of the image; the released code resized silently, here a difference is an error. None
            accepts every size.

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
        size = rle["size"]
        if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):  # 4.0 == 4 and True == 1
            raise MaskError(
                f"record {number} of mask file {path} has size {size}, but must be a height and a width in pixels."
            )
        if shape is not None and size != list(shape):
            raise MaskError(f"record {number} of mask file {path} has size {size}, its image {list(shape)}.")
        try:
            run_lengths(rle["counts"], size)
        except MaskError as error:
            raise MaskError(f"record {number} of mask file {path}: {error}") from None
    return records


def _read_json(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MaskError(
            f"mask file {path} is missing; make it with samdiffsr masks, or give the folder that has it."
        ) from None
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
