"""The two stages of a run, from a configuration to a pipeline folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from torch import nn

from samdiffsr.data.dataset import PreparedPhotos
from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.errors import CheckpointError, ConfigError
from samdiffsr.models.encoder import RRDBEncoder
from samdiffsr.models.light import LightDenoiser, LightEncoder
from samdiffsr.models.unet import ConditionalUNet
from samdiffsr.pipeline import SamDiffSRPipeline, make_scheduler
from samdiffsr.training.checkpoint import NAME
from samdiffsr.training.config import StageConfig, TrainConfig
from samdiffsr.training.diffusion import DiffusionStage
from samdiffsr.training.encoder import EncoderStage
from samdiffsr.training.loop import run

ENCODERS = {"light": LightEncoder, "paper": RRDBEncoder}
DENOISERS = {"light": LightDenoiser, "paper": ConditionalUNet}
SCHEDULERS = {
    "ddpm": (diffusers.DDPMScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {"timestep_spacing": "trailing"}),
    "lcm": (diffusers.LCMScheduler, {}),
    "dpmsolver++": (diffusers.DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
}
Progress = Callable[[int, dict[str, float]], None]


def train_encoder(config: TrainConfig, *, resume: bool, progress: Progress) -> Path:
    """Stage 1. Returns the folder of the averaged weights, `output`/encoder/weights."""
    folder = config.output / "encoder"
    _claim(folder, config, resume)
    network = _build(ENCODERS[config.family], config.encoder, config.seed)
    loss = EncoderStage(network, config.encoder)

    def save(trained: nn.Module) -> None:
        _save_whole(trained, folder / "weights")

    run(
        network,
        loss,
        config.encoder,
        _photos(config, config.encoder),
        folder,
        seed=config.seed,
        resume=resume,
        save_ema=save,
        progress=progress,
    )
    return folder / "weights"


def train_diffusion(config: TrainConfig, *, resume: bool, progress: Progress) -> Path:
    """Stage 2. Returns the finished pipeline's folder, `output`/model.

    Raises:
        CheckpointError: there is no trained encoder (a random frozen one would train without complaint).
    """
    stage, folder = config.diffusion, config.output / "diffusion"
    source = stage.encoder or config.output / "encoder" / "weights"
    if not (source / "config.json").is_file():
        raise CheckpointError(f"encoder folder {source} is missing: run stage 'encoder', or set diffusion.encoder.")
    _claim(folder, config, resume)
    encoder = ENCODERS[config.family].from_pretrained(source, dtype=torch.float32)
    if stage.start is None:
        network = _build(DENOISERS[config.family], stage, config.seed)
    elif (stage.start / "denoiser" / "config.json").is_file():
        network = DENOISERS[config.family].from_pretrained(stage.start / "denoiser", dtype=torch.float32)
    else:
        raise CheckpointError(f"diffusion.start is {stage.start}, but there is no denoiser in that folder.")
    scheduler_class, options = SCHEDULERS[stage.scheduler]
    scheduler = make_scheduler(scheduler_class, NoiseSchedule.cosine(stage.timesteps), stage.target, **options)

    def save(trained: nn.Module) -> None:
        pipe = SamDiffSRPipeline(
            encoder,
            trained,
            scheduler,
            base=stage.base,
            residual_scale=stage.residual_scale,
            shift=stage.shift,
            target=stage.target,
            steps=stage.steps,
        )
        _save_whole(pipe, config.output / "model")
        trained.train()

    run(
        network,
        DiffusionStage(network, encoder, stage),
        stage,
        _photos(config, stage),
        folder,
        seed=config.seed,
        resume=resume,
        save_ema=save,
        progress=progress,
    )
    return config.output / "model"


def _build(network: type[nn.Module], stage: StageConfig, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return network(**stage.network)
        except TypeError as error:
            raise ConfigError(f"network {stage.network} does not suit {network.__name__}: {error}.") from None


def _photos(config: TrainConfig, stage: StageConfig) -> PreparedPhotos:
    data = stage.data
    return PreparedPhotos(config.photos, crop_lr=data.crop_lr, candidates=data.candidates, flips=data.flips)


def _claim(folder: Path, config: TrainConfig, resume: bool) -> None:
    """Refuse to mix two runs, and leave the resolved configuration beside the results."""
    if (folder / NAME).exists() and not resume:
        raise ConfigError(f"folder {folder} holds a checkpoint: use --resume to go on, or another output.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.model_dump_json(indent=2))


def _save_whole(model: nn.Module | SamDiffSRPipeline, folder: Path) -> None:
    """`save_pretrained` beside the folder, then swapped in: readers find the old weights or the new ones."""
    fresh, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)  # pyright: ignore[reportCallIssue]
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
