"""A segmenter without weights: Felzenszwalb and Huttenlocher's graph-based segmentation (IJCV 2004), from scikit-image."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects
from skimage.segmentation import felzenszwalb

from samdiffsr.errors import ConfigError
from samdiffsr.masks.region import Region, xywh
from samdiffsr.masks.rle import encode_run_lengths

_MOST = {"scale": 2**31 - 1, "sigma": 1000, "min_size": 2**31 - 1}
"""Largest values: min_size is a C int in scikit-image, and the smoothing takes time and memory in proportion to sigma."""


@dataclass(frozen=True)
class FelzenszwalbSegmenter:
    """Regions of similar colour; together they cover the image, each pixel once. Largest first.

    Attributes:
        scale: larger means fewer and larger regions.
        sigma: standard deviation of the smoothing before, in pixels.
        min_size: smaller regions (pixels) join a neighbour.
        pixels: larger images are reduced to this many pixels, and the regions enlarged by nearest neighbour. That bounds
            the time; borders become stairs as high as the reduction. `sigma` and `min_size` are in reduced pixels.
    """

    scale: float = 300.0
    sigma: float = 0.8
    min_size: int = 200
    pixels: int = 1_000_000

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 0 <= getattr(self, name) <= most:  # NaN neither
                raise ConfigError(f"{name} is {getattr(self, name)}, but must be at least 0 and at most {most}.")
        if self.pixels < 1:
            raise ConfigError(f"pixels is {self.pixels}, but must be at least 1.")

    def __call__(self, image: np.ndarray) -> list[Region]:
        labels = _enlarged(self._labels(_reduced(image, self.pixels)), image.shape[:2])
        height, width = labels.shape
        whole = xywh((0, 0, width, height))
        regions = []
        for counts, place in zip(_run_lengths(labels), find_objects(labels + 1), strict=True):
            rows, columns = place
            box = xywh((columns.start, rows.start, columns.stop - 1, rows.stop - 1))
            regions.append(
                Region(encode_run_lengths(counts, (height, width)), (height, width), sum(counts[1::2]), box, whole)
            )
        return sorted(regions, key=lambda region: -region.area)  # stable: of equal ones the first from the top

    def build(self) -> "FelzenszwalbSegmenter":
        """Itself: there is nothing to load."""
        return self

    def record(self) -> dict[str, Any]:
        """See `Recipe`."""
        return {"segmenter": "felzenszwalb"} | asdict(self)

    def _labels(self, image: np.ndarray) -> np.ndarray:
        """Number of the region of each pixel, 0, 1 ... in the order of their first pixels."""
        parts = felzenszwalb(image, scale=self.scale, sigma=self.sigma, min_size=self.min_size)
        _, first, numbers = np.unique(parts, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[numbers].reshape(parts.shape)


def _run_lengths(labels: np.ndarray) -> Iterator[list[int]]:
    """Run lengths of each region of a label map, in order: pixels outside, inside, outside ..., column by column.

    One pass over the image for all of them; a mask each would cost a pass each.
    """
    flat = labels.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.concatenate([starts[1:], [flat.size]])
    by_label = np.argsort(flat[starts], kind="stable")
    for runs in np.split(by_label, np.flatnonzero(np.diff(flat[starts][by_label])) + 1):
        borders = np.stack([starts[runs], ends[runs]], 1).ravel()
        counts = np.diff(borders, prepend=0, append=flat.size).tolist()
        yield counts if counts[-1] else counts[:-1]


def _reduced(image: np.ndarray, pixels: int) -> np.ndarray:
    """The image at no more than about `pixels` pixels, averaged."""
    height, width = image.shape[:2]
    factor = (pixels / (height * width)) ** 0.5
    if factor >= 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _enlarged(labels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Labels at `size` (height, width), by nearest neighbour."""
    rows, columns = ((np.arange(n) + 0.5) * small / n for n, small in zip(size, labels.shape, strict=True))
    return labels[rows.astype(int)[:, None], columns.astype(int)]
