"""Read the checkpoints released with the paper and turn them into a pipeline.

The released form: a `torch.save` pickle, legacy or zip, of `{"state_dict": {"model": {name: tensor}}, "global_step":
int, ...}`. The full model holds twelve schedule buffers, the U-Net under `denoise_fn.` and the encoder under `rrdb.`;
the encoder's own pretraining file holds the encoder's names without a prefix. Names may carry `module.` in front
(data-parallel training).

Nothing but tensors and plain values is unpickled, and nothing is guessed: a tensor that is missing, unknown, of another
shape or not finite is an error that names it.
"""

import os
import pickle
import re
import struct
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from samdiffsr.errors import CheckpointError, ConfigError
from samdiffsr.models.encoder import RRDBEncoder
from samdiffsr.models.unet import ConditionalUNet
from samdiffsr.pipeline import SamDiffSRPipeline

ENCODER, DENOISER, PARALLEL = "rrdb.", "denoise_fn.", "module."
BLOCK, LEVEL = "RRDB_trunk.{}.RDB?.conv?.*", "downs.{}.?.block?.block.1.*"
SCHEDULE_TOLERANCE = 1e-5  # absolute below 1, relative above; float32 tables agree to 6e-7 (measured)
NAMED = 8  # so many problems are spelled out in one message

# What torch.load was seen to raise on truncated files and on files with flipped bytes.
_DAMAGE = (
    pickle.UnpicklingError, EOFError, struct.error, LookupError, ValueError, TypeError, RuntimeError, AttributeError,
    AssertionError, OverflowError, OSError,
)  # fmt: skip

Tensors = dict[str, Tensor]
Model = TypeVar("Model", RRDBEncoder, ConditionalUNet)


@dataclass(frozen=True, eq=False)
class ReleasedCheckpoint:
    """Everything a released checkpoint says about the model.

    Attributes:
        encoder: float32, on the CPU, in evaluation mode.
        denoiser: float32, on the CPU, in evaluation mode.
        betas: (T,) float64, strictly between 0 and 1; exactly the file's float32 numbers.
        global_step: updates the model was trained for, or None if the file does not say.
    """

    encoder: RRDBEncoder
    denoiser: ConditionalUNet
    betas: Tensor
    global_step: int | None


def read_released(path: str | os.PathLike[str]) -> ReleasedCheckpoint:
    """Read a full released checkpoint (`model_ckpt_steps_400000.ckpt`); every size comes from the tensors themselves.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind, would run code, or its tensors do not fit.
    """
    file = Path(path)
    return _full_model(file, *_read_tensors(file))


def _full_model(file: Path, tensors: Tensors, global_step: int | None) -> ReleasedCheckpoint:
    encoder_part, denoiser_part = _with_prefix(tensors, ENCODER), _with_prefix(tensors, DENOISER)
    if not denoiser_part:
        hint = "; use read_released_encoder for an encoder's own file" if _count(tensors, BLOCK) else ""
        raise CheckpointError(f"{file} is not a full released model: it holds no tensor under {DENOISER!r}{hint}.")
    schedule = {name: tensor for name, tensor in tensors.items() if not name.startswith((ENCODER, DENOISER))}
    betas = _check_schedule(schedule, file)
    encoder = _build(RRDBEncoder, _encoder_sizes(encoder_part, file, ENCODER), encoder_part, file, ENCODER)
    shared = {"feature_channels": encoder.feature_channels, "scale": encoder.scale}
    sizes = _denoiser_sizes(denoiser_part, file) | shared
    denoiser = _build(ConditionalUNet, sizes, denoiser_part, file, DENOISER)
    return ReleasedCheckpoint(encoder=encoder, denoiser=denoiser, betas=betas, global_step=global_step)


def read_released_encoder(path: str | os.PathLike[str]) -> RRDBEncoder:
    """Read the encoder's own pretraining file (`rrdb_div2k.ckpt`); float32, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: as `read_released`, and for a full model, whose encoder is `read_released(path).encoder`.
    """
    file = Path(path)
    tensors, _ = _read_tensors(file)
    if _is_full(tensors):
        raise CheckpointError(f"{file} is a full released model, not an encoder's own file; use read_released.")
    return _build(RRDBEncoder, _encoder_sizes(tensors, file, ""), tensors, file, "")


def load_released(path: str | os.PathLike[str], released_preprocessing: bool = False) -> SamDiffSRPipeline:
    """A pipeline that samples as the released code does: T ancestral steps, x_0 clipped, fixed small variance.

    Args:
        path: a full released checkpoint.
        released_preprocessing: upscale `lr / 256` as the released code does, 0.4 % too dark, instead of `lr / 255`.
            The encoder sees `lr / 255` either way (measured against the released code's output).

    Raises:
        CheckpointError: as `read_released`.
    """
    return _pipeline(read_released(path), released_preprocessing)


def load_any_released(
    path: str | os.PathLike[str], released_preprocessing: bool = False
) -> SamDiffSRPipeline | RRDBEncoder:
    """The pipeline of a full released checkpoint, or the encoder of the encoder's own file; see `load_released`.

    Raises:
        CheckpointError: as `read_released`.
        ConfigError: `released_preprocessing` for an encoder, which has no base to upscale.
    """
    file = Path(path)
    tensors, global_step = _read_tensors(file)
    if _is_full(tensors) or not _count(tensors, BLOCK):
        return _pipeline(_full_model(file, tensors, global_step), released_preprocessing)
    if released_preprocessing:
        raise ConfigError(
            f"{file} is an encoder's own file, so leave out --released-preprocessing: it has no effect there."
        )
    return _build(RRDBEncoder, _encoder_sizes(tensors, file, ""), tensors, file, "")


def _is_full(tensors: Tensors) -> bool:
    return any(name.startswith((ENCODER, DENOISER)) for name in tensors)


def _pipeline(released: ReleasedCheckpoint, released_preprocessing: bool) -> SamDiffSRPipeline:
    steps = len(released.betas)
    scheduler = DDPMScheduler(
        num_train_timesteps=steps,
        trained_betas=released.betas.tolist(),
        clip_sample=True,
        variance_type="fixed_small",
        prediction_type="epsilon",
    )
    pipe = SamDiffSRPipeline(
        encoder=released.encoder,
        denoiser=released.denoiser,
        scheduler=scheduler,
        base="bicubic",
        residual_scale=2.0,
        shift="released",
        target="marginal_noise",
        steps=steps,
        mean_over="image",
        lr_divisor=256 if released_preprocessing else 255,
    )
    try:
        pipe.process.check_without_estimate()  # the released networks have no structure head
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint cannot be sampled: {error}") from None
    return pipe


def _read_tensors(file: Path) -> tuple[Tensors, int | None]:
    """The named tensors, without `module.`, and the global step."""
    content = _unpickle(file)
    state = content.get("state_dict") if isinstance(content, dict) else None
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict) or not model:
        raise CheckpointError(f"{file} has no weights under 'state_dict' / 'model', so it is not in the released form.")
    tensors: Tensors = {}
    for name, tensor in model.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{file} has {name!r} among its weights, a {type(tensor).__name__} and no tensor.")
        short = name.removeprefix(PARALLEL)
        if short in tensors:
            raise CheckpointError(f"{file} holds {short!r} twice, with and without {PARALLEL!r} in front.")
        tensors[short] = tensor
    global_step = content.get("global_step")
    if global_step is not None and not isinstance(global_step, int):
        raise CheckpointError(f"{file} has the global_step {global_step!r}, which is not an integer.")
    return tensors, global_step


def _unpickle(file: Path) -> Any:
    """The content that `torch.save` wrote, restricted to tensors and plain values."""
    if not file.exists():
        raise CheckpointError(f"{file} does not exist.")
    if not file.is_file():
        raise CheckpointError(f"{file} is not a file; give the path of the checkpoint itself.")
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be opened: {error.strerror}.") from error
    if not start:
        raise CheckpointError(f"{file} is empty; download or copy it again.")
    if start != b"PK\x03\x04" and start[:1] != b"\x80":  # a zip archive, or a pickle of protocol 2 and later
        raise CheckpointError(f"{file} is not a PyTorch checkpoint: it starts with {start!r}.")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and culprit:
            raise CheckpointError(
                f"{file} is refused because it refers to {culprit[1]!r}, which could run code; only tensors and plain "
                "values are read."
            ) from error
        raise CheckpointError(
            f"{file} is truncated, damaged or not a PyTorch checkpoint ({type(error).__name__}); "
            "download or copy it again."
        ) from error


def _with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors under `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_schedule(tensors: Tensors, file: Path) -> Tensor:
    """The betas (T,) in float64, after every other buffer was found to agree with them."""
    steps = _vote(tensors, file, "", ("*alphas_cumprod*", 0))
    names = _schedule_tables(torch.empty(0), torch.empty(0))
    _compare(tensors, dict.fromkeys(names, torch.Size([steps])), file, "")
    betas = tensors["betas"].double()
    if betas.min() <= 0 or betas.max() >= 1:
        low, high = float(betas.min()), float(betas.max())
        raise CheckpointError(f"{file} has betas from {low:.6g} to {high:.6g}, but they must lie between 0 and 1.")
    for name, expected in _schedule_tables(betas, tensors["alphas_cumprod"].double()).items():
        error = (tensors[name].double() - expected).abs() / expected.abs().clamp(min=1)
        if not error.max() <= SCHEDULE_TOLERANCE:  # so written, NaN fails too
            step = int(error.argmax())
            raise CheckpointError(
                f"{file} contradicts itself: {name} is {float(tensors[name][step]):.6g} at step {step}, but its betas "
                f"give {float(expected[step]):.6g}."
            )
    return betas


def _schedule_tables(betas: Tensor, stored_abar: Tensor) -> Tensors:
    """The twelve released buffers as they follow from the betas (T,), in their dtype.

    The two reciprocals are taken of the stored abar: the last alpha, 0.001, is known only to 3e-5 of itself from a
    float32 beta of 0.999, and the reciprocals (2000 there) carry that error over; abar itself is compared absolutely.
    """
    alphas = 1 - betas
    abar = alphas.cumprod(0)
    previous = torch.cat((torch.ones_like(abar[:1]), abar[:-1]))
    variance = betas * (1 - previous) / (1 - abar)
    return {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / stored_abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / stored_abar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * previous.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - previous) * alphas.sqrt() / (1 - abar),
    }


def _encoder_sizes(tensors: Tensors, file: Path, prefix: str) -> dict[str, int]:
    """Arguments of `RRDBEncoder`, read off the shapes."""

    def vote(*places: tuple[str, int]) -> int:
        return _vote(tensors, file, prefix, *places)

    return {
        "channels": vote(("RRDB_trunk.*.RDB?.conv5.bias", 0), ("trunk_conv.bias", 0)),
        "blocks": _count(tensors, BLOCK),
        "growth": vote(("RRDB_trunk.*.RDB?.conv1.bias", 0)),
        "scale": 8 if "upconv3.weight" in tensors or "upconv3.bias" in tensors else 4,
        "image_channels": vote(("conv_first.weight", 1), ("conv_last.weight", 0), ("conv_last.bias", 0)),
    }


def _denoiser_sizes(tensors: Tensors, file: Path) -> dict[str, Any]:
    """Arguments of `ConditionalUNet` but the two that it shares with the encoder, read off the shapes."""

    def vote(*places: tuple[str, int]) -> int:
        return _vote(tensors, file, DENOISER, *places)

    dim = vote(("mlp.0.weight", 1), ("*.mlp.1.weight", 1))
    widths = [vote((f"downs.{level}.?.block?.block.1.bias", 0)) for level in range(_count(tensors, LEVEL))]
    if any(width % dim for width in widths):
        raise CheckpointError(f"{file} has levels of the widths {widths}, but they must be multiples of {dim}.")
    image_places = (
        ("downs.0.0.block1.block.1.weight", 1),
        ("downs.0.0.res_conv.weight", 1),
        ("final_conv.1.weight", 0),
        ("final_conv.1.bias", 0),
    )
    return {"dim": dim, "multipliers": [width // dim for width in widths], "image_channels": vote(*image_places)}


def _vote(tensors: Tensors, file: Path, prefix: str, *places: tuple[str, int]) -> int:
    """The most frequent length among (name pattern, axis) places, so one misshapen tensor is outvoted and named."""
    lengths = Counter(
        tensor.shape[axis]
        for pattern, axis in places
        for name, tensor in tensors.items()
        if fnmatchcase(name, pattern) and tensor.ndim > axis and tensor.shape[axis] > 0
    )
    if not lengths:
        patterns = " or ".join(repr(prefix + pattern) for pattern, _ in places)
        raise CheckpointError(f"{file} has no usable tensor named {patterns}, so it is not a released model.")
    return lengths.most_common(1)[0][0]


def _count(tensors: Tensors, pattern: str) -> int:
    """How many numbers from 0 on, without a gap, give `pattern` a tensor when put in the place of its {}."""
    return next(n for n in count() if not any(fnmatchcase(name, pattern.format(n)) for name in tensors))


def _build(kind: type[Model], sizes: dict[str, Any], tensors: Tensors, file: Path, prefix: str) -> Model:
    """A model of these sizes with exactly these tensors, which are checked first and not copied."""
    try:
        with torch.device("meta"):  # no memory and no random initialisation
            model = kind(**sizes)
    except ConfigError as error:
        raise CheckpointError(f"{file} describes no model that can be built: {error}") from error
    _compare(tensors, {name: tensor.shape for name, tensor in model.state_dict().items()}, file, prefix)
    model.load_state_dict({name: tensor.float().contiguous() for name, tensor in tensors.items()}, assign=True)
    model.eval()
    return model


def _compare(tensors: Tensors, expected: dict[str, torch.Size], file: Path, prefix: str) -> None:
    """Raise a CheckpointError naming each tensor that is missing, unknown, misshapen, not floating or not finite."""
    problems = [f"{prefix}{name} is missing" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(f"{prefix}{name} is unknown")
        elif tensor.shape != expected[name]:
            problems.append(f"{prefix}{name} is {tuple(tensor.shape)} instead of {tuple(expected[name])}")
        elif tensor.layout != torch.strided or tensor.is_meta or not tensor.is_floating_point():
            problems.append(f"{prefix}{name} is no dense floating tensor")
        elif not bool(tensor.isfinite().all()):
            problems.append(f"{prefix}{name} holds numbers that are not finite")
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise CheckpointError(f"{file} does not fit the released model: {'; '.join(problems[:NAMED])}{more}.")
