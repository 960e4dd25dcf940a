"""A run that starts from a finished model: its networks, process and settings become those of the configuration."""

from pathlib import Path
from typing import Any

import torch

from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.errors import CheckpointError, ConfigError
from samdiffsr.load import load_model
from samdiffsr.models.encoder import RRDBEncoder
from samdiffsr.models.hub import fetch, is_hub_name
from samdiffsr.models.level import takes_level
from samdiffsr.models.light import LightEncoder
from samdiffsr.models.weights import DEFAULT_MODEL
from samdiffsr.sampling.schedulers import SCHEDULERS
from samdiffsr.structure import OF_SAMPLING

FAMILIES = {LightEncoder: "light", RRDBEncoder: "paper"}
STRUCTURE_WEIGHT = 0.1  # of a model that has a structure head, so that the head learns on

Tree = dict[str, Any]


def take_over(name: str, tree: Tree) -> Tree:
    """The configuration `tree` with what it leaves open filled in from a finished model.

    Args:
        name: default, a pipeline folder, or user/repo of the Hub.

    Raises:
        CheckpointError: there is no such folder, or it is damaged.
        ConfigError: a model that no configuration can describe.
    """
    folder = DEFAULT_MODEL if name == "default" else Path(fetch(name)) if is_hub_name(name) else Path(name)
    if folder.suffix == ".ckpt":
        raise CheckpointError(f"start is {name}: make a folder of it first with samdiffsr convert {name} -o FOLDER.")
    pipe = load_model(folder if folder is DEFAULT_MODEL else name, "cpu")
    if pipe.config["lr_divisor"] != 255:
        raise ConfigError(f"start is {name}, which was converted with --released-preprocessing: convert it without.")
    degrade = {"degrade": "real"} if takes_level(pipe.encoder) else {}  # or it would forget what the levels mean
    diffusion = {key: pipe.config[key] for key in ("base", "residual_scale", "shift", "target", "steps", "detail")}
    diffusion |= _schedule(name, pipe.process.schedule) | {"scheduler": _scheduler(name, pipe.scheduler)}
    if pipe.denoiser.structure_head is not None:
        diffusion["structure_weight"] = STRUCTURE_WEIGHT
    found = {
        "family": FAMILIES[type(pipe.encoder)],
        "encoder": {"start": str(folder / "encoder"), "data": degrade},
        "diffusion": diffusion
        | {"start": str(folder), "data": degrade, "structure": {key: pipe.config[key] for key in OF_SAMPLING}},
    }
    return _filled(tree, found)


def _filled(tree: Tree, found: Tree) -> Tree:
    """`tree`, and of `found` what it does not have, section by section."""
    merged = found | tree
    for key in found.keys() & tree.keys():
        if isinstance(found[key], dict) and isinstance(tree[key], dict):
            merged[key] = _filled(tree[key], found[key])
    return merged


def _schedule(name: str, schedule: NoiseSchedule) -> Tree:
    """The fields of the configuration that make these betas."""
    steps = len(schedule)
    for kind in ("cosine", "linear"):
        for most in (0.999, float(schedule.betas.max())):
            if torch.allclose(NoiseSchedule.named(kind, steps, max_beta=most).betas, schedule.betas, rtol=1e-6, atol=0):
                return {"schedule": kind, "timesteps": steps, "max_beta": most}
    raise ConfigError(
        f"start is {name}, whose betas are neither the cosine nor the linear schedule: it cannot be trained."
    )


def _scheduler(name: str, scheduler: Any) -> str:
    for known, (kind, _) in SCHEDULERS.items():
        if type(scheduler).__name__ == kind:
            return known
    raise ConfigError(
        f"start is {name}, whose scheduler {type(scheduler).__name__} is none of {', '.join(SCHEDULERS)}: "
        "use another one with --set diffusion.scheduler=lcm."
    )
