"""SamDiffSRPipeline: a small image in, one four times larger out. No SAM and no masks are needed here."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from samdiffsr.diffusion.process import SHIFTS, TARGETS
from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.errors import CheckpointError, ConfigError, ImageError, choose
from samdiffsr.resize import SCALE, imresize_tensor

DEFAULT_MODEL = Path(__file__).with_name("weights") / "default"
# What a scheduler must be told so that it reads a prediction of each target as what it is.
PREDICTION_TYPE = {
    "posterior_noise": "epsilon",
    "marginal_noise": "epsilon",
    "sample": "sample",
    "velocity": "v_prediction",
}
Callback = Callable[[Any, int, int, dict], dict]
Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class SamDiffSROutput(BaseOutput):
    """`images`: a list of PIL images; or float32 in [0, 1], (N, H, W, 3) numpy or (N, 3, H, W) tensor, as a list of
    (H, W, 3) or (3, H, W) if their sizes differ; or a list of uint8 or uint16 numpy (H, W, 3) that use the full range."""

    images: list[Image.Image] | list[np.ndarray] | list[Tensor] | np.ndarray | Tensor


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


class SamDiffSRPipeline(DiffusionPipeline):
    """Encoder, denoiser and any stock diffusers scheduler.

    The residual x_0 = clip(residual_scale (hr - base), -1, 1) is sampled from noise given the LR image's features, and
    sr = x_0 / residual_scale + base (images in [-1, 1]; SRDiff, arXiv 2104.14951, and SAM-DiffSR).

    Args:
        encoder: has `encode(lr, with_image=) -> (features, image)`.
        denoiser: has `forward(x_t, t, features)`, `hr_multiple` and `hr_minimum`.
        scheduler: a diffusers scheduler; its prediction_type must fit `target`.
        base: "bicubic" (MATLAB) or "encoder" (the encoder's own estimate).
        residual_scale: see above; 2 in the released models.
        shift: how the training noise was modulated; a record, for sampling does not depend on it.
        target: what the denoiser predicts.
        steps: default number of sampling steps.
        lr_divisor: of the 8-bit pixels that bicubic upscaling sees; 255, or 256 to repeat the released code, whose base is
            0.4 % darker (its encoder does see pixels / 255).
    """

    def __init__(
        self,
        encoder: Any,
        denoiser: Any,
        scheduler: Any,
        *,
        base: str = "bicubic",
        residual_scale: float = 2.0,
        shift: str = "paper",
        target: str = "marginal_noise",
        steps: int = 100,
        lr_divisor: int = 255,
    ) -> None:
        super().__init__()
        choose(base, {"bicubic": None, "encoder": None}, "base")
        choose(target, dict.fromkeys(sorted(TARGETS)), "target")
        choose(shift, SHIFTS, "shift")
        choose(str(lr_divisor), {"255": None, "256": None}, "lr_divisor")
        for network in (encoder, denoiser):
            network.eval().to(memory_format=torch.channels_last)  # 1.7x faster on CPU
        self.register_modules(encoder=encoder, denoiser=denoiser, scheduler=scheduler)
        self.register_to_config(
            base=base, residual_scale=residual_scale, shift=shift, target=target, steps=steps, lr_divisor=lr_divisor
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path = "default", **kwargs: Any
    ) -> "SamDiffSRPipeline":
        """Load "default" (the model inside this package) or a folder that `save_pretrained` wrote; weights become float32.

        Raises:
            CheckpointError: no such folder, or its files are damaged.
        """
        name = str(pretrained_model_name_or_path)
        folder = DEFAULT_MODEL if name == "default" else Path(name)
        if not (folder / "model_index.json").is_file():
            raise CheckpointError(
                f"model {name!r} is not found: give 'default', or a folder that has a model_index.json."
            )
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        kwargs.setdefault("low_cpu_mem_usage", False)  # True needs accelerate, and gains nothing at this size
        try:
            return super().from_pretrained(str(folder), use_safetensors=True, local_files_only=True, **kwargs)
        except (OSError, ValueError, RuntimeError, AttributeError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"model folder {name!r} cannot be loaded: {reason}") from error

    @torch.inference_mode()
    def __call__(
        self,
        image: Any,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        output_type: Literal["pil", "np", "pt", "uint8", "uint16"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        tile: int | None = None,
    ) -> Any:
        """Upscale x4.

        Args:
            image: one image or a list, of any height and width from 1 pixel: PIL (converted to RGB), numpy (H, W, 3) or
                (H, W) uint8 or float in [0, 1], tensor (3, H, W) or (N, 3, H, W) in [0, 1].
            num_inference_steps: sampling steps; None takes the model's default.
            generator: None, one (every image starts from its present state, so that the result for an image does not depend
                on the others) or a list with one for each image.
            output_type: "pil", "np", "pt", "uint8" or "uint16"; see `SamDiffSROutput`.
            return_dict: False returns the tuple (images,) instead of a `SamDiffSROutput`.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": x_t}); returns a dict whose "latents", if
                there, replace x_t.

        Raises:
            ImageError: an image of the wrong type, shape or range.
            ConfigError: an option or a scheduler that does not fit the model.
        """
        convert = choose(output_type, _OUTPUTS, "output_type")
        steps = self.config["steps"] if num_inference_steps is None else num_inference_steps
        self._check(steps)
        images = _as_list(image)
        outputs = [
            convert(self._upscale(_to_tensor(one), steps, source, callback_on_step_end))
            for one, source in zip(images, _generators(generator, len(images)), strict=True)
        ]
        if output_type in ("np", "pt") and len({tuple(out.shape) for out in outputs}) == 1:
            outputs = np.stack(outputs) if output_type == "np" else torch.stack(outputs)
        return SamDiffSROutput(images=outputs) if return_dict else (outputs,)

    def _check(self, steps: int) -> None:
        """Refuse a scheduler that would misread the prediction."""
        config, total = self.scheduler.config, self.scheduler.config.num_train_timesteps
        if not (isinstance(steps, int) and 1 <= steps <= total):
            raise ConfigError(f"num_inference_steps is {steps!r}, but must be a whole number from 1 to {total}.")
        target = self.config["target"]
        wanted, found = PREDICTION_TYPE[target], config.get("prediction_type")
        if found != wanted:
            raise ConfigError(
                f"the scheduler has prediction_type {found!r}, but a model that predicts {target!r} needs "
                f"{wanted!r}; build it with make_scheduler or from_config(..., prediction_type={wanted!r})."
            )
        if target == "posterior_noise":
            exact = isinstance(self.scheduler, DDPMScheduler) and not config.clip_sample and not config.thresholding
            if not exact or steps != total:
                raise ConfigError(
                    f"a model that predicts 'posterior_noise' can only be sampled by DDPMScheduler with clip_sample=False "
                    f"in all {total} steps (its x_0 is biased), got {type(self.scheduler).__name__} in {steps} steps."
                )

    def _upscale(self, lr: Tensor, steps: int, generator: torch.Generator, callback: Callback | None) -> Tensor:
        """lr (1, 3, h, w) in [0, 1] -> sr (1, 3, 4h, 4w) in [-1, 1]."""
        height, width = lr.shape[2:]
        lr = lr.to(self.device, self.denoiser.dtype)
        with_image = self.config["base"] == "encoder"
        features, estimate = self.encoder.encode(self._pad(2 * lr - 1), with_image=with_image)
        if estimate is None:
            base = 2 * imresize_tensor(lr * (255 / self.config["lr_divisor"]), SCALE) - 1
        else:
            base = estimate[..., : SCALE * height, : SCALE * width]
        x_0 = self._sample(features, steps, generator, callback)[..., : SCALE * height, : SCALE * width]
        return (x_0.clamp(-1, 1) / self.config["residual_scale"] + base).clamp(-1, 1)

    def _pad(self, lr: Tensor) -> Tensor:
        """Repeat the last row and column until the denoiser can take the size."""
        multiple, least = self.denoiser.hr_multiple, self.denoiser.hr_minimum
        wanted = [-(-max(SCALE * side, least) // multiple) * multiple // SCALE for side in lr.shape[2:]]
        return F.pad(lr, (0, wanted[1] - lr.shape[3], 0, wanted[0] - lr.shape[2]), mode="replicate")

    def _sample(self, features: Tensor, steps: int, generator: torch.Generator, callback: Callback | None) -> Tensor:
        """The reverse process: x_T from N(0, I), then one denoiser call a step."""
        try:
            self.scheduler.set_timesteps(steps, device=self.device)
        except ValueError as error:
            raise ConfigError(f"{type(self.scheduler).__name__} refuses {steps} steps: {error}") from None
        shape = (1, 3, SCALE * features.shape[2], SCALE * features.shape[3])
        noise = randn_tensor(shape, generator=generator, device=self.device, dtype=features.dtype)
        x_t = noise * self.scheduler.init_noise_sigma
        takes = inspect.signature(self.scheduler.step).parameters
        options = {"generator": generator} if "generator" in takes else {}
        with self.progress_bar(total=steps) as bar:  # pyright: ignore[reportCallIssue]
            for number, timestep in enumerate(self.scheduler.timesteps):
                scaled = self.scheduler.scale_model_input(x_t, timestep)
                t = torch.full((1,), int(timestep), device=self.device)
                prediction = self.denoiser(scaled.contiguous(memory_format=torch.channels_last), t, features)
                x_t = self.scheduler.step(prediction, timestep, x_t, **options, return_dict=False)[0]
                if callback is not None:
                    x_t = callback(self, number, int(timestep), {"latents": x_t}).get("latents", x_t)
                bar.update()
        return x_t


def _generators(generator: Generators, count: int) -> list[torch.Generator]:
    """One generator for each of `count` images; a single one is copied, so that each image starts from the same state."""
    if isinstance(generator, list):
        if len(generator) != count:
            raise ConfigError(f"generator is a list of {len(generator)}, but there are {count} images.")
        return generator
    if generator is None:
        seeds = torch.randint(2**62, (count,)).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    copies = [torch.Generator(generator.device) for _ in range(count - 1)]
    for copy in copies:
        copy.set_state(generator.get_state())
    return [*copies, generator]


def _as_list(image: Any) -> list:
    if isinstance(image, Tensor) and image.ndim == 4:
        return list(image)
    if isinstance(image, np.ndarray) and image.ndim == 4:
        return list(image)
    images = list(image) if isinstance(image, list | tuple) else [image]
    if not images:
        raise ImageError("image is an empty list; give at least one image.")
    return images


def _to_tensor(image: Any) -> Tensor:
    """Any accepted image -> float32 (1, 3, h, w) in [0, 1]."""
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        if image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(f"a numpy image must have shape (H, W, 3) or (H, W), got {image.shape}.")
        whole = np.issubdtype(image.dtype, np.integer)
        if whole and image.dtype not in (np.uint8, np.uint16):
            raise ImageError(f"a numpy image must be uint8, uint16 or float in [0, 1], got {image.dtype}.")
        divisor = np.iinfo(image.dtype).max if whole else 1
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / divisor)
    elif isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ImageError(
                f"a tensor image must be floating of shape (3, H, W) or (N, 3, H, W), got {image.dtype} {tuple(image.shape)}."
            )
        tensor = image.float()
    else:
        raise ImageError(f"image must be PIL, numpy or a tensor, or a list of these, got {type(image).__name__}.")
    if min(tensor.shape) < 1:
        raise ImageError(
            f"an image needs at least 1x1 pixel, got height {tensor.shape[1]} and width {tensor.shape[2]}."
        )
    low, high = float(tensor.min()), float(tensor.max())
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ImageError(f"pixels must lie in [0, 1], got values from {low:.4g} to {high:.4g}; scale the image first.")
    return tensor[None]


def _to_numpy(sr: Tensor) -> np.ndarray:
    return (sr[0].float() / 2 + 0.5).permute(1, 2, 0).cpu().numpy()


def _to_pil(sr: Tensor) -> Image.Image:
    return Image.fromarray(_to_uint8(sr))


def _to_uint8(sr: Tensor) -> np.ndarray:
    return (_to_numpy(sr) * 255).round().astype(np.uint8)


def _to_uint16(sr: Tensor) -> np.ndarray:
    return (_to_numpy(sr) * 65535).round().astype(np.uint16)


def _to_pt(sr: Tensor) -> Tensor:
    return (sr[0].float() / 2 + 0.5).cpu()


_OUTPUTS = {"pil": _to_pil, "np": _to_numpy, "pt": _to_pt, "uint8": _to_uint8, "uint16": _to_uint16}
