"""Structural position encoding: region masks -> structure map E (SAM-DiffSR, Section 3.3, Eq. 10)."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from samdiffsr.errors import MaskError, choose

Encoding = Literal["rope", "cosine", "sincos", "linear"]
MeanOver = Literal["region", "image"]
Overlap = Literal["sum", "last"]


def _turns(height: int, width: int) -> NDArray[np.complex128]:
    """exp(i theta[y, j]), theta[y, j] = y / 10000^(2 j / W), of the column pairs j = 0 .. ceil(W / 2) - 1, complex128.

    Rows are positions, columns feature dimensions (RoFormer); columns 2 j and 2 j + 1 share theta. Columns lie together in
    memory, as the pixels of a region do. Rows are 128 q + r: the product of two short tables is seven times faster than a
    cosine and a sine for every entry, and differs by 4e-13.
    """
    rate = 10000.0 ** (-2 * np.arange((width + 1) // 2) / width)[:, None]
    coarse, fine = np.exp(1j * rate * np.arange(0, height, 128)), np.exp(1j * rate * np.arange(128))
    return (coarse[:, :, None] * fine[:, None, :]).reshape(len(rate), -1)[:, :height].T


def _interleave(even: np.ndarray, odd: np.ndarray, width: int) -> np.ndarray:
    """(H, W) with `even` in the even columns and `odd` in the odd ones; an odd W has one `odd` column less."""
    out = np.empty((even.shape[0], width), order="F")
    out[:, 0::2] = even
    out[:, 1::2] = odd[:, : width // 2]
    return out


def _rope(height: int, width: int) -> np.ndarray:
    """Rotary embedding of an all-ones image; an odd width leaves the last column the first half of a pair."""
    turns = _turns(height, width)
    return _interleave(turns.real - turns.imag, turns.real + turns.imag, width)


def _sincos(height: int, width: int) -> np.ndarray:
    """The sinusoidal embedding of the row: sin in even columns, cos in odd ones (Vaswani et al. 2017)."""
    turns = _turns(height, width)
    return _interleave(turns.imag, turns.real, width)


def _cosine(height: int, width: int) -> np.ndarray:
    """A grid of cosines of the same angles."""
    cos = _turns(height, width).real
    return _interleave(cos, cos, width)


def _linear(height: int, width: int) -> np.ndarray:
    """A ramp from 0 (first pixel) to 1 (last pixel) in reading order."""
    return np.linspace(0.0, 1.0, height * width).reshape(height, width)


ENCODINGS = {"rope": _rope, "cosine": _cosine, "sincos": _sincos, "linear": _linear}


def position_window(encoding: str, size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    """A window of the position embedding P of a whole image: the structure map before it is averaged over regions.

    Args:
        encoding: see `structure_map`.
        size: height and width of the whole image.
        rows, columns: the window; both ends are given, and it may reach beyond the image at the bottom and the right.

    Returns:
        float32 (rows, columns); whatever the window, the same values at the same place.
    """
    y, x = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
    if choose(encoding, ENCODINGS, "encoding") is _linear:
        return ((y[:, None] * size[1] + x) / max(1, size[0] * size[1] - 1)).astype(np.float32)
    pairs, of_column = np.unique(x // 2, return_inverse=True)
    turns = np.exp(1j * y[:, None] * 10000.0 ** (-2 * pairs / size[1]))[:, of_column]
    even = x % 2 == 0
    parts = {
        _rope: lambda: np.where(even, turns.real - turns.imag, turns.real + turns.imag),
        _sincos: lambda: np.where(even, turns.imag, turns.real),
        _cosine: lambda: turns.real,
    }
    return parts[ENCODINGS[encoding]]().astype(np.float32)


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
    regions, shape = (np.flatnonzero(mask.T) for mask in masks), masks.shape[1:]
    return structure_of_regions(regions, shape, encoding=encoding, mean_over=mean_over, overlap=overlap)


def structure_of_regions(
    regions: Iterable[np.ndarray],
    shape: tuple[int, int],
    *,
    encoding: Encoding = "rope",
    mean_over: MeanOver = "region",
    overlap: Overlap = "sum",
) -> np.ndarray:
    """`structure_map` for regions that come one at a time as their pixels, counted down the columns (y + H x), each once.

    Costs the areas of the regions instead of K H W, in time and memory.
    """
    whole = choose(mean_over, {"region": None, "image": shape[0] * shape[1]}, "mean_over")
    add = choose(overlap, {"sum": True, "last": False}, "overlap")
    position = choose(encoding, ENCODINGS, "encoding")(*shape).ravel(order="F")
    out = np.zeros(shape[0] * shape[1])
    for region in regions:
        if region.size:
            value = position[region].sum() / (whole or region.size)
            out[region] = out[region] + value if add else value
    return np.ascontiguousarray(out.reshape(shape, order="F"), dtype=np.float32)


# From dark to light: night blue, violet, rose, orange, straw.
_COLOURS = np.array([[24, 28, 72], [92, 48, 132], [196, 72, 116], [244, 146, 84], [250, 232, 160]], np.float64)
_NO_REGION = (128, 128, 128)
_LEVELS = 256  # that a structure map is rounded to before it is drawn
_EDGE, _SHADE = 2, 0.6  # a line, darker by this factor, where neighbours differ by more levels than this


def draw_structure(structure: np.ndarray) -> np.ndarray:
    """A structure map (H, W) as a picture uint8 (H, W, 3).

    The values that occur are spread evenly over a scale from night blue (lowest) to straw (highest): regions whose values lie
    close together can be told apart. Grey is 0, no region; a darker line runs where regions meet.
    """
    structure = np.asarray(structure, np.float64)
    least, most = structure.min(initial=0.0), structure.max(initial=0.0)
    levels = ((structure - least) / ((most - least) or 1.0) * (_LEVELS - 1)).round().astype(np.int64)
    occurs = np.bincount(levels[structure != 0], minlength=_LEVELS) > 0
    ranks = np.maximum(np.cumsum(occurs) - 1, 0)
    places = ranks[levels] / max(1, ranks[-1]) * (len(_COLOURS) - 1)
    channels = [np.interp(places, np.arange(len(_COLOURS)), colours) for colours in _COLOURS.T]
    drawn = np.stack(channels, axis=-1)
    drawn[structure == 0] = _NO_REGION
    edge = np.zeros(structure.shape, bool)
    edge[:, :-1] |= np.abs(np.diff(levels, axis=1)) > _EDGE
    edge[:-1] |= np.abs(np.diff(levels, axis=0)) > _EDGE
    drawn[edge] *= _SHADE
    return drawn.round().astype(np.uint8)
