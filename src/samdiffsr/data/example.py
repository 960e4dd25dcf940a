"""One photograph and its regions -> hr, lr, structure and further targets: the same pixels, checked and aligned."""

import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from samdiffsr.data import MAX_SHIFT
from samdiffsr.data.pairs import check_pair
from samdiffsr.data.shards import MEMBERS, Example
from samdiffsr.errors import ConfigError, ImageError, MaskError, choose
from samdiffsr.images import MAX_PIXELS, read_image
from samdiffsr.masks.records import read_records
from samdiffsr.masks.rle import region_pixels
from samdiffsr.resize import SCALE, imresize
from samdiffsr.structure import Encoding, MeanOver, Normalise, Overlap, structure_map, structure_of_regions

Regions = Literal["masks", "structure", "none"]
MissingMasks = Literal["error", "zero"]
LARGEST = float(np.finfo(MEMBERS["structure"]).max)  # beyond it a shard would hold infinity


@dataclass(frozen=True)
class PrepareOptions:
    """How photographs become examples.

    Attributes:
        encoding, mean_over, overlap, normalise: as `structure_map` has them; of no use for ready structure maps.
        missing_masks: "zero" gives a photograph without mask file, or whose mask file holds no region, a structure map
            of zeros and counts it; "error" refuses it. A file that cannot be read is refused either way.
        resize_masks: bring masks and maps of another size to the photograph's by nearest neighbour, instead of refusing.
        max_pixels: larger photographs are refused before they are decoded.
        max_shift: between a photograph and its own LR image, in LR pixels; infinity accepts any.

    Raises:
        ConfigError: an unknown choice, or a shift below 0.
    """

    encoding: Encoding = "rope"
    mean_over: MeanOver = "region"
    overlap: Overlap = "sum"
    normalise: Normalise = "none"
    missing_masks: MissingMasks = "error"
    resize_masks: bool = False
    max_pixels: int = MAX_PIXELS
    max_shift: float = MAX_SHIFT

    def __post_init__(self) -> None:
        if not self.max_shift >= 0:
            raise ConfigError(f"max_shift is {self.max_shift}, but must be at least 0.")
        choose(self.missing_masks, {"error": False, "zero": True}, "missing_masks")
        structure_map(np.zeros((0, 1, 1), bool), **self.structure)  # refuses an unknown choice before anything is read

    @property
    def structure(self) -> dict:
        """The keyword arguments of `structure_map`; "normalise" only if it does something."""
        found = {"encoding": self.encoding, "mean_over": self.mean_over, "overlap": self.overlap}
        return found if self.normalise == "none" else found | {"normalise": self.normalise}


@dataclass(frozen=True)
class Sources:
    """The files of one example.

    Attributes:
        photo: any picture `read_image` reads. 16 bits are rounded to 8; transparency is refused.
        regions: "<stem>.json" with region masks or "<stem>.npy" with a ready map; None where nobody gave any.
        targets: name -> picture of the cropped photograph's size, from which the encoder may learn.
        lr: the user's own LR image; None: it is made from the photograph.
    """

    photo: Path
    regions: Path | None = None
    targets: Mapping[str, Path] = field(default_factory=dict)
    lr: Path | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """The arrays of one image, and what was unusual: no region at all, regions of another size, an LR image that could not
    be compared with its photograph."""

    example: Example
    without_masks: bool
    resized: bool
    unchecked: bool = False


def prepare_example(sources: Sources, kind: Regions, options: PrepareOptions) -> Prepared:
    """Read one photograph and what belongs to it.

    The structure map is computed on the whole photograph; then both are cropped to a multiple of 4 at the right and
    bottom. The LR image is the exact MATLAB bicubic x1/4 of the cropped one, or the user's own.

    Args:
        kind: of the regions file.

    Raises:
        ImageError, MaskError: naming the file and what is wrong with it.
    """
    hr = training_pixels(sources.photo, options.max_pixels)
    shape = (hr.shape[0], hr.shape[1])
    structure, resized = _structure(sources.regions, kind, shape, options)
    if structure is None and options.missing_masks == "error":
        problem = "holds no region" if sources.regions and sources.regions.exists() else "is missing"
        raise MaskError(
            f"mask file {sources.regions} {problem}: make it again, or accept that with --missing-masks zero."
        )
    height, width = shape[0] // SCALE * SCALE, shape[1] // SCALE * SCALE
    lr, unchecked = None, False
    if sources.lr is not None:
        lr = training_pixels(sources.lr, options.max_pixels, least=1)
        unchecked = not check_pair(sources.photo, hr, sources.lr, lr, options.max_shift)
    hr = np.ascontiguousarray(hr[:height, :width])
    out = np.zeros((height, width), MEMBERS["structure"])
    if structure is not None:
        out[...] = structure[:height, :width]
    further = (
        _target(file, sources.photo, (height, width), options.max_pixels) for _, file in sorted(sources.targets.items())
    )
    lr = imresize(hr, 1 / SCALE) if lr is None else np.ascontiguousarray(lr)
    return Prepared((hr, lr, out, *further), structure is None, resized, unchecked)


def _target(file: Path, photo: Path, shape: tuple[int, int], max_pixels: int) -> np.ndarray:
    if not file.exists():
        raise ImageError(f"target picture {file} is missing: make it, or leave photograph {photo} out.")
    pixels = training_pixels(file, max_pixels)
    if pixels.shape[:2] != shape:
        raise ImageError(
            f"target picture {file} is {pixels.shape[1]}x{pixels.shape[0]} pixels, but must be {shape[1]}x{shape[0]}: "
            f"those of photograph {photo}, cut to multiples of {SCALE}."
        )
    return pixels


def training_pixels(photo: Path, max_pixels: int, *, least: int = SCALE) -> np.ndarray:
    """uint8 (H, W, 3) of a photograph with at least `least` pixels a side, none of them transparent."""
    picture = read_image(photo, max_pixels=max_pixels)
    rgb, alpha = picture.rgb, picture.alpha
    if alpha is not None and alpha.min() < np.iinfo(alpha.dtype).max:
        raise ImageError(f"photograph {photo} has transparent pixels, whose colour is not defined; flatten it first.")
    if min(rgb.shape[:2]) < least:
        size = f"{rgb.shape[1]}x{rgb.shape[0]}"
        raise ImageError(f"photograph {photo} is {size} pixels, but needs at least {least}x{least}.")
    return rgb if rgb.dtype == np.uint8 else np.floor(rgb / 257.0 + 0.5).astype(np.uint8)


def _structure(
    regions: Path | None, kind: Regions, shape: tuple[int, int], options: PrepareOptions
) -> tuple[np.ndarray | None, bool]:
    """The structure map (`shape`), None where there is no region or no file, and whether it had another size."""
    read = choose(kind, {"masks": _encoded_masks, "structure": _ready_map, "none": None}, "kind")
    return (None, False) if read is None or regions is None or not regions.exists() else read(regions, shape, options)


def _encoded_masks(regions: Path, shape: tuple[int, int], options: PrepareOptions) -> tuple[np.ndarray | None, bool]:
    records = read_records(regions, None if options.resize_masks else shape)
    resized = any(record["segmentation"]["size"] != list(shape) for record in records)

    def pixels() -> Iterator[np.ndarray]:
        for record in records:
            height, width = record["segmentation"]["size"]
            found = region_pixels(record["segmentation"]["counts"], (height, width))
            yield found if (height, width) == shape else _resized_region(found, (height, width), shape)

    return structure_of_regions(pixels(), shape, **options.structure) if records else None, resized


def _resized_region(region: np.ndarray, size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """A region's pixels (y + H x) in an image of `shape` instead of `size`, by nearest neighbour."""
    mask = np.zeros(size[0] * size[1], bool)
    mask[region] = True
    mask = mask.reshape(size, order="F")
    return np.flatnonzero(mask[_nearest(shape[0], size[0])[:, None], _nearest(shape[1], size[1])].T)


def _ready_map(regions: Path, shape: tuple[int, int], options: PrepareOptions) -> tuple[np.ndarray | None, bool]:
    """A map as the released code stores it: float (H, W), or a pickled None, which is never unpickled."""
    try:
        with open(regions, "rb") as file:
            if _holds_object(file):
                return None, False
            file.seek(0)
            found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = str(error).partition("\n")[0]  # NumPy adds advice for programmers
        raise MaskError(f"structure map {regions} cannot be read ({why}); make it again.") from None
    except (tokenize.TokenError, SyntaxError, TypeError, OverflowError, RecursionError):  # of NumPy's header parser
        raise MaskError(f"structure map {regions} cannot be read (its header is damaged); make it again.") from None
    except MemoryError:
        raise MaskError(f"structure map {regions} claims to be larger than memory; make it again.") from None
    if found.ndim != 2 or found.dtype.kind != "f" or not found.size or not np.abs(found).max() <= LARGEST:  # or NaN
        content = f"{found.dtype} {found.shape}"
        raise MaskError(
            f"structure map {regions} holds {content}, but must hold floats of shape (H, W) within {LARGEST:.0f}."
        )
    if found.shape == shape:
        return found, False
    if not options.resize_masks:
        size, wanted = f"{found.shape[1]}x{found.shape[0]}", f"{shape[1]}x{shape[0]}"
        raise MaskError(
            f"structure map {regions} is {size} pixels, its image {wanted}; --resize-masks brings it to size."
        )
    return found[_nearest(shape[0], found.shape[0])[:, None], _nearest(shape[1], found.shape[1])], True


def _holds_object(file: BinaryIO) -> bool:
    """Whether an open .npy holds one Python object instead of numbers."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return dtype.hasobject and shape == ()


def _nearest(length: int, source: int) -> np.ndarray:
    """The index among `source` pixels whose centre lies nearest to the centre of each of `length` pixels."""
    return (2 * np.arange(length) + 1) * source // (2 * length)
