"""Where sampling has the structure map E^ from: the model's head, a segmenter without weights, or the caller."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from samdiffsr.errors import ConfigError, ImageError, choose
from samdiffsr.resize import SCALE
from samdiffsr.sampling.tiled import TiledModel
from samdiffsr.sampling.tiles import Canvas
from samdiffsr.structure import structure_of_regions

Structure = Literal["auto", "model", "felzenszwalb", "none"] | np.ndarray


def check_structure(structure: Any, denoiser: Any, images: list[np.ndarray], *, needed: bool) -> Sequence[Structure]:
    """The choice of `structure=` for each image.

    Args:
        structure: a name, a map (4h, 4w) for one image, or a list of maps.
        denoiser: can estimate the map if it has a head.
        images: LR images (h, w, 3).
        needed: whether "none" is refused.

    Raises:
        ConfigError: an unknown name, or a model without the head that was asked for.
        ImageError: a map of another shape, or one that is not finite.
    """
    if isinstance(structure, str):
        has_head = denoiser.structure_head is not None
        choose(structure, dict.fromkeys(("auto", "model", "felzenszwalb", "none")), "structure")
        name = structure if structure != "auto" else "model" if has_head else "none"
        if name == "model" and not has_head:
            raise ConfigError(
                "structure is 'model', but this model has no structure head; choose 'felzenszwalb' or 'none', or give a map."
            )
        if name == "none" and needed:
            raise ConfigError("there is no structure map to return; choose structure 'felzenszwalb', or give a map.")
        return [name for _ in images]  # pyright: ignore[reportReturnType] - it was chosen among them
    maps = list(structure) if isinstance(structure, (list, tuple)) else [structure]
    if len(maps) != len(images):
        raise ConfigError(f"structure has {len(maps)} maps, but there are {len(images)} images.")
    sizes = [(SCALE * image.shape[0], SCALE * image.shape[1]) for image in images]
    return [_checked(np.asarray(one), size) for one, size in zip(maps, sizes, strict=True)]


def estimate_structure(model: TiledModel, structures: Sequence[Structure], options: dict[str, str]) -> Canvas | None:
    """Encode the images, and estimate their structure maps, with `options` of `structure_map`; None for E^ = 0.

    `structures` are maps, or one name as often as there are images.
    """
    structure = structures[0]
    if not isinstance(structure, str):
        model.encode()
        return model.spread(structures)  # pyright: ignore[reportArgumentType] - all are maps, see `check_structure`
    found = model.encode(with_structure=structure == "model")
    if structure != "felzenszwalb":
        return found
    return model.spread([segmented(one, **options) for one in model.assemble(None, "uint8")])


def segmented(image: np.ndarray, **options: str) -> np.ndarray:
    """The structure map float32 (H, W), with `options` of `structure_map`, of the regions of similar colour in a uint8 image
    (H, W, 3)."""
    from samdiffsr.masks.felzenszwalb import FelzenszwalbSegmenter
    from samdiffsr.masks.rle import region_pixels

    shape = (image.shape[0], image.shape[1])
    regions = (region_pixels(region.counts, shape) for region in FelzenszwalbSegmenter()(image))
    return structure_of_regions(regions, shape, **options)  # pyright: ignore[reportArgumentType]


def _checked(structure: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if structure.shape != size or structure.dtype.kind != "f":
        got = f"{structure.dtype} of shape {structure.shape}"
        raise ImageError(f"a structure map must be floating of shape {size}, four times the image, got {got}.")
    if not np.isfinite(structure).all():
        raise ImageError("a structure map must be finite, got NaN or infinity.")
    return structure
