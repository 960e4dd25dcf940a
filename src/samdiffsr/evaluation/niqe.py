"""NIQE, a naturalness score that needs no original: Mittal, Soundararajan and Bovik, IEEE Signal Processing Letters 20, 2013.

The method is the paper's. The authors' parameters have no free licence, so ours are fitted (runs/niqe.py) to 31 free
photographs: figures rank pictures as theirs do, but are not comparable with published NIQE.
"""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from samdiffsr.errors import CheckpointError, ImageError
from samdiffsr.evaluation.metrics import luma
from samdiffsr.resize import imresize

PARAMETERS = Path(__file__).parents[1] / "weights" / "niqe" / "niqe.safetensors"
PATCH = 96
"""Side of a patch in pixels; half of that at the second scale."""

_WINDOW = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
_WINDOW /= _WINDOW.sum()  # the 7x7 Gaussian is the outer product of this with itself
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHAPES = np.arange(0.2, 10.0005, 0.001)


@lru_cache(maxsize=1)
def _ratios() -> np.ndarray:
    """(E|x|)^2 / E(x^2) of a generalised Gaussian, for each of `_SHAPES`; it grows with the shape."""
    return np.array([math.exp(2 * math.lgamma(2 / a) - math.lgamma(1 / a) - math.lgamma(3 / a)) for a in _SHAPES])


def niqe(image: np.ndarray) -> float:
    """The distance of a picture's patches from those of photographs; lower is better.

    Photographs of 2 megapixels have about 3 (measured). Pictures of few patches have more: 5.6 for Set5's originals.

    Args:
        image: uint8 (H, W, 3) sRGB, at least two patches of 96x96 pixels in size.

    Raises:
        ImageError: a smaller picture.
        CheckpointError: the parameters are missing or damaged.
    """
    mean, covariance = _parameters()
    features, _ = patch_features(image)
    if len(features) < 2:
        raise ImageError(
            f"NIQE needs two patches of {PATCH}x{PATCH}, but the image is {image.shape[1]}x{image.shape[0]}."
        )
    off = features.mean(axis=0) - mean
    between = (covariance + np.cov(features, rowvar=False)) / 2
    return float(np.sqrt(off @ np.linalg.pinv(between) @ off))


def fit(images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters from photographs: of each, the patches with more than 0.75 of its sharpest patch's sharpness, as in the
    paper."""
    rows = []
    for image in images:
        features, sharpness = patch_features(image)
        rows.append(features[sharpness > 0.75 * sharpness.max()])
    found = np.concatenate(rows)
    return {"mean": found.mean(axis=0), "covariance": np.cov(found, rowvar=False)}


def patch_features(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The paper's 36 features of each patch (N, 36), and each patch's sharpness (N,)."""
    rows, columns = image.shape[0] // PATCH, image.shape[1] // PATCH
    if not rows or not columns:
        return np.zeros((0, 36)), np.zeros(0)
    grey = np.round(luma(image))[: rows * PATCH, : columns * PATCH]
    found, sharpness = [], np.zeros(0)
    for side in (PATCH, PATCH // 2):
        normalised, deviation = _normalised(grey)
        if side == PATCH:
            sharpness = _patches(deviation, side).mean(axis=(1, 2))
        found.append(_features(_patches(normalised, side)))
        grey = imresize(grey, 1 / 2)
    return np.concatenate(found, axis=1), sharpness


@lru_cache(maxsize=1)
def _parameters() -> tuple[np.ndarray, np.ndarray]:
    try:
        found = load_file(PARAMETERS)
        return found["mean"], found["covariance"]
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"The parameters of NIQE {PARAMETERS} cannot be read: {error}.") from None


def _normalised(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x - mean) / (deviation + 1) with local mean and deviation, and that deviation."""
    mean = _blur(grey)
    deviation = np.sqrt(np.abs(_blur(grey * grey) - mean * mean))
    return (grey - mean) / (deviation + 1), deviation


def _blur(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    padded = np.pad(image, 3, mode="edge")
    rows = sum(weight * padded[tap : tap + height] for tap, weight in enumerate(_WINDOW))
    return sum(weight * rows[:, tap : tap + width] for tap, weight in enumerate(_WINDOW))  # type: ignore[index]


def _patches(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W) -> (N, side, side)."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    return image.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)


def _features(patches: np.ndarray) -> np.ndarray:
    """18 features of each patch: shape and width of its values, and four numbers of each product with a neighbour."""
    shape, left, right = asymmetric_gaussian(patches)
    found = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = asymmetric_gaussian(patches * np.roll(patches, shift, axis=(1, 2)))
        mean = (right - left) * np.exp([math.lgamma(2 / a) - math.lgamma(1 / a) for a in shape])
        found += [shape, mean, left, right]
    return np.stack(found, axis=1)


def asymmetric_gaussian(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape, left and right width of an asymmetric generalised Gaussian for each row of (N, ...), by matching moments."""
    flat = values.reshape(len(values), -1)
    left, right = (
        np.sqrt((flat**2 * side).sum(axis=1) / np.maximum(side.sum(axis=1), 1)) for side in (flat < 0, flat > 0)
    )
    ratio = np.maximum(left, 1e-12) / np.maximum(right, 1e-12)
    moment = np.abs(flat).mean(axis=1) ** 2 / np.maximum((flat**2).mean(axis=1), 1e-12)
    moment *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    table = _ratios()
    above = np.searchsorted(table, moment).clip(1, len(table) - 1)
    nearest = above - (moment - table[above - 1] < table[above] - moment)
    shape = _SHAPES[nearest]
    scale = np.exp([(math.lgamma(1 / a) - math.lgamma(3 / a)) / 2 for a in shape])
    return shape, left * scale, right * scale
