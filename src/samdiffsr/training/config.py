"""The configuration of a training run: frozen, validated, unknown keys are errors."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from samdiffsr.diffusion.process import Shift, Target
from samdiffsr.errors import ConfigError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Frozen):
    """How crops are drawn."""

    crop_lr: int = Field(32, ge=1, description="side of a crop in LR pixels")
    batch: int = Field(8, ge=1, description="crops per update")
    candidates: int = Field(2, ge=1, description="crops drawn per example; the one with most texture is kept")
    flips: bool = Field(True, description="use the 8 flips and rotations")


class OptimConfig(_Frozen):
    """AdamW with linear warm-up and cosine decay to zero."""

    updates: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(0, ge=0, description="updates of linear warm-up")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(0.999, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the forward pass; weights stay float32"
    )

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if self.warmup >= self.updates:
            raise ValueError(f"optim.warmup is {self.warmup}, but must be below optim.updates, {self.updates}")
        return self


class LossConfig(_Frozen):
    """A pixel loss and, if `features_weight` > 0, a distance of deep features of the HR estimate."""

    pixel: Literal["l1", "l2"] = "l1"
    features_weight: float = Field(0.0, ge=0)
    features_file: Path | None = Field(None, description="safetensors of a VGG16's first three stages")

    @model_validator(mode="after")
    def _check(self) -> "LossConfig":
        if (self.features_weight > 0) != (self.features_file is not None):
            raise ValueError("loss.features_weight above 0 needs loss.features_file, and the file needs the weight")
        return self


class StageConfig(_Frozen):
    """What both stages have. `network` holds the arguments of the network class."""

    network: dict[str, Any] = {}
    data: DataConfig = DataConfig()  # pyright: ignore[reportCallIssue]
    optim: OptimConfig
    loss: LossConfig = LossConfig()  # pyright: ignore[reportCallIssue]
    save_every: int = Field(500, ge=1, description="updates between checkpoints")


class DiffusionConfig(StageConfig):
    """The modulated process and what is diffused: clip(residual_scale (hr - base), -1, 1)."""

    timesteps: int = Field(100, ge=1)
    shift: Shift = "paper"
    target: Target = "marginal_noise"
    base: Literal["bicubic", "encoder"] = "bicubic"
    residual_scale: float = Field(2.0, gt=0)
    rollout: float = Field(
        0.0, ge=0, le=1, description="share of examples whose x_t is made from the network's own first estimate"
    )
    scheduler: Literal["ddpm", "ddim", "lcm", "dpmsolver++"] = Field("ddpm", description="stored with the model")
    steps: int = Field(100, ge=1, description="default number of sampling steps, stored with the model")
    encoder: Path | None = Field(
        None, description="folder of a trained encoder; default: the one of this run's stage 1"
    )
    start: Path | None = Field(
        None, description="pipeline folder whose denoiser is trained further; default: a new one"
    )

    @model_validator(mode="after")
    def _check(self) -> "DiffusionConfig":
        if self.target == "posterior_noise":
            if self.loss.features_weight or self.rollout:
                raise ValueError(
                    "features_weight and rollout need an estimate of x_0; target 'posterior_noise' has none"
                )
            if self.scheduler != "ddpm" or self.steps != self.timesteps:
                raise ValueError("target 'posterior_noise' can only be sampled by 'ddpm' in all timesteps")
        if self.steps > self.timesteps:
            raise ValueError(f"steps is {self.steps}, but must be at most timesteps, {self.timesteps}")
        return self


class TrainConfig(_Frozen):
    """A run of two stages: `output`/encoder, then `output`/diffusion, with the finished pipeline in `output`/model."""

    family: Literal["light", "paper"]
    photos: Path = Field(description="a prepared folder")
    output: Path
    seed: int = Field(0, ge=0)
    encoder: StageConfig
    diffusion: DiffusionConfig


PRESETS = Path(__file__).parents[1] / "presets"


def load_config(file: Path | str, overrides: list[str]) -> TrainConfig:
    """Read a YAML configuration, or a preset by name, and apply overrides `section.key=value` (the value is YAML too).

    Raises:
        ConfigError: naming the key that is unknown, missing or of the wrong type.
    """
    preset = PRESETS / f"{file}.yaml"
    file = preset if preset.is_file() else Path(file)
    try:
        tree = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"configuration {file} cannot be read: {error}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration {file} must be a YAML mapping, got {type(tree).__name__}.")
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} must have the form section.key=value.")
        *sections, key = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {override!r} goes through {section!r}, which is not a section.")
        node[key] = yaml.safe_load(value)
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the configuration"
        raise ConfigError(f"{key} in {file}: {first['msg']} (got {first['input']!r:.80}).") from None
