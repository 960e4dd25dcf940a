"""Structural position encoding: region masks -> structure map E (SAM-DiffSR, Section 3.3, Eq. 10)."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from samdiffsr.errors import MaskError, choose

Encoding = Literal["rope", "cosine", "sincos", "linear"]
MeanOver = Literal["region", "image"]
Overlap = Literal["sum", "last"]
Normalise = Literal["none", "unit", "signed"]


def _turns(height: int, width: int) -> NDArray[np.complex128]:
    """exp(i theta[y, j]), theta[y, j] = y / 10000^(2 j / W), of the column pairs j = 0 .. ceil(W / 2) - 1, complex128.

    Rows are positions, columns feature dimensions (RoFormer); columns 2 j and 2 j + 1 share theta. Columns lie together in
    memory, as the pixels of a region do. Rows are 128 q + r: the product of two short tables is seven times faster than a
    cosine and a sine for every entry, and differs by 4e-13.
    """
    rate = 10000.0 ** (-2 * np.arange((width + 1) // 2) / width)[:, None]
    coarse, fine = np.exp(1j * rate * np.arange(0, height, 128)), np.exp(1j * rate * np.arange(128))
    return (coarse[:, :, None] * fine[:, None, :]).reshape(len(rate), -1)[:, :height].T


Window = Callable[[np.ndarray, np.ndarray, tuple[int, int]], np.ndarray]


def _rope(y: np.ndarray, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Rotary embedding of an all-ones image; an odd width leaves the last column the first half of a pair."""
    pairs, of_column = np.unique(x // 2, return_inverse=True)
    turns: NDArray[np.complex128] = np.exp(1j * y[:, None] * 10000.0 ** (-2 * pairs / size[1]))[:, of_column]
    return np.where(x % 2 == 0, turns.real - turns.imag, turns.real + turns.imag)


def _cosine(y: np.ndarray, x: np.ndarray, _: tuple[int, int]) -> np.ndarray:
    """The vector of ones to which a region is compared: it knows no place."""
    return np.ones((len(y), len(x)))


def _sincos(y: np.ndarray, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """cos(sin(a_y)) sin(a_x) of the angles a_i = 0.001^(-2 i / n) of row or column i of n.

    The released code has it for square images; here each axis has its own n.
    """
    rows, columns = (np.sin(0.001 ** (-2 * place / length)) for place, length in ((y, size[0]), (x, size[1])))
    return np.cos(rows)[:, None] * columns


def _linear(y: np.ndarray, x: np.ndarray, _: tuple[int, int]) -> np.ndarray:
    """The product of two random vectors, uniform in [0, 1), for rows and columns.

    Always the same ones, while the released code draws others for each image: sampling must find the map of the training.
    """
    rows, columns = (
        np.random.default_rng(axis).random(int(place.max(initial=-1)) + 1)[place] for axis, place in enumerate((y, x))
    )
    return rows[:, None] * columns


ENCODINGS: dict[str, Window] = {"rope": _rope, "cosine": _cosine, "sincos": _sincos, "linear": _linear}
"""The position embedding P of an image of a size (H, W), in rows y and columns x: float64 (len(y), len(x))."""


def position_map(encoding: str, height: int, width: int) -> np.ndarray:
    """P of a whole image, float64 (H, W), its columns together in memory."""
    if choose(encoding, ENCODINGS, "encoding") is not _rope:
        return np.asfortranarray(ENCODINGS[encoding](np.arange(height), np.arange(width), (height, width)))
    turns = _turns(height, width)  # the same, faster
    out = np.empty((height, width), order="F")
    out[:, 0::2] = turns.real - turns.imag
    out[:, 1::2] = (turns.real + turns.imag)[:, : width // 2]
    return out


def position_window(encoding: str, size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    """A window of the position embedding P of a whole image: the structure map before it is averaged over regions.

    Args:
        encoding: see `structure_map`.
        size: height and width of the whole image.
        rows, columns: the window; both ends are given, and it may reach beyond the image at the bottom and the right.

    Returns:
        float32 (rows, columns); whatever the window, the same values at the same place. Ones for "cosine".
    """
    y, x = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
    return choose(encoding, ENCODINGS, "encoding")(y, x, size).astype(np.float32)


RANGES: dict[str, tuple[float, float] | None] = {"none": None, "unit": (0.0, 1.0), "signed": (-1.0, 1.0)}
"""Of `normalise`: the ends of the values."""


OF_SAMPLING = ("encoding", "mean_over", "normalise")
"""The arguments of `structure_map` that a model is saved with, for the maps that are made in sampling (of disjoint regions)."""


def structure_map(
    masks: np.ndarray,
    *,
    encoding: Encoding = "rope",
    mean_over: MeanOver = "region",
    overlap: Overlap = "sum",
    normalise: Normalise = "none",
) -> np.ndarray:
    """Encode K region masks of one image into its structure map, E = sum_i M_i mean(P over M_i) (Eq. 10).

    Args:
        masks: bool (K, H, W); K may be 0 and masks may be empty, H and W may be odd.
        encoding: the position embedding P (H, W). "rope" is the paper's; "sincos" and "linear" are those of its ablation, as
            the released code has them. "cosine", of the ablation too, has no P: the value of a region is the cosine similarity
            of its mask with ones, the root of its share of the image, whatever `mean_over` says.
        mean_over: "region" averages P over the mask's own area (paper), "image" over all H * W pixels (released code).
        overlap: "sum" adds where masks overlap (paper), "last" lets later masks overwrite (released code).
        normalise: "unit" brings the values of the map to [0, 1], "signed" to [-1, 1]: the least to the lower end, the greatest
            to the upper one. A map of one value becomes 0. (The released code's options of that kind subtract the mean and
            divide by the standard deviation.)

    Returns:
        float32 (H, W). Not normalised: 0 where no mask is; within +-sqrt(2) for each mask covering the pixel.

    Raises:
        MaskError: `masks` is not bool or not three-dimensional.
        ConfigError: an unknown option.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype != bool:
        raise MaskError(f"masks must be bool of shape (K, H, W), got {masks.dtype} of shape {masks.shape}.")
    regions, shape = (np.flatnonzero(mask.T) for mask in masks), masks.shape[1:]
    return structure_of_regions(
        regions, shape, encoding=encoding, mean_over=mean_over, overlap=overlap, normalise=normalise
    )


def structure_of_regions(
    regions: Iterable[np.ndarray],
    shape: tuple[int, int],
    *,
    encoding: Encoding = "rope",
    mean_over: MeanOver = "region",
    overlap: Overlap = "sum",
    normalise: Normalise = "none",
) -> np.ndarray:
    """`structure_map` for regions that come one at a time as their pixels, counted down the columns (y + H x), each once.

    Costs the areas of the regions instead of K H W, in time and memory.
    """
    whole = choose(mean_over, {"region": None, "image": shape[0] * shape[1]}, "mean_over")
    add = choose(overlap, {"sum": True, "last": False}, "overlap")
    ends = choose(normalise, RANGES, "normalise")
    position = position_map(encoding, *shape).ravel(order="F")
    out = np.zeros(shape[0] * shape[1])
    for region in regions:
        if region.size:
            by_area = encoding == "cosine"
            value = math.sqrt(region.size / out.size) if by_area else position[region].sum() / (whole or region.size)
            out[region] = out[region] + value if add else value
    if ends is not None:
        least, most = out.min(initial=math.inf), out.max(initial=-math.inf)
        out = ends[0] + (ends[1] - ends[0]) / (most - least) * (out - least) if least < most else np.zeros_like(out)
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
