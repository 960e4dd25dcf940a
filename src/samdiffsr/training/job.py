"""A stage's run around the loop: claim the folder, resume, validate, save."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from safetensors.torch import load_file, save_file
from torch import nn

from samdiffsr.data.dataset import PreparedPhotos
from samdiffsr.errors import ConfigError
from samdiffsr.files import whole_folder
from samdiffsr.models.discriminator import PatchDiscriminator
from samdiffsr.pipeline import SamDiffSRPipeline
from samdiffsr.training.adversarial import Opponent
from samdiffsr.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from samdiffsr.training.config import METADATA, StageConfig, TrainConfig
from samdiffsr.training.feed import Feed, Photos
from samdiffsr.training.log import Log, Progress
from samdiffsr.training.loop import run
from samdiffsr.training.objective import Objective
from samdiffsr.training.state import TrainState
from samdiffsr.training.validation import Upscale, Validation


@dataclass(frozen=True)
class Job:
    """What a stage trains, what becomes of it, and how it is judged.

    Attributes:
        folder: for checkpoints and records.
        model: saved with averaged weights as `last` at every checkpoint, and as `best` when validation says so.
        upscale: one image through the model, for validation.
    """

    config: TrainConfig
    stage: StageConfig
    objective: Objective
    folder: Path
    model: nn.Module | SamDiffSRPipeline
    upscale: Upscale
    last: Path
    best: Path


def train(
    job: Job,
    *,
    resume: bool,
    progress: Progress,
    photos: Photos | None = None,
    halt: Callable[[], bool] = lambda: False,
) -> Path:
    """Run the stage to its end, in as many processes as torchrun started; returns `job.last`.

    Args:
        photos: where examples come from; default: the prepared folder of the configuration.
        halt: asked after each update, in each process; True leaves a checkpoint and ends the run there.
    """
    config, stage = job.config, job.stage
    accelerator = _accelerator(job)
    feed = _feed(job, photos or _prepared(job), accelerator)
    state = TrainState(job.objective, make_opponent(stage, config.seed), stage, accelerator.device)
    identity = {"seed": config.seed, "batch": stage.data.batch}
    _claim(job.folder / "checkpoints", state, identity, resume=resume)
    validation = config.validation.photos and Validation(config.validation, config.validation.photos)
    active = accelerator.is_main_process
    if active:
        _begin(job.folder, config)
    log = Log(job.folder, update=state.update, tensorboard=config.tensorboard, active=active, progress=progress)

    def keep(place: Path) -> None:
        if active:
            with state.averaged():
                save_model(job.model, place, config)
        accelerator.wait_for_everyone()

    def save() -> None:
        if active:
            numbers = identity | state.numbers()
            save_checkpoint(job.folder / "checkpoints", state.tensors(), numbers, keep=stage.keep)
        keep(job.last)

    def validate() -> None:
        if not validation:
            return
        with state.averaged():
            scores, panel = validation(job.upscale, accelerator)
        log.validation(state.update, scores, panel)
        if validation.better(scores, state.best):
            state.best = scores[config.validation.best]
            keep(job.best)

    if state.update >= stage.optim.updates:  # finished before: only what does not concern training can have changed
        keep(job.last)
    try:
        run(
            job.objective,
            state,
            feed,
            stage,
            job.folder / "checkpoints",
            accelerator=accelerator,
            log=log,
            validate=validate,
            validate_every=config.validation.every,
            save=save,
            halt=halt,
        )
    finally:
        log.close()
    return job.last


def is_first(config: TrainConfig) -> bool:
    """Whether this process is the one that talks and writes; the first call joins the processes that torchrun started."""
    return PartialState(cpu=_on_cpu(config)).is_main_process


def stop() -> None:
    """Leave the group of processes, if there is one."""
    PartialState().destroy_process_group()


def make_opponent(stage: StageConfig, seed: int) -> Opponent | None:
    """A new discriminator, if the stage has an adversarial term."""
    if not stage.loss.adversarial_weight:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Opponent(PatchDiscriminator(stage.loss.discriminator_width), stage.loss.adversarial)


def save_model(model: nn.Module | SamDiffSRPipeline, folder: Path, config: TrainConfig) -> None:
    """`save_pretrained` as a whole folder; each weight file carries the resolved configuration (see `load_config`)."""
    with whole_folder(folder) as fresh:
        model.save_pretrained(fresh)  # pyright: ignore[reportCallIssue]
        for file in fresh.rglob("*.safetensors"):
            save_file(load_file(file), file, metadata={"format": "pt", METADATA: config.model_dump_json()})


def _accelerator(job: Job) -> Accelerator:
    # A learning encoder has a part, that of its own estimate, which may get no gradient.
    unused = len(job.objective.trained) > 1
    options = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=unused)
    return Accelerator(cpu=_on_cpu(job.config), kwargs_handlers=[options])


def _on_cpu(config: TrainConfig) -> bool:
    """Without an accelerator this must be said: otherwise accelerate does not see that there are several processes."""
    return config.device == "cpu" or not torch.accelerator.is_available()


def _prepared(job: Job) -> PreparedPhotos:
    data = job.stage.data
    return PreparedPhotos(
        job.config.photos,
        crop_lr=data.crop_lr,
        candidates=data.candidates,
        flips=data.flips,
        crops_per_image=data.crops_per_image,
    )


def _feed(job: Job, photos: Photos, accelerator: Accelerator) -> Feed:
    return Feed(
        photos,
        job.objective.draws,
        job.stage.data,
        job.config.seed,
        accelerator.device,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )


def _begin(folder: Path, config: TrainConfig) -> None:
    """Make the folder and say in it what it is of."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output folder {folder} cannot be made: {error.strerror}.") from None
    (folder / "config.json").write_text(config.model_dump_json(indent=2))


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
                f"{name} is {value}, but the run in {folder} began with {numbers[name]}: its examples would be others."
            )
    state.load(tensors, numbers)
