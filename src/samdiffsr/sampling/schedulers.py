"""Samplers by name: stock diffusers schedulers, each with the settings that suit few steps."""

import inspect
from typing import Any

import diffusers
import torch

from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.errors import choose

# What a scheduler must be told so that it reads a prediction of each target as what it is.
PREDICTION_TYPE = {
    "posterior_noise": "epsilon",
    "marginal_noise": "epsilon",
    "sample": "sample",
    "velocity": "v_prediction",
}
SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "ddpm": (diffusers.DDPMScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {"timestep_spacing": "trailing"}),
    "lcm": (diffusers.LCMScheduler, {}),
    "dpmsolver++": (diffusers.DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
}


def make_scheduler(cls: type, schedule: NoiseSchedule, target: str, **options: Any) -> Any:
    """A stock diffusers scheduler of class `cls` on our table of betas that reads predictions of `target` aright.

    Clipping of x_0 to [-1, 1] is on wherever it is valid and the scheduler knows it.
    """
    known = inspect.signature(cls.__init__).parameters
    if "clip_sample" in known:
        options.setdefault("clip_sample", target != "posterior_noise")
    if "original_inference_steps" in known:  # LCMScheduler can take no more steps than these, 50 by default
        options.setdefault("original_inference_steps", len(schedule))
    return cls(
        num_train_timesteps=len(schedule),
        trained_betas=schedule.betas.tolist(),
        prediction_type=choose(target, PREDICTION_TYPE, "target"),
        **options,
    )


def named_scheduler(name: str, schedule: NoiseSchedule, target: str) -> Any:
    """The scheduler of that name on our table of betas; ConfigError names the choices."""
    cls, options = choose(name, SCHEDULERS, "scheduler")
    return make_scheduler(cls, schedule, target, **options)


def use_scheduler(pipe: Any, name: str) -> None:
    """Let `pipe` sample with another scheduler on the betas it was trained with."""
    trained = pipe.scheduler.config.get("trained_betas")
    betas = torch.as_tensor(pipe.scheduler.betas if trained is None else trained, dtype=torch.float64)
    pipe.scheduler = named_scheduler(name, NoiseSchedule(betas), pipe.config["target"])
