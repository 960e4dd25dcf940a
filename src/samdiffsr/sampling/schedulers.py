"""Everything known of diffusers' schedulers: which ones sample right, how they are made, and how an image is cut for them."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from torch import Tensor

from samdiffsr.diffusion.process import ModulatedProcess
from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.errors import ConfigError, Range, choose, first_line
from samdiffsr.sampling.ranges import STEPS

# The prediction_type that makes a scheduler read `ModulatedProcess.to_plain` of each target as what it is.
PREDICTION_TYPE = {
    "posterior_noise": "epsilon",
    "marginal_noise": "epsilon",
    "sample": "sample",
    "velocity": "sample",
}
# Names, for diffusers imports a class when it is asked for it, and some of them bring scipy.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "lcm": ("LCMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    "unipc": ("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
}
CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
THRESHOLD = {"thresholding": True, "sample_max_value": 1.0}  # dynamic thresholding that may not exceed 1 is clipping
# The classes that the tests sample with, and the settings with which each clips x_0 to [-1, 1].
TESTED: dict[str, dict[str, Any]] = {
    "DDPMScheduler": CLIP,
    "DDPMParallelScheduler": CLIP,
    "DDIMScheduler": CLIP,
    "DDIMParallelScheduler": CLIP,
    "LCMScheduler": CLIP,
    "DPMSolverMultistepScheduler": THRESHOLD,
    "UniPCMultistepScheduler": THRESHOLD,
    "DEISMultistepScheduler": THRESHOLD,
    "SASolverScheduler": THRESHOLD,
    "EulerDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
}
REFUSED = {
    "IPNDMScheduler": "it ignores the model's betas",
    "DDIMInverseScheduler": "it adds noise instead of removing it",
    "DPMSolverMultistepInverseScheduler": "it adds noise instead of removing it",
    "HeliosScheduler": "it is made for flow matching",
    "HeliosDMDScheduler": "it is made for flow matching",
}
MOST_AMPLIFIED = 10.0  # of an error in the noise when it becomes one in x_0, where nothing clips that

Place = tuple[str, int | None]  # an attribute of a scheduler, and an index if that is a list


def make_scheduler(cls: type, schedule: NoiseSchedule, target: str, *, estimated: bool = False, **options: Any) -> Any:
    """A stock diffusers scheduler of class `cls` on our table of betas that reads predictions of `target` correctly.

    Clipping of x_0 to [-1, 1] is on wherever it is valid and the scheduler has it.

    Args:
        estimated: sampling will have an estimate of the structure map; then x_0 of "posterior_noise" is unbiased too.
        options: arguments of `cls`; they win.
    """
    known = inspect.signature(cls.__init__).parameters
    clips = target != "posterior_noise" or estimated
    if "clip_sample" in known:
        options = {"clip_sample": clips} | options
    elif "thresholding" in known and clips:
        options = THRESHOLD | options
    if "original_inference_steps" in known:  # LCMScheduler can take no more steps than these, 50 by default
        options.setdefault("original_inference_steps", len(schedule))
    return cls(
        num_train_timesteps=len(schedule),
        trained_betas=schedule.betas.tolist(),
        prediction_type=choose(target, PREDICTION_TYPE, "target"),
        **options,
    )


def named_scheduler(name: str, schedule: NoiseSchedule, target: str, *, estimated: bool = False) -> Any:
    """The scheduler of that name on our table of betas; ConfigError names the choices."""
    kind, options = choose(name, SCHEDULERS, "scheduler")
    return make_scheduler(getattr(diffusers, kind), schedule, target, estimated=estimated, **options)


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """The betas that a scheduler was made with.

    Raises:
        ConfigError: it has none, or not one for each of its time steps.
    """
    kind, total = type(scheduler).__name__, scheduler.config.get("num_train_timesteps")
    trained, betas = scheduler.config.get("trained_betas"), getattr(scheduler, "betas", None)
    if betas is None or total is None:
        raise ConfigError(f"{kind} cannot sample this model, for it has no betas; choose another scheduler.")
    betas = betas if trained is None else trained
    if len(betas) != total:
        raise ConfigError(f"the scheduler has {len(betas)} betas, but num_train_timesteps is {total}.")
    return NoiseSchedule(torch.as_tensor(betas, dtype=torch.float64))


def check_scheduler(scheduler: Any, process: ModulatedProcess, steps: int, *, estimated: bool) -> str | None:
    """Refuse a scheduler that would misread the model, before any work; a warning where nobody knows.

    Args:
        process: what the model was trained on.
        steps: number of sampling steps.
        estimated: whether there is an estimate of the structure map.

    Returns:
        None, or a sentence without its full stop that the caller should show.

    Raises:
        ConfigError: with what to choose instead.
    """
    kind, config, target = type(scheduler).__name__, scheduler.config, process.target
    if kind in REFUSED:
        raise ConfigError(f"{kind} cannot sample this model, for {REFUSED[kind]}; choose one of {', '.join(TESTED)}.")
    schedule, total = schedule_of(scheduler), len(process.schedule)
    if len(schedule) != total or not torch.allclose(schedule.betas, process.schedule.betas, rtol=1e-4, atol=1e-7):
        raise ConfigError(
            f"the betas of {kind} are not those that the model was trained with; build it with "
            "from_config(pipe.scheduler.config)."
        )
    Range("num_inference_steps", STEPS.least, total, whole=True).check(steps)
    wanted, found = PREDICTION_TYPE[target], config.get("prediction_type")
    if found != wanted:
        raise ConfigError(
            f"{kind} has prediction_type {found!r}, but a model that predicts {target!r} needs {wanted!r}; "
            f"build it with make_scheduler or from_config(..., prediction_type={wanted!r})."
        )
    clips = bool(config.get("clip_sample") or config.get("thresholding"))
    if target == "posterior_noise" and not estimated:
        if not isinstance(scheduler, diffusers.DDPMScheduler) or clips or steps != total:
            raise ConfigError(
                "without an estimate of the structure map, a model that predicts 'posterior_noise' can only be sampled by "
                f"DDPMScheduler with clip_sample=False in all {total} steps (its x_0 is biased), got {kind} in {steps} steps."
            )
        return None
    if kind not in TESTED:
        return f"{kind} is not one of the schedulers that were tested ({', '.join(TESTED)}): look at the result"
    amplified = float(torch.sqrt(1 / process.schedule.alpha_bars[-1] - 1))
    if wanted == "epsilon" and not clips and amplified > MOST_AMPLIFIED:
        how = " and ".join(f"{name}={value}" for name, value in TESTED[kind].items()) or "another scheduler"
        return (
            f"this {kind} does not clip x_0, where errors of the predicted noise grow {amplified:.0f} times: use {how}"
        )
    return None


def set_timesteps(scheduler: Any, steps: int, device: torch.device) -> None:
    """Prepare for `steps` steps; ConfigError where the scheduler refuses that many."""
    try:
        scheduler.set_timesteps(steps, device=device)
    except ValueError as error:
        raise ConfigError(f"{type(scheduler).__name__} refuses {steps} steps: {first_line(error)}") from None


@contextmanager
def explained(scheduler: Any) -> Iterator[None]:
    """Schedulers that cannot sample a model say so each in its own way."""
    try:
        yield
    except (NotImplementedError, ValueError, AttributeError, TypeError, IndexError) as error:
        kind = type(scheduler).__name__
        raise ConfigError(f"{kind} cannot sample this model: {first_line(error)}") from error


def takes_generator(scheduler: Any) -> bool:
    """Whether `step` draws noise from a generator it is given."""
    return "generator" in inspect.signature(scheduler.step).parameters


def twin(scheduler: Any) -> Any:
    """An independent scheduler at the same point; tables, which no scheduler changes in place, are shared."""
    other = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            setattr(other, name, list(value))
    return other


def remembered(scheduler: Any) -> Iterator[Place]:
    """Where a scheduler holds tensors (N, C, H, W): the memory of multistep solvers."""
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.ndim == 4:
            yield name, None
        elif isinstance(value, list):
            yield from (
                (name, index) for index, item in enumerate(value) if isinstance(item, Tensor) and item.ndim == 4
            )


def use_scheduler(pipe: Any, name: str) -> None:
    """Let `pipe` sample with another scheduler on the betas it was trained with."""
    estimated = pipe.denoiser.structure_head is not None
    pipe.scheduler = named_scheduler(name, pipe.process.schedule, pipe.config["target"], estimated=estimated)
