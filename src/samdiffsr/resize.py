"""Bicubic resizing exactly as MATLAB's `imresize` does it: the degradation and the upscaler of the super-resolution literature.

It is exact through: antialiased cubic kernel (Keys, a = -0.5), pixel centres at half integers, symmetric border, and for
integers a rounding after *each* pass (without it 11 % of the pixels differ by one grey level).
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from samdiffsr.errors import ConfigError

if TYPE_CHECKING:
    import torch

SCALE = 4  # HR pixels per LR pixel, throughout the package
_BLOCK = 2**18  # samples that are computed at once: they stay in the cache


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _taps(length: int, out_length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Source indices and float64 weights of every output sample along one axis, both (out_length, taps)."""
    shrink = min(scale, 1.0)  # below 1 the kernel widens: antialiasing
    width = 4.0 / shrink
    centre = (np.arange(out_length) + 0.5) / scale - 0.5
    first = np.floor(centre - width / 2).astype(np.int64) + 1
    index = first[:, None] + np.arange(math.ceil(width) + 1)
    weight = shrink * _cubic(shrink * (centre[:, None] - index))
    weight /= weight.sum(axis=1, keepdims=True)
    index %= 2 * length  # symmetric border: ... 1 0 | 0 1 ... n-1 | n-1 n-2 ...
    index = np.where(index < length, index, 2 * length - 1 - index)
    used = np.any(weight != 0, axis=0)
    return index[:, used], weight[:, used]


def _plan(shape: tuple[int, int], scale: float | None, size: tuple[int, int] | None) -> list[tuple[int, int, float]]:
    """The two passes (axis, output length, scale), in MATLAB's order: the smaller scale first, rows first if equal."""
    if (scale is None) == (size is None):
        raise ConfigError(f"imresize needs either scale or size, got scale={scale!r} and size={size!r}.")
    if min(shape) < 1:
        raise ConfigError(f"imresize needs an image of at least 1x1 pixel, got height {shape[0]} and width {shape[1]}.")
    if size is not None:
        if len(size) != 2 or min(size) < 1:
            raise ConfigError(f"size is {size!r}, but must be (height, width) with both at least 1.")
        passes = [(axis, int(size[axis]), size[axis] / shape[axis]) for axis in (0, 1)]
    else:
        if not (scale and math.isfinite(scale) and scale > 0):
            raise ConfigError(f"scale is {scale!r}, but must be a positive number.")
        passes = [(axis, math.ceil(scale * shape[axis]), float(scale)) for axis in (0, 1)]
    return sorted(passes, key=lambda item: item[2])


def imresize(image: np.ndarray, scale: float | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Resize one image with MATLAB's bicubic `imresize(image, scale)` or `imresize(image, [height width])`.

    Args:
        image: uint8, uint16 or floating, (H, W) or (H, W, C).
        scale: output size is ceil(scale * H), ceil(scale * W). Give either `scale` or `size`.
        size: output (height, width).

    Returns:
        Same dtype and number of dimensions. uint8 is bit-equal to MATLAB; uint16 is rounded likewise; floats are computed in
        float64 and not clipped (bicubic overshoots). Working memory beyond the result is a few megabytes.

    Raises:
        ConfigError: for another dtype or dimension, or a size that makes no sense.
    """
    if image.ndim not in (2, 3):
        raise ConfigError(f"imresize needs an image of shape (H, W) or (H, W, C), got {image.shape}.")
    if image.dtype not in (np.uint8, np.uint16) and not np.issubdtype(image.dtype, np.floating):
        raise ConfigError(f"imresize needs uint8, uint16 or floating pixels, got {image.dtype}; convert it first.")
    out = image
    for axis, out_length, factor in _plan((image.shape[0], image.shape[1]), scale, size):
        out = _pass(out, axis, *_taps(out.shape[axis], out_length, factor))
    return out.astype(image.dtype, copy=False)


def imresize_rows(
    band: np.ndarray, size: tuple[int, int], *, first: int, height: int, rows: tuple[int, int]
) -> np.ndarray:
    """Rows `rows[0]` to `rows[1]` of `imresize(image, size=size)`, from a band of the image.

    Where the kernel reaches beyond the band, the band's last row repeats; only at the image's own border is that what the
    whole image would give.

    Args:
        band: the rows of the image from `first` on, in a form that `imresize` takes.
        size: (height, width) of the whole result.
        height: of the whole image.

    Returns:
        (rows[1] - rows[0], width) or with channels, of the band's dtype.
    """
    out = band
    for axis, out_length, factor in _plan((height, band.shape[1]), None, size):
        index, weight = _taps(out.shape[1] if axis else height, out_length, factor)
        if axis == 0:
            index, weight = (index[slice(*rows)] - first).clip(0, len(band) - 1), weight[slice(*rows)]
        out = _pass(out, axis, index, weight)
    return out.astype(band.dtype, copy=False)


def _pass(image: np.ndarray, axis: int, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted sums along one axis, block after block of it: floats as float64, integers rounded to their own kind."""
    whole = np.issubdtype(image.dtype, np.integer)
    shape = list(image.shape)
    shape[axis] = len(index)
    out = np.empty(shape, image.dtype if whole else np.float64)
    along = (-1, *(1,) * (image.ndim - 1 - axis))  # broadcast the weights over the axes behind this one
    block = max(1, _BLOCK * len(index) // out.size)
    for first in range(0, len(index), block):
        part = slice(first, first + block)
        total = 0.0
        for tap in range(index.shape[1]):
            total = total + np.take(image, index[part, tap], axis=axis) * weight[part, tap].reshape(along)
        where = (slice(None),) * axis + (part,)
        if whole:
            total = np.floor(np.clip(total, 0, np.iinfo(image.dtype).max) + 0.5)
        out[where] = total
    return out


def imresize_tensor(
    batch: "torch.Tensor", scale: float | None = None, size: tuple[int, int] | None = None
) -> "torch.Tensor":
    """`imresize` for a floating batch (N, C, H, W) on any device; differentiable, same dtype, not clipped."""
    import torch

    if batch.ndim != 4 or not batch.is_floating_point():
        raise ConfigError(
            f"imresize_tensor needs a floating (N, C, H, W) tensor, got {batch.dtype} {tuple(batch.shape)}."
        )
    if scale == SCALE and size is None and batch.numel():
        return _enlarge(batch)
    out = batch
    for axis, out_length, factor in _plan((batch.shape[2], batch.shape[3]), scale, size):
        index, weight = _taps(out.shape[2 + axis], out_length, factor)
        where = torch.from_numpy(index).to(batch.device)
        weights = torch.from_numpy(weight).to(batch.device, batch.dtype)
        along = (-1, 1) if axis == 0 else (-1,)
        total = torch.zeros((), dtype=batch.dtype, device=batch.device)
        for tap in range(index.shape[1]):
            total = total + out.index_select(2 + axis, where[:, tap]) * weights[:, tap].reshape(along)
        out = total
    return out


def _enlarge(batch: "torch.Tensor") -> "torch.Tensor":
    """`imresize_tensor(batch, SCALE)`, bit for bit and faster, in operations that are the same for every size.

    So it can be exported (samdiffsr.export.trace): the taps of other scales are a table whose shape depends on the size.
    """
    import torch

    index, weight = _taps(5, SCALE * 5, SCALE)  # of the SCALE outputs in the middle of five pixels
    kernel = np.zeros((SCALE, 5))
    np.put_along_axis(kernel, index[2 * SCALE : 3 * SCALE], weight[2 * SCALE : 3 * SCALE], axis=1)
    weights = torch.from_numpy(kernel).to(batch.device, batch.dtype)
    out = batch
    for axis in (2, 3):
        size = out.shape[axis]
        place = torch.arange(-2, size + 2, device=batch.device)
        place = torch.maximum(place, -1 - place)  # symmetric border ...
        place = torch.minimum(place, 2 * size - 1 - place)
        wide = out.index_select(axis, torch.maximum(place, -1 - place))  # ... and again, for a side of one pixel
        total = torch.zeros((), dtype=batch.dtype, device=batch.device)
        for tap in range(5):
            along = (-1, *(1,) * (3 - axis))
            total = total + wide.narrow(axis, tap, size).unsqueeze(axis + 1) * weights[:, tap].reshape(along)
        out = total.flatten(axis, axis + 1)
    return out
