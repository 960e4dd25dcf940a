"""Run every method on every image and score the results.

    pairs, methods = find_pairs(hr, lr), [baseline("bicubic"), model("default", "cpu")]
    result = run(pairs, methods, seeds=[0, 1], metrics=load_metrics(["squeeze"], folder))

Images come one after the other, so memory does not grow with their number; only FID keeps 2048 numbers of each.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch

from samdiffsr.errors import ConfigError, ImageError, Range, choose
from samdiffsr.evaluation.dists import DISTS, HEADS
from samdiffsr.evaluation.downloads import PUBLISHED, sha256
from samdiffsr.evaluation.fid import FEATURES, FEW, InceptionFeatures, check_count, frechet_distance
from samdiffsr.evaluation.fid import WEIGHTS as INCEPTION
from samdiffsr.evaluation.lpips import LPIPS, TRUNKS
from samdiffsr.evaluation.methods import Method
from samdiffsr.evaluation.metrics import (
    BORDER,
    SQUEEZE,
    SqueezeDistance,
    lr_psnr,
    psnr_rgb,
    psnr_y,
    ssim_rgb,
    ssim_side,
    ssim_y,
)
from samdiffsr.evaluation.pairs import Images, Pair, check_sizes, read_pair
from samdiffsr.resize import SCALE

ORIGINALS = ("HR", "LR")
"""Pictures shown besides those of the methods; LR has its pixels repeated."""
BORDERS = Range("border", 0, whole=True)
Distance = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class PerceptualMetrics:
    """The networks behind the perceptual metrics, loaded.

    Attributes:
        distances: by metric name, (sr, hr) -> value.
        inception: for FID; None leaves it out.
        weights: SHA-256 of each file used.
        least: HR pixels a side that they need.
    """

    distances: dict[str, Distance] = field(default_factory=dict)
    inception: InceptionFeatures | None = None
    weights: dict[str, str] = field(default_factory=dict)
    least: int = 1


@dataclass(frozen=True)
class Score:
    """One result measured. `seed` is None for a method without randomness, `peak_bytes` where the system does not know it."""

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
        border: HR pixels that PSNR and SSIM cut from each side.
        fid: by method and seed.
        pictures: image -> method -> uint8 (H, W, 3), with `ORIGINALS` first; of the first images only.
        images_sha256: over names and pixels of all pairs as compared.
    """

    border: int = BORDER
    scores: list[Score] = field(default_factory=list)
    fid: dict[tuple[str, int | None], float] = field(default_factory=dict)
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    images_sha256: str = ""


def load_metrics(names: Sequence[str], folder: Path) -> PerceptualMetrics:
    """Load the networks of these metrics; weights lie in `folder` or are downloaded into it (squeeze: in the package).

    Raises:
        ConfigError: an unknown name.
        CheckpointError: weights that are missing, cannot be downloaded or are not the published ones.
    """
    distances: dict[str, Distance] = {}
    digests: dict[str, str] = {}
    inception, least = None, [1]

    def lpips(trunk: str) -> None:
        least.append(TRUNKS[trunk].least)
        distances[f"lpips-{trunk}"] = LPIPS(trunk, folder)
        digests.update({name: PUBLISHED[name].sha256 for name in (TRUNKS[trunk].weights, TRUNKS[trunk].heads)})

    def dists() -> None:
        least.append(DISTS.LEAST)
        distances["dists"] = DISTS(folder)
        digests.update({name: PUBLISHED[name].sha256 for name in (TRUNKS["vgg"].weights, HEADS)})

    def squeeze() -> None:
        least.append(SqueezeDistance.LEAST)
        distances["squeeze"] = SqueezeDistance()
        digests[SQUEEZE.name] = sha256(SQUEEZE)

    def fid() -> None:
        nonlocal inception
        inception = InceptionFeatures(folder)
        digests[INCEPTION] = PUBLISHED[INCEPTION].sha256

    loaders = {
        "lpips-alex": lambda: lpips("alex"),
        "lpips-vgg": lambda: lpips("vgg"),
        "dists": dists,
        "squeeze": squeeze,
        "fid": fid,
    }
    for load in [choose(name, loaders, "perceptual metric") for name in dict.fromkeys(names)]:
        load()
    return PerceptualMetrics(distances, inception, digests, max(least))


def run(
    pairs: Sequence[Pair],
    methods: Sequence[Method],
    *,
    seeds: Sequence[int] = (0,),
    metrics: PerceptualMetrics | None = None,
    border: int = BORDER,
    pictures: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Score every method on every pair; sampled methods once for each seed.

    Args:
        metrics: see `load_metrics`; None scores pixels only.
        border: HR pixels that PSNR and SSIM cut from each side.
        pictures: keep the results (of the first seed) of this many images, in order of names.
        progress: called with the number of results done and the number of all.

    Raises:
        ConfigError: nothing to compare, two methods with one label, repeated seeds, a border below 0, or FID of one image.
        ImageError: an image that cannot be read, is too small for a metric or of the wrong size; it names the image.
    """
    metrics = metrics or PerceptualMetrics()
    _check(methods, seeds)
    check_sizes(pairs, max(metrics.least, ssim_side(BORDERS.check(border))))
    if metrics.inception:
        check_count(len(pairs))
    result, digest = Result(border), hashlib.sha256()
    features: dict[tuple[str, int | None], list[np.ndarray]] = {}
    runs = [(method, seed) for method in methods for seed in (seeds if method.sampled else [None])]
    for number, pair in enumerate(pairs):
        images = read_pair(pair)
        result.notes += images.notes
        name = images.name.encode(errors="surrogateescape")
        for part in (name, repr(images.hr.shape).encode(), images.hr.tobytes(), images.lr.tobytes()):
            digest.update(part)
        if metrics.inception:
            features.setdefault(("HR", None), []).append(metrics.inception(images.hr))
        shown = result.pictures.setdefault(images.name, _originals(images)) if number < pictures else {}
        for place, (method, seed) in enumerate(runs):
            sr, notes, seconds, peak = _measured(method, images, seed)
            result.notes += notes
            values = _values(sr, images, metrics, border)
            megapixels = sr.shape[0] * sr.shape[1] / 1e6
            result.scores.append(Score(method.label, images.name, seed, values, seconds, peak, megapixels))
            shown.setdefault(method.label, sr)
            if metrics.inception:
                features.setdefault((method.label, seed), []).append(metrics.inception(sr))
            if progress:
                progress(number * len(runs) + place + 1, len(pairs) * len(runs))
    if metrics.inception:
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


def _values(sr: np.ndarray, images: Images, metrics: PerceptualMetrics, border: int) -> dict[str, float]:
    hr, lr = images.hr, images.lr
    try:
        return {
            "psnr-y": psnr_y(sr, hr, border=border),
            "ssim-y": ssim_y(sr, hr, border=border),
            "psnr-rgb": psnr_rgb(sr, hr, border=border),
            "ssim-rgb": ssim_rgb(sr, hr, border=border),
            "lr-psnr": lr_psnr(sr, lr),
            **{name: distance(sr, hr) for name, distance in metrics.distances.items()},
        }
    except ImageError as error:
        raise ImageError(f"'{images.name}': {error}") from None


def _warnings(result: Result, count: int) -> list[str]:
    """Facts that a reader needs to judge a figure."""
    notes = []
    for name, label, what in (
        ("psnr-rgb", "PSNR", f"equal their HR image inside the border of {result.border}"),
        ("lr-psnr", "LR-PSNR", "equal their LR image when shrunk"),
    ):
        if equal := [score for score in result.scores if np.isinf(score.values[name])]:
            which = ", ".join(sorted({score.method for score in equal}))
            notes.append(f"{len(equal)} results {what} (of {which}): their {label} and so its mean are infinite")
    if result.fid and FEW <= count < FEATURES:  # the report marks the column of fewer
        notes.append(
            f"FID of {count} images is far above that of many, because it estimates {FEATURES} means: compare it "
            "within this table only"
        )
    return notes


class Memory:
    """Peak memory since it was made, in bytes: of the device if that is a GPU, else of this whole process.

    The process's counts everything loaded: Python, libraries, all models. It is known on Linux only.
    """

    def __init__(self, device: str) -> None:
        self.device, self.module = device, torch.get_device_module(device)
        if self.counted:
            self.module.reset_peak_memory_stats(self.device)
        self.reset = device == "cpu" and _reset_peak()

    @property
    def counted(self) -> bool:
        """Whether torch counts the memory of this device; it does not for MPS."""
        return hasattr(self.module, "max_memory_allocated")

    def peak(self) -> int | None:
        if self.counted:
            return self.module.max_memory_allocated(self.device)
        if not self.reset:
            return None
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _reset_peak() -> bool:
    """Start a new peak of resident memory (proc(5)); False where the system has none."""
    try:
        Path("/proc/self/clear_refs").write_bytes(b"5")
    except OSError:
        return False
    return True
