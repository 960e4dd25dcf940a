"""Load a model by name; the pipeline is imported inside the functions."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from samdiffsr.devices import find_device
from samdiffsr.errors import CheckpointError, SamDiffSRError
from samdiffsr.models.hub import fetch, is_hub_name

if TYPE_CHECKING:
    from samdiffsr.pipeline import SamDiffSRPipeline
    from samdiffsr.sampling.upscaler import Upscaler

PARTS = ("encoder", "denoiser", "scheduler")  # of a pipeline folder


def load_model(name: str | os.PathLike[str], device: str = "auto") -> "SamDiffSRPipeline":
    """Load a pipeline and move it to a device.

    Args:
        name: "default" (the embedded model), a pipeline folder (with model_index.json), a released .ckpt file, or a model of
            the Hugging Face Hub, `user/repo` or `user/repo@revision`.
        device: "auto" or any torch device, see `find_device`.

    Raises:
        CheckpointError: `name` is none of these.
        ConfigError: the device is not here, or cannot compute.
    """
    path = find_model(name)
    where = find_device(device)
    with _no_loading_bar():
        if path.is_file():
            from samdiffsr.released import load_released

            pipe = load_released(path)
        else:
            from samdiffsr.pipeline import SamDiffSRPipeline

            pipe = SamDiffSRPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(where)


def load_upscaler(name: str | os.PathLike[str], device: str = "auto") -> "Upscaler":
    """As `load_model`, for sampling alone: without diffusers' pipeline, which takes half of the start.

    The pictures are the same. A model that is more than our networks and a stock scheduler is loaded as a pipeline after all.
    """
    from samdiffsr.models.weights import move

    path = find_model(name)
    where = find_device(device)
    found = _plain(path) if path.is_dir() else None
    if found is None:
        return load_model(path, device)
    for network in (found.encoder, found.denoiser):
        move(network, where)
    return found


def find_model(name: str | os.PathLike[str]) -> Path:
    """The folder or the .ckpt file of a model that `load_model` takes; one of the Hub is fetched.

    Raises:
        CheckpointError: `name` is none.
    """
    name = os.fspath(name)
    if name == "default":
        from samdiffsr.models.weights import DEFAULT_MODEL

        return DEFAULT_MODEL
    path = fetch(name) if is_hub_name(name) else Path(name)
    if os.path.isfile(path / "model_index.json") or (os.path.isfile(path) and path.suffix == ".ckpt"):
        return path
    wanted = "'default', a pipeline folder (one with model_index.json), a released .ckpt file or user/repo of the Hub"
    what = "does not exist" if not os.path.exists(path) else "is none of these"
    raise CheckpointError(f"The model must be {wanted}, but '{name}' {what}.")


def _plain(folder: Path) -> "Upscaler | None":
    """The upscaler in a pipeline folder; None where that is damaged, which the pipeline explains, or holds others' parts."""
    import diffusers

    import samdiffsr
    from samdiffsr.models.weights import LOADING_ERRORS, load_network
    from samdiffsr.sampling.upscaler import Upscaler

    try:
        config = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        config = {name: value for name, value in config.items() if not name.startswith("_")}
        libraries, kinds = zip(*(config.pop(part) for part in PARTS), strict=True)
        if libraries != ("samdiffsr", "samdiffsr", "diffusers"):
            return None
        encoder, denoiser = (load_network(getattr(samdiffsr, kinds[at]), folder / PARTS[at]) for at in (0, 1))
        scheduler = getattr(diffusers, kinds[2]).from_pretrained(str(folder / PARTS[2]), local_files_only=True)
        return Upscaler(encoder, denoiser, scheduler, config)
    except (SamDiffSRError, *LOADING_ERRORS):
        return None


@contextlib.contextmanager
def _no_loading_bar() -> Iterator[None]:
    """Keep diffusers from drawing a bar for the loading of three components."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
