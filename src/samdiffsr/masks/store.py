"""Mask files: a JSON list of records with COCO run-length encodings, as segment-anything's `amg.py --convert-to-rle` writes."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from samdiffsr.errors import MaskError


def read_records(path: Path, shape: tuple[int, int] | None) -> list[dict]:
    """Read and check the records of one mask file.

    Args:
        path: `<image stem>.json`.
        shape: (height, width) of the image; the released code resized silently, here a difference is an error. None
            accepts every size.

    Raises:
        MaskError: the file is missing, is not such JSON, or a mask does not have the image's size.
    """
    try:
        records = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise MaskError(f"mask file {path} is missing; make it or name the folder that has it.") from None
    except (OSError, ValueError) as error:
        raise MaskError(f"mask file {path} cannot be read ({error}); make it again.") from None
    if not isinstance(records, list):
        raise MaskError(f"mask file {path} holds a {type(records).__name__}, but must hold a list of mask records.")
    for number, record in enumerate(records):
        rle = record.get("segmentation") if isinstance(record, dict) else None
        if not (isinstance(rle, dict) and isinstance(rle.get("counts"), str) and isinstance(rle.get("size"), list)):
            raise MaskError(
                f"record {number} of mask file {path} has no run-length 'segmentation' with size and counts."
            )
        if shape is None:
            if len(rle["size"]) != 2 or not all(isinstance(n, int) and n > 0 for n in rle["size"]):
                raise MaskError(
                    f"record {number} of mask file {path} has size {rle['size']}, which is no height and width."
                )
        elif rle["size"] != list(shape):
            raise MaskError(f"record {number} of mask file {path} has size {rle['size']}, its image {list(shape)}.")
    return records


def decode(records: list[dict]) -> Iterator[np.ndarray]:
    """The bool (H, W) masks of the records, one at a time."""
    for number, record in enumerate(records):
        rle = record["segmentation"]
        try:
            yield coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool)
        except ValueError as error:
            raise MaskError(f"record {number} is not a valid run-length encoding: {error}.") from None
