"""The automatic mask generator of segment-anything (arXiv 2304.02643, appendix B), for any model that takes points.

A grid of points asks the model for masks, three a point. Four kinds are thrown away: masks that the model scores low, masks
that depend on the threshold, masks that a crop has cut, and masks that repeat a better one. Defaults are those of
segment-anything's `SamAutomaticMaskGenerator`. Deterministic: masks of equal score keep the order of their points.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from samdiffsr.errors import ConfigError
from samdiffsr.masks.region import Box, Region, box_of, xywh
from samdiffsr.masks.rle import decode_mask, encode_mask

_CUT = 20
"""Masks whose box comes this close (pixels) to a crop's border inside the image are held to be cut by it."""

_CHUNK = 2**26
"""Logits enlarged at a time: 256 MiB of float32, and a few times that on the way."""


class EmbeddedCrop(Protocol):
    """A crop the model has seen once, ready for any number of points."""

    def predict(self, points: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (N, 2), each (x, y) in pixels of the crop -> small mask logits (N, K, h, w), predicted IoU (N, K)."""
        ...

    def enlarge(self, logits: torch.Tensor) -> torch.Tensor:
        """Small logits (n, h, w) -> logits at the crop's own size (n, H, W)."""
        ...


class PointModel(Protocol):
    """A network that segments the thing at a point."""

    def embed(self, crop: np.ndarray) -> EmbeddedCrop:
        """Run the image encoder on a uint8 RGB crop (H, W, 3)."""
        ...


@dataclass(frozen=True)
class GeneratorOptions:
    """Options of the generator, named and preset as in segment-anything.

    Attributes:
        points_per_side: the grid on the whole image has this many rows and columns of points.
        points_per_batch: points that the model computes at once; changes memory and speed, not the masks.
        pred_iou_thresh, stability_score_thresh: a mask stays if its predicted IoU is above the first and its stability at
            least the second.
        stability_score_offset: the stability is the IoU of the masks at this much above and below the threshold 0.
        box_nms_thresh: of two masks of a crop with a larger box IoU, the worse is dropped.
        crop_n_layers: besides the whole image, layer n segments 4^n crops.
        crop_nms_thresh: of two masks with a larger box IoU, the one from the larger crop is dropped.
        crop_overlap_ratio: overlap of the crops of layer 1, as a part of the shorter side; half as much a layer further.
        crop_n_points_downscale_factor: layer n has points_per_side / factor^n points a side.
        min_mask_region_area: holes and islands smaller than this many pixels are filled and removed; 0 leaves them.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch", "crop_n_points_downscale_factor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        for name in ("stability_score_offset", "crop_n_layers", "min_mask_region_area"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but must not be negative.")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise ConfigError(f"crop_overlap_ratio is {self.crop_overlap_ratio}, but must be at least 0 and below 1.")
        if self.points_per_side < self.crop_n_points_downscale_factor**self.crop_n_layers:
            raise ConfigError(
                f"{self.points_per_side} points a side leave none for layer {self.crop_n_layers} of the crops; "
                "lower crop_n_points_downscale_factor or crop_n_layers."
            )


@dataclass(frozen=True)
class _Found:
    """A candidate mask, small in memory, so that thousands can wait for suppression. `box` is (x0, y0, x1, y1)."""

    counts: str
    area: int
    box: Box
    crop: Box
    predicted_iou: float
    point: tuple[float, float]
    stability_score: float


@torch.inference_mode()
def generate_masks(image: np.ndarray, model: PointModel, options: GeneratorOptions) -> list[Region]:
    """All masks of one uint8 RGB image (H, W, 3), best predicted IoU first (with crops: those of small crops first)."""
    height, width = image.shape[:2]
    found: list[_Found] = []
    for crop, layer in crop_boxes((height, width), options.crop_n_layers, options.crop_overlap_ratio):
        side = options.points_per_side // options.crop_n_points_downscale_factor**layer
        inside = list(_masks_of_crop(image, crop, side, model, options))
        found += _suppress(inside, [mask.predicted_iou for mask in inside], options.box_nms_thresh)
    if options.crop_n_layers:
        found = _suppress(found, [1 / _area(mask.crop) for mask in found], options.crop_nms_thresh)
    if options.min_mask_region_area:
        found = _without_specks(found, (height, width), options)
    return [
        Region(
            counts=mask.counts,
            size=(height, width),
            area=mask.area,
            bbox=xywh(mask.box),
            crop_box=xywh(mask.crop),
            predicted_iou=mask.predicted_iou,
            point=mask.point,
            stability_score=mask.stability_score,
        )
        for mask in found
    ]


def point_grid(side: int) -> np.ndarray:
    """The centres (x, y) of side * side equal cells of the unit square, row by row; float64 (side * side, 2)."""
    centres = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """(x0, y0, x1, y1) and layer of every crop of an image of `size` (height, width); the whole image is layer 0."""
    height, width = size
    boxes: list[tuple[Box, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / n))
        crop_width, crop_height = (math.ceil((overlap * (n - 1) + length) / n) for length in (width, height))
        for i, j in itertools.product(range(n), range(n)):
            left, top = i * (crop_width - overlap), j * (crop_height - overlap)
            right, bottom = min(left + crop_width, width), min(top + crop_height, height)
            if left < right and top < bottom:  # tiny images have fewer crops
                boxes.append(((left, top, right, bottom), layer))
    return boxes


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Non-maximum suppression: indices of the boxes that overlap no better one by more than `threshold` (IoU).

    Args:
        boxes: (N, 4) as x0, y0, x1, y1. scores: (N,), higher is better; of equal ones the earlier is better.

    Returns:
        int (n,), best first.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    waiting = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    kept = []
    while waiting.size:
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        low = np.maximum(boxes[waiting, :2], boxes[best, :2])
        high = np.minimum(boxes[waiting, 2:], boxes[best, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        # a product instead of a quotient: two boxes without area do not overlap
        waiting = waiting[shared <= threshold * (areas[waiting] + areas[best] - shared)]
    return np.array(kept, dtype=np.int64)


def _suppress(masks: list[_Found], scores: list[float], threshold: float) -> list[_Found]:
    kept = suppress(np.array([mask.box for mask in masks]), np.array(scores), threshold)
    return [masks[index] for index in kept]


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _masks_of_crop(
    image: np.ndarray, crop: Box, side: int, model: PointModel, options: GeneratorOptions
) -> Iterator[_Found]:
    """The masks of one crop that pass every test on a single mask, in the order of their points."""
    left, top, right, bottom = crop
    pixels = np.ascontiguousarray(image[top:bottom, left:right])
    embedded = model.embed(pixels)
    points = point_grid(side) * [right - left, bottom - top]
    at_once = max(1, _CHUNK // max(pixels.shape[0] * pixels.shape[1], 2**20))  # a model's own grid has 2^20 pixels
    for start in range(0, len(points), options.points_per_batch):
        batch = points[start : start + options.points_per_batch]
        logits, ious = embedded.predict(batch)
        # by predicted IoU first: enlarging is the costly part, and needs only those that pass
        good = torch.nonzero(ious > options.pred_iou_thresh)
        for some in good.split(at_once):
            large = embedded.enlarge(logits[some[:, 0], some[:, 1]])
            stability = _stability(large, options.stability_score_offset)
            steady = stability >= options.stability_score_thresh  # false for 0 / 0: nothing is that far above 0
            masks = (large[steady] > 0).cpu().numpy()
            which = some[steady].tolist()
            for mask, score, (number, k) in zip(masks, stability[steady].tolist(), which, strict=True):
                if not mask.any():
                    continue
                box = box_of(mask)
                box = box[0] + left, box[1] + top, box[2] + left, box[3] + top
                if _is_cut(box, crop, image.shape[:2]):
                    continue
                whole = np.zeros(image.shape[:2], np.uint8)
                whole[top:bottom, left:right] = mask
                x, y = batch[number].tolist()
                yield _Found(
                    counts=encode_mask(whole),
                    area=int(np.count_nonzero(mask)),
                    box=box,
                    crop=crop,
                    predicted_iou=ious[number, k].item(),
                    point=(x + left, y + top),
                    stability_score=score,
                )


def _stability(logits: torch.Tensor, offset: float) -> torch.Tensor:
    """IoU of the masks at `offset` above and below the threshold 0; (n, H, W) -> (n,). One contains the other."""
    inner, outer = (logits > offset).sum((1, 2)), (logits > -offset).sum((1, 2))
    return inner.float() / outer.float()


def _is_cut(box: Box, crop: Box, size: tuple[int, int]) -> bool:
    """The box ends at a border of the crop that is not one of the image as well."""
    border = (0, 0, size[1], size[0])
    return any(abs(b - c) <= _CUT < abs(b - i) for b, c, i in zip(box, crop, border, strict=True))


def _without_specks(masks: list[_Found], size: tuple[int, int], options: GeneratorOptions) -> list[_Found]:
    """Fill small holes, remove small islands, suppress again; masks that needed no change come first."""
    least, changed, cleaned = options.min_mask_region_area, [], []
    for found in masks:
        before = decode_mask(found.counts, size)
        after = without_islands(without_holes(before, least), least)
        changed.append(not np.array_equal(before, after))
        if changed[-1]:
            found = replace(found, counts=encode_mask(after), area=int(np.count_nonzero(after)), box=box_of(after))
        cleaned.append(found)
    scores = [0.0 if change else 1.0 for change in changed]
    return _suppress(cleaned, scores, max(options.box_nms_thresh, options.crop_nms_thresh))


def without_holes(mask: np.ndarray, least: int) -> np.ndarray:
    """The bool mask (H, W) with every gap of fewer than `least` pixels filled, also at the border; 8-neighbours."""
    gaps, areas = _components(~mask)
    return mask | (areas < least)[gaps] & ~mask


def without_islands(mask: np.ndarray, least: int) -> np.ndarray:
    """The bool mask (H, W) without its parts of fewer than `least` pixels; the largest stays. 8-neighbours."""
    parts, areas = _components(mask)
    stays = areas >= least
    if areas.size > 1:
        stays[1 + np.argmax(areas[1:])] = True
    return stays[parts] & mask


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the 8-connected part each pixel is in (0 outside), and the area of each number."""
    from skimage.measure import label

    parts = np.asarray(label(mask, connectivity=2))
    return parts, np.bincount(parts.ravel())
