"""Structural position encoding: region masks -> structure map E (SAM-DiffSR, Section 3.3, Eq. 10)."""

from collections.abc import Iterable
from typing import Literal

import numpy as np

from samdiffsr.errors import MaskError, choose

Encoding = Literal["rope", "cosine", "sincos", "linear"]
MeanOver = Literal["region", "image"]
Overlap = Literal["sum", "last"]


def _angles(height: int, width: int) -> np.ndarray:
    """theta[y, x] = y / 10000^(2 floor(x / 2) / W): rows are positions, columns are feature dimensions (RoFormer)."""
    pair = np.arange(width) // 2
    return np.arange(height)[:, None] / 10000.0 ** (2 * pair / width)[None, :]


def _rope(height: int, width: int) -> np.ndarray:
    """Rotary embedding of an all-ones image; an odd width leaves the last column the first half of a pair."""
    theta = _angles(height, width)
    return np.cos(theta) + np.where(np.arange(width) % 2 == 0, -1.0, 1.0) * np.sin(theta)


def _sincos(height: int, width: int) -> np.ndarray:
    """The sinusoidal embedding of the row: sin in even columns, cos in odd ones (Vaswani et al. 2017)."""
    theta = _angles(height, width)
    return np.where(np.arange(width) % 2 == 0, np.sin(theta), np.cos(theta))


def _cosine(height: int, width: int) -> np.ndarray:
    """A grid of cosines of the same angles."""
    return np.cos(_angles(height, width))


def _linear(height: int, width: int) -> np.ndarray:
    """A ramp from 0 (first pixel) to 1 (last pixel) in reading order."""
    return np.linspace(0.0, 1.0, height * width).reshape(height, width)


ENCODINGS = {"rope": _rope, "cosine": _cosine, "sincos": _sincos, "linear": _linear}


def structure_map(
    masks: np.ndarray,
    *,
    encoding: Encoding = "rope",
    mean_over: MeanOver = "region",
    overlap: Overlap = "sum",
) -> np.ndarray:
    """Encode K region masks of one image into its structure map, E = sum_i M_i mean(P over M_i) (Eq. 10).

    Args:
        masks: bool (K, H, W); K may be 0 and masks may be empty, H and W may be odd.
        encoding: the position embedding P (H, W). "rope" is the paper's; the others are those of its ablation by name.
        mean_over: "region" averages P over the mask's own area (paper), "image" over all H * W pixels (released code).
        overlap: "sum" adds where masks overlap (paper), "last" lets later masks overwrite (released code).

    Returns:
        float32 (H, W); 0 where no mask is; within +-sqrt(2) for each mask covering the pixel.

    Raises:
        MaskError: `masks` is not bool or not three-dimensional.
        ConfigError: an unknown option.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype != bool:
        raise MaskError(f"masks must be bool of shape (K, H, W), got {masks.dtype} of shape {masks.shape}.")
    return accumulate_structure(masks, masks.shape[1:], encoding=encoding, mean_over=mean_over, overlap=overlap)


def accumulate_structure(
    masks: Iterable[np.ndarray],
    shape: tuple[int, int],
    *,
    encoding: Encoding = "rope",
    mean_over: MeanOver = "region",
    overlap: Overlap = "sum",
) -> np.ndarray:
    """`structure_map` for masks that come one at a time (bool, each of `shape`), so that large images need little memory."""
    average = choose(mean_over, {"region": np.mean, "image": lambda p: p.sum() / (shape[0] * shape[1])}, "mean_over")
    add = choose(overlap, {"sum": True, "last": False}, "overlap")
    position = choose(encoding, ENCODINGS, "encoding")(*shape)
    out = np.zeros(shape)
    for number, mask in enumerate(masks):
        if mask.shape != tuple(shape):
            raise MaskError(f"mask {number} has shape {mask.shape}, but its image has {tuple(shape)}.")
        if mask.any():
            value = average(position[mask])
            out[mask] = out[mask] + value if add else value
    return out.astype(np.float32)
