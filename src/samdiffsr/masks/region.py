"""Segmenters and the regions that they return.

A segmenter is any callable from an image to its regions: `sam.py` and `felzenszwalb.py` have one each.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Region:
    """One region of an image. Boxes are (x, y, width, height) in pixels, points (x, y).

    Attributes:
        counts: the mask as COCO compressed run lengths.
        size: (height, width) of the image.
        area: pixels in the mask.
        bbox: from the first to the last column and row of the mask. As in segment-anything, the width is last minus
            first column: one pixel is 0 wide (pycocotools' `toBbox` says 1).
        crop_box: the part of the image that the segmenter saw.
        predicted_iou, stability_score: how good the model thinks the mask is, and how little it depends on the
            threshold; None where the segmenter estimates neither.
        point: the prompt that gave the mask; None without prompts.
    """

    counts: str
    size: tuple[int, int]
    area: int
    bbox: Box
    crop_box: Box
    predicted_iou: float | None = None
    point: tuple[float, float] | None = None
    stability_score: float | None = None

    def record(self) -> dict[str, Any]:
        """The JSON record of segment-anything's `amg.py --convert-to-rle`: its keys, order and types.

        A score that was not estimated is left out: readers then see that it is missing, instead of an invented number.
        """
        record = {
            "segmentation": {"size": list(self.size), "counts": self.counts},
            "area": self.area,
            "bbox": list(self.bbox),
            "predicted_iou": self.predicted_iou,
            "point_coords": None if self.point is None else [list(self.point)],
            "stability_score": self.stability_score,
            "crop_box": list(self.crop_box),
        }
        return {key: value for key, value in record.items() if value is not None}


class Recipe(Protocol):
    """How to make a segmenter: a small frozen dataclass that travels to other processes and machines."""

    def build(self) -> "Segmenter":
        """The segmenter itself; loads weights where there are any."""
        ...

    def record(self) -> dict[str, Any]:
        """Everything that decides what the masks look like, as JSON."""
        ...


class Segmenter(Protocol):
    """Finds the regions of an image; the same image always gives the same regions in the same order."""

    def __call__(self, image: np.ndarray) -> list[Region]:
        """Regions of one uint8 RGB image (H, W, 3); they may overlap and need not cover it."""
        ...


def box_of(mask: np.ndarray) -> Box:
    """First column, first row, last column and last row (x0, y0, x1, y1) of a bool mask (H, W); zeros if it is empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def xywh(box: Box) -> Box:
    """(x0, y0, x1, y1) as (x, y, width, height)."""
    x0, y0, x1, y1 = box
    return x0, y0, x1 - x0, y1 - y0
