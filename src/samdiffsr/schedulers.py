"""Samplers by name: stock diffusers schedulers, each with the settings that suit few steps."""

from typing import Any

import diffusers
import torch

from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.errors import choose
from samdiffsr.pipeline import SamDiffSRPipeline, make_scheduler

SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "ddpm": (diffusers.DDPMScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {"timestep_spacing": "trailing"}),
    "lcm": (diffusers.LCMScheduler, {}),
    "dpmsolver++": (diffusers.DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
}


def named_scheduler(name: str, schedule: NoiseSchedule, target: str) -> Any:
    """The scheduler of that name on our table of betas; ConfigError names the choices."""
    cls, options = choose(name, SCHEDULERS, "scheduler")
    return make_scheduler(cls, schedule, target, **options)


def use_scheduler(pipe: SamDiffSRPipeline, name: str) -> None:
    """Let `pipe` sample with another scheduler on the betas it was trained with."""
    trained = pipe.scheduler.config.get("trained_betas")
    betas = torch.as_tensor(pipe.scheduler.betas if trained is None else trained, dtype=torch.float64)
    pipe.scheduler = named_scheduler(name, NoiseSchedule(betas), pipe.config["target"])
