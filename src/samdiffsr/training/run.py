"""The two stages of a run, from a configuration to a pipeline folder: build, check, claim the folder, resume, train, save."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from safetensors.torch import load_file, save_file
from torch import nn

from samdiffsr.data.dataset import PreparedPhotos
from samdiffsr.errors import CheckpointError, ConfigError
from samdiffsr.files import whole_folder
from samdiffsr.models.encoder import RRDBEncoder
from samdiffsr.models.level import takes_level
from samdiffsr.models.light import LightDenoiser, LightEncoder
from samdiffsr.models.structure_head import takes_structure
from samdiffsr.models.unet import ConditionalUNet
from samdiffsr.models.weights import load_network, with_options
from samdiffsr.pipeline import SamDiffSRPipeline
from samdiffsr.sampling.schedulers import named_scheduler
from samdiffsr.structure import OF_SAMPLING
from samdiffsr.training import loop
from samdiffsr.training.adversarial import new_adversarial_loss
from samdiffsr.training.batches import Batches
from samdiffsr.training.checkpoint import CHECKPOINTS, checkpoints, load_checkpoint, save_checkpoint
from samdiffsr.training.config import METADATA, DiffusionConfig, StageConfig, TrainConfig, further_targets
from samdiffsr.training.log import Log, OnUpdate
from samdiffsr.training.objective import DiffusionObjective, EncoderObjective, Objective
from samdiffsr.training.state import TrainState
from samdiffsr.training.validation import Upscale, Validation

ENCODERS = {"light": LightEncoder, "paper": RRDBEncoder}
DENOISERS = {"light": LightDenoiser, "paper": ConditionalUNet}


@dataclass(frozen=True)
class Stage:
    """One stage, ready to be trained.

    Attributes:
        run, config: the configuration of the whole run, and this stage's part of it.
        folder: for checkpoints and records.
        model: saved with averaged weights as `last` at every checkpoint, and as `best` when validation says so.
        upscale: one image through the model, for validation.
    """

    run: TrainConfig
    config: StageConfig
    objective: Objective
    folder: Path
    model: nn.Module | SamDiffSRPipeline
    upscale: Upscale
    last: Path
    best: Path


def train_encoder(config: TrainConfig, *, resume: bool, on_update: OnUpdate, deadline: float = math.inf) -> Path | None:
    """Stage 1, in as many processes as torchrun started.

    Args:
        resume: go on from the newest checkpoint, if there is one.
        on_update: called with (update, record) in the first process.
        deadline: of `time.monotonic`; when it has passed, the run leaves a checkpoint and ends, after one update at least.

    Returns:
        The folder of the averaged weights, `output`/encoder/weights (the best are in `output`/encoder/best), or None if the
        deadline came before the last update.

    Raises:
        SamDiffSRError: files that are missing or damaged, an output that holds another run, a loss that diverges.
    """
    return _train(encoder_stage(config), resume=resume, on_update=on_update, deadline=deadline)


def train_diffusion(
    config: TrainConfig, *, resume: bool, on_update: OnUpdate, deadline: float = math.inf
) -> Path | None:
    """Stage 2, as stage 1. Returns the finished pipeline's folder, `output`/model (the best one is in `output`/best), or None.

    Raises:
        CheckpointError: there is no trained encoder (a random frozen one would train without complaint).
        SamDiffSRError: as for stage 1.
    """
    return _train(diffusion_stage(config), resume=resume, on_update=on_update, deadline=deadline)


def check(config: TrainConfig, stages: Sequence[str], *, photos: bool = True) -> dict[str, Objective]:
    """The objective of each of `stages` ("encoder", "diffusion") as the run would start it. Nothing is written.

    Args:
        photos: False does not look at the prepared folder.

    Raises:
        SamDiffSRError: the first thing that the run would refuse, in either stage.
    """
    objectives: dict[str, Objective] = {}
    for name in stages:
        if name == "encoder":
            objectives[name] = encoder_objective(config)
            stage = config.encoder
        else:
            stage = config.diffusion
            to_come = stage.encoder is None and "encoder" in stages and not _is_network(_encoder_folder(config))
            encoder = encoder_objective(config).network if to_come else _trained_encoder(config)
            objectives[name] = diffusion_objective(config, encoder)
        new_adversarial_loss(stage.loss, config.seed)
        if photos:
            open_photos(config, stage)
    return objectives


def encoder_stage(config: TrainConfig) -> Stage:
    """Stage 1, ready to be trained."""
    folder = config.output / "encoder"
    objective = encoder_objective(config)
    network = objective.network

    @torch.inference_mode()
    def upscale(lr: np.ndarray) -> np.ndarray:
        device = next(network.parameters()).device
        signed = torch.from_numpy(lr).to(device).permute(2, 0, 1).float() / 127.5 - 1
        sr = network(signed[None]).float()[0]
        return ((sr + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()

    return Stage(config, config.encoder, objective, folder, network, upscale, folder / "weights", folder / "best")


def diffusion_stage(config: TrainConfig) -> Stage:
    """Stage 2, ready to be trained.

    Raises:
        CheckpointError: there is no trained encoder.
    """
    objective = diffusion_objective(config, _trained_encoder(config))
    pipe = _pipeline(objective, config.diffusion)

    def upscale(lr: np.ndarray) -> np.ndarray:
        return np.asarray(pipe(lr, generator=torch.Generator().manual_seed(config.seed), clean=0).images[0])

    output = config.output
    return Stage(
        config, config.diffusion, objective, output / "diffusion", pipe, upscale, output / "model", output / "best"
    )


def encoder_objective(config: TrainConfig) -> EncoderObjective:
    """Stage 1's, with the encoder that `encoder.start` names, or a new one."""
    stage, kind = config.encoder, ENCODERS[config.family]
    if stage.start is None:
        return EncoderObjective(build(kind, stage, config.seed), stage)
    if not _is_network(stage.start):
        raise CheckpointError(f"encoder.start is {stage.start}, but there is no encoder in that folder.")
    return EncoderObjective(_started(kind, stage.start, stage, config.seed), stage)


def diffusion_objective(config: TrainConfig, encoder: nn.Module) -> DiffusionObjective:
    """Stage 2's, with the denoiser that `diffusion.start` names, or a new one."""
    stage, kind = config.diffusion, DENOISERS[config.family]
    if stage.start is None:
        network = build(kind, stage, config.seed, **({"with_structure": True} if stage.structure_weight else {}))
    elif _is_network(stage.start / "denoiser"):
        network = _started(kind, stage.start / "denoiser", stage, config.seed)
    else:
        raise CheckpointError(f"diffusion.start is {stage.start}, but there is no denoiser in that folder.")
    if stage.structure_weight and network.structure_head is None:
        raise ConfigError(
            f"diffusion.structure_weight is {stage.structure_weight}, but the denoiser in {stage.start} has no structure head."
        )
    wanted = stage.network.get("structure_input")
    if wanted is not None and bool(wanted) != takes_structure(network):
        raise ConfigError(
            f"diffusion.network.structure_input is {str(wanted).lower()}, but for the denoiser in {stage.start} it is "
            f"{str(takes_structure(network)).lower()}: leave it out, or train a new denoiser without diffusion.start."
        )
    channels = network.config["feature_channels"]  # pyright: ignore[reportIndexIssue, reportArgumentType]
    if channels != encoder.feature_channels:
        raise ConfigError(
            f"diffusion.network.feature_channels is {channels}, but the encoder has {encoder.feature_channels}."
        )
    if takes_level(network) and not takes_level(encoder):
        raise ConfigError(
            "diffusion.network.level is true, but the encoder does not take a level: train it with encoder.network.level=true."
        )
    return DiffusionObjective(network, encoder, stage)


def _started(kind: type[nn.Module], folder: Path, stage: StageConfig, seed: int) -> nn.Module:
    """The network in `folder`, with the level as an input and the limit that the configuration adds to it."""
    network = load_network(kind, folder)
    added = {name: value for name in ("level", "limit") if (value := stage.network.get(name))}
    for name in added.keys() - network.config.keys():
        raise ConfigError(f"network.{name} is {added[name]}, but {kind.__name__} has no {name}.")
    is_new = any(network.config[name] != value for name, value in added.items())
    return with_options(network, seed, **added) if is_new else network


def build(network: type[nn.Module], stage: StageConfig, seed: int, **more: Any) -> nn.Module:
    """A new network with the arguments of the stage's `network` and `more`; its weights are drawn from `seed`.

    Raises:
        ConfigError: an argument that the network does not know.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return network(**stage.network | more)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"network {stage.network} does not suit {network.__name__}: {error}.") from None


def open_photos(config: TrainConfig, stage: StageConfig) -> PreparedPhotos:
    """The crops of one stage.

    Raises:
        ConfigError: `photos` is not a finished prepared folder, lacks targets of the encoder, has no image that is large enough
            for a crop or, for stage 2, has structure maps of another encoding than the configuration's.
    """
    data = stage.data
    photos = PreparedPhotos(
        config.photos,
        crop_lr=data.crop_lr,
        candidates=data.candidates,
        flips=data.flips,
        crops_per_image=data.crops_per_image,
        degrade=data.degrade,
        clean_share=data.clean_share,
        synthetic=data.synthetic,
        targets=further_targets(stage),
        position=stage.structure.encoding if isinstance(stage, DiffusionConfig) and stage.needs_position else None,
    )
    if isinstance(stage, DiffusionConfig) and stage.structure_weight and not photos.images.regions:
        raise ConfigError(
            f"diffusion.structure_weight is {stage.structure_weight}, but folder {config.photos} was prepared without "
            "regions, of which the structure head would learn nothing: prepare it with --masks."
        )
    made_with = photos.images.structure
    if isinstance(stage, DiffusionConfig) and made_with is not None:  # of ready maps it is not known
        stage.structure.check_prepared(config.photos, made_with)
    return photos


def save_model(model: nn.Module | SamDiffSRPipeline, folder: Path, config: TrainConfig) -> None:
    """`save_pretrained` as a whole folder; each weight file carries the resolved configuration (see `load_config`)."""
    with whole_folder(folder) as fresh:
        model.save_pretrained(fresh)  # pyright: ignore[reportCallIssue]
        for file in fresh.rglob("*.safetensors"):
            save_file(load_file(file), file, metadata={"format": "pt", METADATA: config.model_dump_json()})


def is_first(config: TrainConfig) -> bool:
    """Whether this process is the one that prints and writes; the first call joins the processes that torchrun started."""
    return PartialState(cpu=on_cpu(config)).is_main_process


def on_cpu(config: TrainConfig) -> bool:
    """Without an accelerator this must be said: otherwise accelerate does not see that there are several processes."""
    return config.device == "cpu" or not torch.accelerator.is_available()


def leave() -> None:
    """Leave the group of processes, if there is one."""
    PartialState().destroy_process_group()


def _train(stage: Stage, *, resume: bool, on_update: OnUpdate, deadline: float) -> Path | None:
    """Train to the last update and return `stage.last`, or to the deadline and return None."""
    config, run = stage.config, stage.run
    accelerator = _accelerator(stage)
    batches = Batches(
        open_photos(run, config),
        stage.objective.draws,
        config.data,
        run.seed,
        accelerator.device,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    state = TrainState(stage.objective, new_adversarial_loss(config.loss, run.seed), config, accelerator.device)
    identity = {"seed": run.seed, "batch": config.data.batch}
    _claim(stage.folder / CHECKPOINTS, state, identity, resume=resume)
    validation = run.validation.photos and Validation(run.validation, run.validation.photos)
    active = accelerator.is_main_process
    if active:
        _start_folder(stage.folder, run)
    log = Log(stage.folder, update=state.update, tensorboard=run.tensorboard, active=active, on_update=on_update)

    def keep(place: Path) -> None:
        if active:
            with state.averaged():
                save_model(stage.model, place, run)
        accelerator.wait_for_everyone()

    def save() -> None:
        if active:
            numbers = identity | state.numbers()
            save_checkpoint(stage.folder / CHECKPOINTS, state.tensors(), numbers, keep=config.keep)
        keep(stage.last)

    def validate() -> None:
        if not validation:
            return
        with state.averaged():
            scores, panel = validation(stage.upscale, accelerator)
        log.validation(state.update, scores, panel)
        if validation.better(scores, state.best):
            state.best = scores[run.validation.best]
            keep(stage.best)

    if state.update >= config.optim.updates:  # finished before: only what does not concern training can have changed
        keep(stage.last)
    try:
        loop.train(
            stage.objective,
            state,
            batches,
            config,
            accelerator=accelerator,
            log=log,
            validate=validate,
            validate_every=run.validation.every,
            save=save,
            deadline=deadline,
        )
    finally:
        log.close()
    return stage.last if state.update >= config.optim.updates else None


def _trained_encoder(config: TrainConfig) -> nn.Module:
    folder = _encoder_folder(config)
    if not _is_network(folder):
        raise CheckpointError(f"encoder folder {folder} is missing: train stage 'encoder', or set diffusion.encoder.")
    return load_network(ENCODERS[config.family], folder)


def _encoder_folder(config: TrainConfig) -> Path:
    """Of the encoder that stage 2 uses."""
    return config.diffusion.encoder or config.output / "encoder" / "weights"


def _is_network(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _pipeline(objective: DiffusionObjective, stage: DiffusionConfig) -> SamDiffSRPipeline:
    pipe = SamDiffSRPipeline(
        objective.encoder,
        objective.network,
        named_scheduler(
            stage.scheduler, stage.process().schedule, stage.target, estimated=bool(stage.structure_weight)
        ),
        base=stage.base,
        residual_scale=stage.residual_scale,
        shift=stage.shift,
        target=stage.target,
        steps=stage.steps,
        detail=stage.detail,
        **{key: getattr(stage.structure, key) for key in OF_SAMPLING},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _accelerator(stage: Stage) -> Accelerator:
    # A learning encoder has a part, that of its own estimate, which may get no gradient.
    unused = len(stage.objective.trained) > 1
    options = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=unused)
    return Accelerator(cpu=on_cpu(stage.run), kwargs_handlers=[options])


def _start_folder(folder: Path, config: TrainConfig) -> None:
    """Make the stage's folder and keep the resolved configuration in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output folder {folder} cannot be made: {error.strerror}.") from None
    (folder / "config.json").write_text(config.model_dump_json(indent=2), encoding="utf-8")


def _claim(folder: Path, state: TrainState, identity: dict, *, resume: bool) -> None:
    """Load the newest checkpoint into `state`, or refuse to mix two runs in one folder."""
    if not resume:
        if checkpoints(folder):
            raise ConfigError(f"folder {folder} holds a checkpoint: use --resume to go on, or another output.")
        return
    found = load_checkpoint(folder)
    if found is None:
        return
    tensors, numbers = found
    for name, value in identity.items():
        if numbers[name] != value:
            raise ConfigError(
                f"{name} is {value}, but the run in {folder} has {numbers[name]}: its examples would be others."
            )
    state.load(tensors, numbers)
