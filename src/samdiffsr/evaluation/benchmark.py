"""Run every method on every image and score the results.

    pairs, methods = find_pairs(hr, lr), [baseline("bicubic"), model("default", "cpu")]
    result = run(pairs, methods, seeds=[0, 1], judges=perceptual(["squeeze"], folder, images=len(pairs)))

Images come one after the other, so memory does not grow with their number (but for FID, by 2048 numbers each).
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch

from samdiffsr.errors import ConfigError, ImageError, choose
from samdiffsr.evaluation.downloads import PUBLISHED, sha256
from samdiffsr.evaluation.fid import FEATURES, InceptionFeatures, frechet_distance
from samdiffsr.evaluation.fid import WEIGHTS as INCEPTION
from samdiffsr.evaluation.lpips import LPIPS, TRUNKS
from samdiffsr.evaluation.methods import Method
from samdiffsr.evaluation.metrics import (
    BORDER,
    LEAST,
    SQUEEZE,
    SqueezeDistance,
    lr_psnr,
    psnr_rgb,
    psnr_y,
    ssim_rgb,
    ssim_y,
)
from samdiffsr.evaluation.pairs import Images, Pair, check_sizes, read_pair
from samdiffsr.resize import SCALE

FID_LEAST = 100
"""Fewer images than this and FID is refused: it would measure the sampling of 2048 means, not the method."""
ORIGINALS = ("HR", "LR")
"""What pictures show besides the methods; LR with its pixels repeated."""
Distance = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Perceptual:
    """The networks that judge, loaded.

    Attributes:
        distances: by metric name, (sr, hr) -> value.
        inception: for FID; None leaves it out.
        weights: SHA-256 of each file used.
        least: pixels a side of HR that they and SSIM need.
    """

    distances: dict[str, Distance] = field(default_factory=dict)
    inception: InceptionFeatures | None = None
    weights: dict[str, str] = field(default_factory=dict)
    least: int = LEAST


@dataclass(frozen=True)
class Score:
    """One result measured. `seed` is None for what does not depend on it; `peak_bytes` where it cannot be known."""

    method: str
    image: str
    seed: int | None
    values: dict[str, float]
    seconds: float | None
    peak_bytes: int | None
    megapixels: float


@dataclass
class Result:
    """Everything measured, in the order of the images, then of the methods, then of the seeds.

    Attributes:
        fid: by method and seed.
        pictures: image -> method -> uint8 (H, W, 3), with `ORIGINALS` first; of the first images only.
        images_sha256: over names and pixels of all pairs as compared.
    """

    scores: list[Score] = field(default_factory=list)
    fid: dict[tuple[str, int | None], float] = field(default_factory=dict)
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    images_sha256: str = ""


def perceptual(names: Sequence[str], folder: Path, *, images: int) -> Perceptual:
    """Load the judges of these metric names; weights lie in `folder` or are downloaded into it (squeeze: in the package).

    Args:
        images: how many they will judge.

    Raises:
        ConfigError: an unknown name, or FID of fewer than `FID_LEAST` images.
        CheckpointError: weights that are missing, cannot be downloaded or are not the published ones.
    """
    distances: dict[str, Distance] = {}
    digests: dict[str, str] = {}
    inception, least = None, [LEAST]

    def lpips(trunk: str) -> None:
        least.append(TRUNKS[trunk].least)
        distances[f"lpips-{trunk}"] = LPIPS(trunk, folder)
        digests.update({name: PUBLISHED[name].sha256 for name in (TRUNKS[trunk].weights, TRUNKS[trunk].heads)})

    def squeeze() -> None:
        least.append(SqueezeDistance.LEAST)
        distances["squeeze"] = SqueezeDistance()
        digests[SQUEEZE.name] = sha256(SQUEEZE)

    def fid() -> None:
        nonlocal inception
        if images < FID_LEAST:
            raise ConfigError(f"FID of {images} images says nothing; it is computed from {FID_LEAST} images on.")
        inception = InceptionFeatures(folder)
        digests[INCEPTION] = PUBLISHED[INCEPTION].sha256

    loaders = {
        "lpips-alex": lambda: lpips("alex"),
        "lpips-vgg": lambda: lpips("vgg"),
        "squeeze": squeeze,
        "fid": fid,
    }
    for load in [choose(name, loaders, "perceptual metric") for name in dict.fromkeys(names)]:
        load()
    return Perceptual(distances, inception, digests, max(least))


def run(
    pairs: Sequence[Pair],
    methods: Sequence[Method],
    *,
    seeds: Sequence[int] = (0,),
    judges: Perceptual | None = None,
    pictures: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Score every method on every pair; sampled methods once for each seed.

    Args:
        judges: the networks of `perceptual`; None scores pixels only.
        pictures: keep the results (of the first seed) of so many images, in order of names.
        progress: called with the number of results done and to do.

    Raises:
        ConfigError: nothing to compare, two methods with one label, or repeated seeds.
        ImageError: an image that cannot be read, is too small for a metric or of the wrong size; it names the image.
    """
    judges = judges or Perceptual()
    _check(methods, seeds)
    check_sizes(pairs, judges.least)
    result, digest = Result(), hashlib.sha256()
    features: dict[tuple[str, int | None], list[np.ndarray]] = {}
    runs = [(method, seed) for method in methods for seed in (seeds if method.sampled else [None])]
    for number, pair in enumerate(pairs):
        images = read_pair(pair)
        result.notes += images.notes
        name = images.name.encode(errors="surrogateescape")
        for part in (name, repr(images.hr.shape).encode(), images.hr.tobytes(), images.lr.tobytes()):
            digest.update(part)
        if judges.inception:
            features.setdefault(("HR", None), []).append(judges.inception(images.hr))
        shown = result.pictures.setdefault(images.name, _originals(images)) if number < pictures else {}
        for place, (method, seed) in enumerate(runs):
            sr, told, seconds, peak = _measured(method, images, seed)
            result.notes += told
            values = _values(sr, images, judges)
            megapixels = sr.shape[0] * sr.shape[1] / 1e6
            result.scores.append(Score(method.label, images.name, seed, values, seconds, peak, megapixels))
            shown.setdefault(method.label, sr)
            if judges.inception:
                features.setdefault((method.label, seed), []).append(judges.inception(sr))
            if progress:
                progress(number * len(runs) + place + 1, len(pairs) * len(runs))
    if judges.inception:
        truth = np.stack(features.pop(("HR", None)))
        result.fid = {key: frechet_distance(np.stack(rows), truth) for key, rows in features.items()}
    result.images_sha256 = digest.hexdigest()
    result.notes += _warnings(result, len(pairs))
    return result


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over seeds and the sample's standard deviation, which one value or an infinite one has not."""
    mean = fmean(values)
    return mean, stdev(values) if len(values) > 1 and np.isfinite(mean) else None


def _originals(images: Images) -> dict[str, np.ndarray]:
    shown = (images.hr, images.lr.repeat(SCALE, axis=0).repeat(SCALE, axis=1))
    return dict(zip(ORIGINALS, shown, strict=True))


def _check(methods: Sequence[Method], seeds: Sequence[int]) -> None:
    labels = [method.label for method in methods]
    if not labels:
        raise ConfigError("There is nothing to compare; give a model, a baseline or outputs.")
    if twice := sorted({label for label in labels if labels.count(label) > 1 or label in ORIGINALS}):
        raise ConfigError(f"The name {twice[0]!r} is given twice or stands for the originals; every row needs its own.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds are {list(seeds)}, but must be different whole numbers, at least one.")


def _measured(
    method: Method, images: Images, seed: int | None
) -> tuple[np.ndarray, list[str], float | None, int | None]:
    """The result, notes on it, the seconds it took, and the peak memory meanwhile."""
    memory = Memory(method.device)
    start = time.perf_counter()
    sr, notes = method.run(images, 0 if seed is None else seed)
    seconds = time.perf_counter() - start
    return (sr, notes, seconds, memory.peak()) if method.timed else (sr, notes, None, None)


def _values(sr: np.ndarray, images: Images, judges: Perceptual) -> dict[str, float]:
    hr, lr = images.hr, images.lr
    try:
        return {
            "psnr-y": psnr_y(sr, hr),
            "ssim-y": ssim_y(sr, hr),
            "psnr-rgb": psnr_rgb(sr, hr),
            "ssim-rgb": ssim_rgb(sr, hr),
            "lr-psnr": lr_psnr(sr, lr),
            **{name: distance(sr, hr) for name, distance in judges.distances.items()},
        }
    except ImageError as error:
        raise ImageError(f"'{images.name}': {error}") from None


def _warnings(result: Result, count: int) -> list[str]:
    """What a reader must know before believing a figure."""
    notes = []
    for name, label, what in (
        ("psnr-rgb", "PSNR", f"equal their HR image inside the border of {BORDER}"),
        ("lr-psnr", "LR-PSNR", "equal their LR image when shrunk"),
    ):
        if equal := [score for score in result.scores if np.isinf(score.values[name])]:
            which = ", ".join(sorted({score.method for score in equal}))
            notes.append(f"{len(equal)} results {what} (of {which}): their {label} and so its mean are infinite")
    if result.fid and count < FEATURES:
        notes.append(
            f"FID of {count} images is far above that of many, for it estimates {FEATURES} dimensions: compare it within this "
            "table only"
        )
    return notes


class Memory:
    """Peak memory since it was made, in bytes: of the device if that is a GPU, else of this whole process.

    The process's counts everything loaded: Python, libraries, all models. It is known on Linux only.
    """

    def __init__(self, device: str) -> None:
        self.cuda = torch.device(device) if device.startswith("cuda") else None
        if self.cuda is not None:
            torch.cuda.reset_peak_memory_stats(self.cuda)
        self.reset = self.cuda is None and _reset_peak()

    def peak(self) -> int | None:
        if self.cuda is not None:
            return torch.cuda.max_memory_allocated(self.cuda)
        if not self.reset:
            return None
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _reset_peak() -> bool:
    """Begin a new peak of resident memory (proc(5)); False where that does not exist."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
