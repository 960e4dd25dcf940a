"""The held-out photographs with their maps, and the scores of one result."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_dilation

from samdiffsr import imresize
from samdiffsr.data.example import training_pixels
from samdiffsr.errors import ConfigError
from samdiffsr.evaluation.metrics import SqueezeDistance, lr_psnr, luma, psnr_y
from samdiffsr.images import MAX_PIXELS, is_picture_name
from samdiffsr.masks.records import read_records
from samdiffsr.masks.rle import region_pixels
from samdiffsr.resize import SCALE
from samdiffsr.sampling.estimate import segmented
from samdiffsr.structure import OF_SAMPLING, position_window, structure_of_regions
from samdiffsr.training.config import StructureConfig
from samdiffsr.training.objective import borders_map, constant_map

NEAR = 2  # HR pixels: what lies no further from a region's border counts as border


@dataclass(frozen=True)
class Photograph:
    """The central square of a photograph: uint8 hr (S, S, 3) and lr (S / 4, S / 4, 3); float32 `maps` (S, S) by their names in
    `arms.MAPS`, cut out of those of the whole photograph; and which pixels lie at a border of its regions, bool (S, S)."""

    stem: str
    hr: np.ndarray
    lr: np.ndarray
    maps: dict[str, np.ndarray]
    border: np.ndarray


def photographs(
    folder: Path, masks: Path, side: int, trained_on: set[str], structure: StructureConfig
) -> list[Photograph]:
    """Those of a folder, by name, with the maps of a configuration. The map "other" of each is the true one of the next.

    Raises:
        ConfigError: fewer than two, one too small, or one that was trained on.
        SamDiffSRError: a photograph or a mask file that cannot be read.
    """
    files = sorted(file for file in folder.iterdir() if is_picture_name(file.name))
    if len(files) < 2:
        raise ConfigError(f"folder {folder} has {len(files)} photographs, but the study needs two; give more.")
    if seen := sorted(trained_on & {file.stem for file in files}):
        raise ConfigError(
            f"photograph {seen[0]} of {folder} is in the prepared folder too; take it out of one of them."
        )
    found = [_photograph(file, masks / f"{file.stem}.json", side, structure) for file in files]
    for one, following in zip(found, [*found[1:], found[0]], strict=True):
        one.maps["other"] = following.maps["truth"]
    return found


def _photograph(file: Path, mask_file: Path, side: int, structure: StructureConfig) -> Photograph:
    whole = training_pixels(file, MAX_PIXELS)
    shape = (whole.shape[0], whole.shape[1])
    if min(shape) < side:
        raise ConfigError(
            f"photograph {file} is {shape[1]}x{shape[0]} pixels, but must have {side} a side; leave it out."
        )
    top, left = ((length - side) // 2 // SCALE * SCALE for length in shape)
    window = (slice(top, top + side), slice(left, left + side))
    regions = [region_pixels(record["segmentation"]["counts"], shape) for record in read_records(mask_file, shape)]
    truth = structure_of_regions(regions, shape, **structure.model_dump(exclude={"map"}))[window]
    hr = np.ascontiguousarray(whole[window])
    multiple = whole[: shape[0] // SCALE * SCALE, : shape[1] // SCALE * SCALE]
    enlarged = imresize(imresize(multiple, 1 / SCALE), SCALE)
    one = torch.from_numpy(truth)[None, None]
    maps = {
        "truth": truth,
        "borders": borders_map(one)[0, 0].numpy(),
        "position": position_window(structure.encoding, shape, *window),
        "constant": constant_map(one)[0, 0].numpy(),
        "felzenszwalb": segmented(enlarged, **structure.model_dump(include=set(OF_SAMPLING)))[window],
    }
    return Photograph(file.stem, hr, imresize(hr, 1 / SCALE), maps, _border(regions, shape)[window])


def _border(regions: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels no further than `NEAR` from one that has another region to its right or below."""
    labels = np.zeros(shape[0] * shape[1], np.int32)
    for number, region in enumerate(regions, 1):
        labels[region] = number
    labels = labels.reshape(shape, order="F")
    edge = np.zeros(shape, bool)
    edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edge[:-1] |= labels[1:] != labels[:-1]
    return binary_dilation(edge, iterations=NEAR)


METRICS = {
    "psnr_y": "PSNR-Y (dB)",
    "squeeze": "squeeze distance",
    "lr_psnr": "LR-PSNR (dB)",
    "edge_border": "edge error at borders",
    "edge_inside": "edge error inside",
}
"""The scores of one result. Edge error: mean length of the difference of the gradients of Y, in grey levels a pixel, over the
pixels at a border of the regions and over the others; NaN where there are none. Lower is better, but for PSNR."""


def scores(sr: np.ndarray, photograph: Photograph, distance: SqueezeDistance) -> dict[str, float]:
    """`METRICS` of a result uint8 (S, S, 3)."""
    difference = np.hypot(*np.gradient(luma(sr) - luma(photograph.hr)))
    border = photograph.border
    return {
        "psnr_y": psnr_y(sr, photograph.hr),
        "squeeze": distance(sr, photograph.hr),
        "lr_psnr": lr_psnr(sr, photograph.lr),
        "edge_border": _mean(difference[border]),
        "edge_inside": _mean(difference[~border]),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def results(
    pipe, chosen: list[Photograph], name: str, seed: int, *, learned: str = "truth"
) -> Iterator[tuple[Photograph, np.ndarray, float]]:
    """Each photograph with its result under the map `name`, and that map's mean absolute difference from the map `learned`,
    of which the network was told in training (NaN without one).

    The noise depends on the seed and the photograph alone.
    """
    for number, photograph in enumerate(chosen):
        used = _head(pipe, photograph) if name == "head" else photograph.maps.get(name)
        error = float("nan") if used is None else float(np.abs(used - photograph.maps[learned]).mean())
        generator = torch.Generator().manual_seed(1_000_000 * seed + number)
        given = "none" if used is None else used
        sr = pipe(
            photograph.lr,
            generator=generator,
            output_type="uint8",
            structure=given,
            detail=0.0 if name == "base" else None,
        ).images[0]
        yield photograph, sr, error


@torch.inference_mode()
def _head(pipe, photograph: Photograph) -> np.ndarray:
    """The model's estimate. The pipeline's own would take the square for a whole photograph."""
    lr = torch.from_numpy(photograph.lr).permute(2, 0, 1)[None].float() / 127.5 - 1
    features, _ = pipe.encoder.encode(lr)
    return pipe.denoiser.structure(features, torch.from_numpy(photograph.maps["position"])[None, None])[0, 0].numpy()
