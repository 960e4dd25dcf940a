"""The methods that are compared: models, interpolations and the results of other programs, each as a function from LR to SR."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from samdiffsr.errors import ConfigError, choose
from samdiffsr.evaluation.downloads import sha256
from samdiffsr.evaluation.pairs import Images, match, read_result
from samdiffsr.load import find_model, load_model
from samdiffsr.models.level import takes_level
from samdiffsr.pipeline import SamDiffSRPipeline
from samdiffsr.resize import SCALE, imresize
from samdiffsr.sampling.precision import type_name
from samdiffsr.sampling.ranges import CLEAN, DETAIL, PRECISIONS, STEPS
from samdiffsr.sampling.schedulers import use_scheduler


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        label: its name in the report.
        run: (images, seed) -> uint8 result of HR's size, and notes on it.
        sampled: whether the result depends on the seed.
        timed: whether `run` makes the result (and does not just read it).
        device: what `run` computes on.
        record: what the report keeps about it: configuration, checksums.
    """

    label: str
    run: Callable[[Images, int], tuple[np.ndarray, list[str]]]
    sampled: bool = False
    timed: bool = True
    device: str = "cpu"
    record: dict[str, Any] = field(default_factory=dict)


def _bicubic(lr: np.ndarray) -> np.ndarray:
    return imresize(lr, SCALE)


def _lanczos(lr: np.ndarray) -> np.ndarray:
    size = (SCALE * lr.shape[1], SCALE * lr.shape[0])
    return np.asarray(Image.fromarray(lr).resize(size, Image.Resampling.LANCZOS))


BASELINES = {"bicubic": (_bicubic, "MATLAB's imresize"), "lanczos": (_lanczos, "Pillow's, three lobes")}


def baseline(name: str) -> Method:
    """An interpolation; ConfigError names those there are."""
    function, what = choose(name, BASELINES, "baseline")
    return Method(name, lambda images, _seed: (function(images.lr), []), record={"kind": "baseline", "what": what})


def outputs(given: str, names: Iterable[str]) -> tuple[Method, list[Path]]:
    """Results made elsewhere, from `NAME=DIR`; and the images in DIR that belong to no HR image.

    Raises:
        ConfigError: not of that form.
        ImageError: an HR image without a result, or with several.
    """
    label, equals, folder = given.partition("=")
    if not (label and equals and folder):
        raise ConfigError(f"outputs is {given!r}, but must be NAME=DIR.")
    files, others = match(Path(folder), names)
    record = {"kind": "outputs", "folder": folder, "sha256": _digest(files.values(), Path(folder))}

    def run(images: Images, _seed: int) -> tuple[np.ndarray, list[str]]:
        sr, notes = read_result(files[images.name], images)
        return sr, [f"{label}, {note}" for note in notes]

    return Method(label, run, timed=False, record=record), others


def model(spec: str, device: str) -> Method:
    """A model from `MODEL` or `MODEL@steps=4,scheduler=ddim,detail=0.5,clean=0,precision=bfloat16`, loaded.

    MODEL is what `load_model` takes; the options are `steps`, `scheduler` (a name of `SCHEDULERS`), `detail`, `clean` and
    `precision`, which is float32 unless given: figures do not depend on the processor. The options stand after the last @
    and have an =, so `user/repo@revision` has none; to a folder whose own name ends in such words, `a@b=1`, an @ is added.

    Raises:
        ConfigError: an unknown option or scheduler, or a value out of its range.
        CheckpointError: no such model.
    """
    name, options = _parse(spec)
    place = find_model(name)
    pipe = load_model(place, device)
    if "scheduler" in options:
        use_scheduler(pipe, options["scheduler"])
    steps = STEPS.parse(options["steps"]) if "steps" in options else pipe.config["steps"]
    detail = DETAIL.parse(options["detail"]) if "detail" in options else pipe.config["detail"]
    clean = None if options.get("clean", "auto") == "auto" else CLEAN.parse(options["clean"])
    precision: Any = choose(options.get("precision", "float32"), {name: name for name in PRECISIONS}, "precision")

    def run(images: Images, seed: int) -> tuple[np.ndarray, list[str]]:
        generator = torch.Generator("cpu").manual_seed(seed)
        given = {"detail": detail, "clean": clean, "precision": precision}
        return pipe(images.lr, steps, generator, output_type="uint8", **given).images[0], []

    record = _record(name, place, pipe, steps, detail, clean) | {"precision": type_name(pipe.computed_in(precision))}
    return Method(spec, run, sampled=True, device=str(pipe.device), record=record)


def _parse(spec: str) -> tuple[str, dict[str, str]]:
    name, at, text = spec.rpartition("@")
    if at and not text:
        return name, {}
    if "=" not in text:  # no options, but a revision of the Hub, or a folder with an @ in its name
        return spec, {}
    pairs = [item.partition("=") for item in text.split(",")]
    options = {key: value for key, _, value in pairs}
    known = {"steps", "scheduler", "detail", "clean", "precision"}
    if set(options) - known or not all(value for _, _, value in pairs) or len(options) < len(pairs):
        raise ConfigError(
            f"The model is {spec!r}, but after the @ come steps=N, scheduler=NAME, detail=F, clean=F, "
            "precision=NAME, with commas."
        )
    return name, options


def _record(
    name: str, path: Path, pipe: SamDiffSRPipeline, steps: int, detail: float, clean: float | None
) -> dict[str, Any]:
    networks = (pipe.encoder, pipe.denoiser)
    known = ("base", "residual_scale", "shift", "target", "lr_divisor")
    return {
        "kind": "model",
        "model": name,
        "sha256": digest_of_model(path),
        "steps": steps,
        "detail": detail,
        "clean": "auto" if clean is None and takes_level(pipe.encoder) else clean or 0.0,
        "scheduler": type(pipe.scheduler).__name__,
        "timesteps": pipe.scheduler.config["num_train_timesteps"],
        "networks": [type(network).__name__ for network in networks],
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
        **{key: pipe.config[key] for key in known},
    }


def digest_of_model(path: Path) -> str:
    """SHA-256 of a checkpoint file, or of configuration and weights of a pipeline folder; see `_digest`."""
    if path.is_file():
        return _digest([path], path.parent)
    return _digest([file for file in path.rglob("*") if file.suffix in (".json", ".safetensors")], path)


def _digest(files: Iterable[Path], folder: Path) -> str:
    """SHA-256 of what `sha256sum` prints in the folder for these files, sorted by name; of a single file its own."""
    digests = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
