"""The two stages of a run, from a configuration to a pipeline folder."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.errors import CheckpointError, ConfigError
from samdiffsr.models.encoder import RRDBEncoder
from samdiffsr.models.light import LightDenoiser, LightEncoder
from samdiffsr.models.unet import ConditionalUNet
from samdiffsr.models.weights import load_network
from samdiffsr.pipeline import SamDiffSRPipeline
from samdiffsr.sampling.schedulers import named_scheduler
from samdiffsr.training.config import DiffusionConfig, StageConfig, TrainConfig
from samdiffsr.training.diffusion import DiffusionStage
from samdiffsr.training.encoder import EncoderStage
from samdiffsr.training.job import Job, train
from samdiffsr.training.log import Progress
from samdiffsr.training.objective import Objective

ENCODERS = {"light": LightEncoder, "paper": RRDBEncoder}
DENOISERS = {"light": LightDenoiser, "paper": ConditionalUNet}


def train_encoder(config: TrainConfig, *, resume: bool, progress: Progress) -> Path:
    """Stage 1. Returns the folder of the averaged weights, `output`/encoder/weights; the best are in `output`/encoder/best.

    Raises:
        SamDiffSRError: files that are missing or damaged, an output that holds another run, a loss that left its course.
    """
    return train(encoder_job(config), resume=resume, progress=progress)


def train_diffusion(config: TrainConfig, *, resume: bool, progress: Progress) -> Path:
    """Stage 2. Returns the finished pipeline's folder, `output`/model; the best one is in `output`/best.

    Raises:
        CheckpointError: there is no trained encoder (a random frozen one would train without complaint).
        SamDiffSRError: as for stage 1.
    """
    return train(diffusion_job(config), resume=resume, progress=progress)


def encoder_job(config: TrainConfig) -> Job:
    """Stage 1, ready to be run."""
    folder = config.output / "encoder"
    objective = encoder_objective(config)
    network = objective.network

    @torch.inference_mode()
    def upscale(lr: np.ndarray) -> np.ndarray:
        device = next(network.parameters()).device
        signed = torch.from_numpy(lr).to(device).permute(2, 0, 1).float() / 127.5 - 1
        sr = network(signed[None]).float()[0]
        return ((sr + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()

    return Job(config, config.encoder, objective, folder, network, upscale, folder / "weights", folder / "best")


def diffusion_job(config: TrainConfig) -> Job:
    """Stage 2, ready to be run.

    Raises:
        CheckpointError: there is no trained encoder.
    """
    stage = config.diffusion
    source = _encoder_folder(config)
    if not (source / "config.json").is_file():
        raise CheckpointError(f"encoder folder {source} is missing: run stage 'encoder', or set diffusion.encoder.")
    objective = diffusion_objective(config, load_network(ENCODERS[config.family], source))
    pipe = _pipeline(objective, stage)

    def upscale(lr: np.ndarray) -> np.ndarray:
        return np.asarray(pipe(lr, generator=torch.Generator().manual_seed(config.seed)).images[0])

    output = config.output
    return Job(config, stage, objective, output / "diffusion", pipe, upscale, output / "model", output / "best")


def encoder_objective(config: TrainConfig) -> EncoderStage:
    """Stage 1 with the encoder that `encoder.start` names, or a new one."""
    stage, kind = config.encoder, ENCODERS[config.family]
    if stage.start is None:
        return EncoderStage(build(kind, stage, config.seed), stage)
    if not (stage.start / "config.json").is_file():
        raise CheckpointError(f"encoder.start is {stage.start}, but there is no encoder in that folder.")
    return EncoderStage(load_network(kind, stage.start), stage)


def diffusion_objective(config: TrainConfig, encoder: nn.Module) -> DiffusionStage:
    """Stage 2 with the denoiser that `diffusion.start` names, or a new one."""
    stage, kind = config.diffusion, DENOISERS[config.family]
    if stage.start is None:
        network = build(kind, stage, config.seed)
    elif (stage.start / "denoiser" / "config.json").is_file():
        network = load_network(kind, stage.start / "denoiser")
    else:
        raise CheckpointError(f"diffusion.start is {stage.start}, but there is no denoiser in that folder.")
    channels = network.config["feature_channels"]  # pyright: ignore[reportIndexIssue, reportArgumentType]
    if channels != encoder.feature_channels:
        raise ConfigError(
            f"diffusion.network.feature_channels is {channels}, but the encoder has {encoder.feature_channels}."
        )
    return DiffusionStage(network, encoder, stage)


def new_objective(config: TrainConfig, stage: str) -> Objective:
    """Stage "encoder" or "diffusion" as a run would begin it; where stage 1 has yet to be trained, with its new encoder.

    Raises:
        SamDiffSRError: what the run would refuse, before it begins.
    """
    if stage == "encoder":
        return encoder_objective(config)
    source = _encoder_folder(config)
    trained = (source / "config.json").is_file()
    network = load_network(ENCODERS[config.family], source) if trained else encoder_objective(config).network
    return diffusion_objective(config, network)


def build(network: type[nn.Module], stage: StageConfig, seed: int) -> nn.Module:
    """A new network with the arguments of the stage's `network`; its weights are drawn from `seed`.

    Raises:
        ConfigError: an argument that the network does not know.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return network(**stage.network)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"network {stage.network} does not suit {network.__name__}: {error}.") from None


def _encoder_folder(config: TrainConfig) -> Path:
    """Of the encoder that stage 2 uses."""
    return config.diffusion.encoder or config.output / "encoder" / "weights"


def _pipeline(objective: DiffusionStage, stage: DiffusionConfig) -> SamDiffSRPipeline:
    pipe = SamDiffSRPipeline(
        objective.encoder,
        objective.network,
        named_scheduler(stage.scheduler, NoiseSchedule.cosine(stage.timesteps), stage.target),
        base=stage.base,
        residual_scale=stage.residual_scale,
        shift=stage.shift,
        target=stage.target,
        steps=stage.steps,
        detail=stage.detail,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
