"""The configuration of a training run: frozen, validated, unknown keys are errors."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from samdiffsr.data.dataset import Degrade
from samdiffsr.data.degrade import CLEAN_SHARE
from samdiffsr.diffusion.process import ModulatedProcess, Shift, Target
from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.errors import ConfigError
from samdiffsr.sampling.ranges import DETAIL
from samdiffsr.structure import Encoding, MeanOver, Normalise, Overlap

METADATA = "samdiffsr_config"  # the key under which weights carry the configuration that made them


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Frozen):
    """How crops are drawn."""

    crop_lr: int = Field(32, ge=1, description="side of a crop in LR pixels")
    batch: int = Field(8, ge=1, description="crops per update, over all processes")
    accumulate: int = Field(1, ge=1, description="micro-batches that each process computes in turn, to save memory")
    candidates: int = Field(2, ge=1, description="crops drawn per example; the one with most texture is kept")
    crops_per_image: int = Field(1, ge=1, description="examples in a row that come from one image")
    flips: bool = Field(True, description="use the 8 flips and rotations")
    degrade: Degrade = Field(
        "none", description="real: blur, noise and JPEG in most of the inputs, see docs/training.md"
    )
    clean_share: float = Field(
        CLEAN_SHARE, ge=0, le=1, description="of the inputs that degrade=real leaves exact bicubic reductions"
    )
    synthetic: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of a folder with your own LR images, the share of inputs made from the photographs all the same",
    )
    workers: int = Field(1, ge=0, description="threads that prepare batches ahead; 0: none, in the loop itself")


class OptimConfig(_Frozen):
    """An optimiser with linear warm-up, then a schedule; weights are averaged (EMA)."""

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: Muon for convolutions between the first and the last, AdamW for the rest and for heads",
    )
    updates: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Literal["cosine", "step", "constant"] = Field("cosine", description="after the warm-up; cosine ends at 0")
    step_every: int | None = Field(None, ge=1, description="updates between two steps of schedule 'step'")
    step_factor: float = Field(0.5, gt=0, le=1, description="what each step multiplies the learning rate by")
    warmup: int = Field(0, ge=0, description="updates of linear warm-up")
    beta2: float = Field(0.999, gt=0, lt=1, description="decay of AdamW's second moment")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: no limit")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="0: no averaging")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the forward pass; weights stay float32"
    )
    divergence: float = Field(
        10.0, gt=1, description="stop when the averaged pixel loss exceeds its lowest value by this factor"
    )

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if self.warmup >= self.updates:
            raise ValueError(f"optim.warmup is {self.warmup}, but must be below optim.updates, {self.updates}")
        if (self.schedule == "step") != (self.step_every is not None):
            raise ValueError("optim.schedule 'step' needs optim.step_every, and the others do not take it")
        return self


class LossConfig(_Frozen):
    """A pixel loss; if weighted above 0, a distance of deep features of the HR estimate, and an adversarial term."""

    pixel: Literal["l1", "l2"] = "l1"
    features_weight: float = Field(0.0, ge=0)
    features_file: Path | None = Field(None, description="weights of a VGG16, see docs/training.md")
    efficientnet_weight: float = Field(
        0.0, ge=0, description="of a distance of features of EfficientNet-Lite0, which `samdiffsr[train]` brings"
    )
    adversarial_weight: float = Field(0.0, ge=0)
    adversarial: Literal["softplus", "hinge", "relativistic"] = Field(
        "softplus", description="form of the adversarial loss"
    )
    adversarial_start: int = Field(
        0, ge=0, description="updates before the term counts; the discriminator learns before"
    )
    discriminator: Literal["patch", "projected"] = Field(
        "patch", description="projected: heads on frozen features of EfficientNet-Lite0 beside the patches"
    )
    discriminator_width: int = Field(48, ge=1, description="channels of the discriminator's first layer")
    discriminator_rate: float = Field(2e-4, gt=0, description="its learning rate, under the same warm-up and schedule")
    level_gain: float = Field(
        0.0, ge=0, description="of an example, feature distance and adversarial term count 1 + level_gain x its level"
    )
    remember: bool = Field(
        False,
        description="beside your own LR images: inputs made from the photographs (data.synthetic) teach what the network at "
        "its start made of them, not the photograph",
    )

    @model_validator(mode="after")
    def _check(self) -> "LossConfig":
        if (self.features_weight > 0) != (self.features_file is not None):
            raise ValueError("loss.features_weight above 0 needs loss.features_file, and the file needs the weight")
        return self


class EncoderLossConfig(LossConfig):
    """The loss of stage 1: the pixel loss is a weighted sum over "hr" and names given to `samdiffsr prepare --targets`."""

    targets: dict[str, Annotated[float, Field(gt=0)]] = Field({"hr": 1.0}, min_length=1, description="name: weight")
    level_weight: float = Field(
        0.1,
        gt=0,
        description="of the squared error of the root of the estimated level, for an encoder that takes the level",
    )


Map = Literal["regions", "position", "constant", "other", "borders"]


class StructureConfig(_Frozen):
    """The structure maps that a stage learns from; the prepared folder must have been made so, but for `map`."""

    map: Map = Field(
        "regions", description="what is learnt from; all but regions are for studies, see docs/training.md"
    )
    encoding: Encoding = "rope"
    mean_over: MeanOver = "region"
    overlap: Overlap = "sum"
    normalise: Normalise = "none"

    @model_validator(mode="after")
    def _check(self) -> "StructureConfig":
        if self.map == "position" and self.encoding == "cosine":
            raise ValueError(
                "map 'position' needs an encoding of places, but 'cosine' compares areas; choose rope, sincos or linear"
            )
        if self.map == "position" and self.normalise != "none":
            raise ValueError(
                f"normalise {self.normalise!r} is of the maps of regions, but map is 'position'; choose none"
            )
        return self

    def check_prepared(self, folder: Path, made_with: dict[str, str]) -> None:
        """Refuse a prepared folder whose maps were made with other options of `samdiffsr prepare`."""
        for key in ("encoding", "mean_over", "overlap", "normalise"):
            wanted, given = getattr(self, key), made_with.get(key, "none")  # normalise may be missing
            if given != wanted:
                raise ConfigError(
                    f"diffusion.structure.{key} is {wanted!r}, but folder {folder} was prepared with {given!r}: prepare the "
                    f"photographs with --{key.replace('_', '-')} {wanted}, or set diffusion.structure.{key}={given}."
                )


class StageConfig(_Frozen):
    """The fields of both stages. `network` holds the arguments of the network class."""

    network: dict[str, Any] = {}
    data: DataConfig = DataConfig()  # pyright: ignore[reportCallIssue]
    optim: OptimConfig
    loss: LossConfig = LossConfig()  # pyright: ignore[reportCallIssue]
    start: Path | None = Field(
        None,
        description="folder of an encoder, or of a pipeline for its denoiser, to train further; default: a new one",
    )
    save_every: int = Field(500, ge=1, description="updates between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    log_every: int = Field(
        1, ge=1, description="updates between two looks at the loss; each look lets a GPU run dry for a moment"
    )

    @model_validator(mode="after")
    def _check_start(self) -> "StageConfig":
        if self.loss.remember and self.start is None:
            raise ValueError("loss.remember is true, but there is no start: a new network has nothing to remember")
        return self


class EncoderConfig(StageConfig):
    """Stage 1."""

    loss: EncoderLossConfig = EncoderLossConfig()  # pyright: ignore[reportCallIssue]


class DiffusionConfig(StageConfig):
    """The modulated process and what is diffused: clip(residual_scale (hr - base), -1, 1)."""

    structure: StructureConfig = StructureConfig()  # pyright: ignore[reportCallIssue]
    structure_weight: float = Field(
        0.0,
        ge=0,
        description="of the loss of the structure head, without which some shifts cannot be sampled; 0: no head",
    )
    timesteps: int = Field(100, ge=1)
    schedule: Literal["cosine", "linear"] = "cosine"
    max_beta: float = Field(0.999, gt=0, lt=1, description="beta_t is cut off there")
    shift: Shift = "released"
    target: Target = "marginal_noise"
    base: Literal["bicubic", "encoder"] = "bicubic"
    residual_scale: float = Field(2.0, gt=0)
    last_step_share: float = Field(
        0.0, ge=0, le=1, description="share of examples at t = T, where sampling starts, beside those drawn uniformly"
    )
    rollout: float = Field(
        0.0, ge=0, le=1, description="share of examples whose x_t is made from the network's own first estimate"
    )
    scheduler: Literal["ddpm", "ddim", "lcm", "dpmsolver++", "unipc"] = Field(
        "ddpm", description="stored with the model"
    )
    steps: int = Field(100, ge=1, description="default number of sampling steps, stored with the model")
    detail: float = Field(
        1.0, ge=DETAIL.least, le=DETAIL.most, description="default share of the sampled residual, stored with the model"
    )
    encoder: Path | None = Field(
        None, description="folder of a trained encoder; default: the one of this run's stage 1"
    )
    encoder_rate: float = Field(
        0.0,
        ge=0,
        description="learning rate of the encoder as a factor of the denoiser's, for base 'bicubic'; 0: the encoder is frozen",
    )

    @model_validator(mode="after")
    def _check(self) -> "DiffusionConfig":
        try:
            if not self.structure_weight:
                self.process().check_without_estimate()
        except ConfigError as error:
            raise ValueError(f"{str(error).removesuffix('.')}, or with structure_weight above 0") from None
        if self.target == "posterior_noise" and not self.structure_weight:
            if (
                self.loss.features_weight
                or self.loss.efficientnet_weight
                or self.loss.adversarial_weight
                or self.rollout
            ):
                raise ValueError(
                    "features_weight, efficientnet_weight, adversarial_weight and rollout need an estimate of x_0; "
                    "target 'posterior_noise' has none without a structure head (structure_weight)"
                )
            if self.scheduler != "ddpm" or self.steps != self.timesteps:
                raise ValueError(
                    "target 'posterior_noise' can only be sampled by 'ddpm' in all timesteps without a structure head "
                    "(structure_weight)"
                )
        if self.encoder_rate and self.base == "encoder":
            raise ValueError(
                f"encoder_rate is {self.encoder_rate}, but base is 'encoder': the layers that make the base get no gradient in "
                "stage 2 while those before them change, so the base decays; choose encoder_rate 0 or base 'bicubic'"
            )
        if self.network.get("structure_input") and not self.structure_weight:
            raise ValueError(
                "network.structure_input is true, so sampling needs an estimate of the structure map; train a structure head "
                "too, with structure_weight above 0"
            )
        if self.steps > self.timesteps:
            raise ValueError(f"steps is {self.steps}, but must be at most timesteps, {self.timesteps}")
        return self

    def process(self) -> ModulatedProcess:
        """The target of the denoiser."""
        schedule = NoiseSchedule.named(self.schedule, self.timesteps, max_beta=self.max_beta)
        return ModulatedProcess(schedule, self.shift, self.target)

    @property
    def needs_position(self) -> bool:
        """Whether batches must hold the position map: for the structure head, or in place of the structure map."""
        return self.structure_weight > 0 or self.structure.map == "position"

    @property
    def warning(self) -> str | None:
        """A sentence on a configuration that is valid, but will hardly sample well."""
        if self.target != "posterior_noise" or self.structure_weight:
            return None
        factor = float(self.process().schedule.alphas[-1]) ** -0.5
        return (
            "without a structure head, x_0 of target 'posterior_noise' cannot be clipped, and the first sampling step "
            f"multiplies the network's error by 1/sqrt(alpha_T) = {factor:.3g}; structure_weight above 0 trains a head"
        )


def further_targets(stage: StageConfig) -> list[str]:
    """The names of the targets that a prepared folder must have for a stage besides hr, lr and structure."""
    return [name for name in stage.loss.targets if name != "hr"] if isinstance(stage, EncoderConfig) else []


class ValidationConfig(_Frozen):
    """Scores of the averaged weights on a folder of HR images, while training goes on."""

    photos: Path | None = Field(None, description="folder of HR images; null: no validation")
    every: int = Field(2000, ge=1, description="updates between validations; the last update is always followed by one")
    images: int = Field(20, ge=1, description="at most so many, the first by name")
    side: int = Field(512, ge=32, description="the central square of so many HR pixels is used, or what there is of it")
    panel: int = Field(4, ge=0, description="images drawn as LR | ours | HR")
    distance: bool = Field(False, description="the squeeze distance too")
    best: Literal["psnr_y", "ssim_y", "distance"] = Field(
        "psnr_y", description="the score that says which model is best"
    )

    @model_validator(mode="after")
    def _check(self) -> "ValidationConfig":
        if self.best == "distance" and not self.distance:
            raise ValueError("validation.best 'distance' needs validation.distance=true")
        return self


class TrainConfig(_Frozen):
    """A run of two stages: `output`/encoder, then `output`/diffusion, with the finished pipeline in `output`/model."""

    family: Literal["light", "paper"]
    photos: Path = Field(description="a prepared folder")
    output: Path
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu"] = "auto"
    tensorboard: bool = Field(True, description="write TensorBoard files beside metrics.jsonl")
    validation: ValidationConfig = ValidationConfig()  # pyright: ignore[reportCallIssue]
    encoder: EncoderConfig
    diffusion: DiffusionConfig


PRESETS = Path(__file__).parents[1] / "presets"


def _read(source: str) -> Any:
    """The tree of a preset by name, of the configuration inside a safetensors file, or of a YAML file."""
    preset = PRESETS / f"{source}.yaml"
    try:
        if source.endswith(".safetensors"):
            with safe_open(source, "pt") as file:
                return json.loads(((file.metadata() or {}).get(METADATA)) or "null")
        return yaml.safe_load((preset if preset.is_file() else Path(source)).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, SafetensorError) as error:
        raise ConfigError(f"configuration {source} cannot be read: {error}.") from None


def load_config(source: Path | str, overrides: list[str]) -> TrainConfig:
    """Read a configuration and apply overrides `section.key=value` (the value is YAML too).

    `start` names a finished model to train further: default, a pipeline folder, or user/repo of the Hub. Its networks, process
    and settings are taken over where the configuration leaves them open.

    Args:
        source: a YAML file, a preset's name, or weights (.safetensors) that a run wrote, which carry its configuration.

    Raises:
        ConfigError: naming the key that is unknown, missing or of the wrong type.
        CheckpointError: there is no such model to start from.
    """
    tree = _read(str(source))
    if tree is None and str(source).endswith(".safetensors"):
        raise ConfigError(f"weights {source} carry no configuration; give a preset or a YAML file.")
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration {source} must be a YAML mapping, got {type(tree).__name__}.")
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
        try:
            node[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"the value of override {override!r} is not valid YAML.") from None
    start = tree.pop("start", None)  # the model's parts take its place
    if start is not None:
        from samdiffsr.training.start import take_over

        tree = take_over(str(start), tree)
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the configuration"
        problem = first["msg"].removeprefix("Value error, ").rstrip(".")
        # A whole section as the wrong value says nothing.
        got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r:.80})"
        raise ConfigError(f"{key} in {source}: {problem}{got}.") from None
