"""SamDiffSRPipeline: a small image in, one four times larger out. No SAM and no masks are needed here."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from samdiffsr.diffusion.process import SHIFTS, TARGETS
from samdiffsr.errors import CheckpointError, ConfigError, Range, choose, first_line
from samdiffsr.models.weights import LOADING_ERRORS, check_weights
from samdiffsr.sampling.noise_blocks import Blocks
from samdiffsr.sampling.pixels import OUTPUTS, as_list, as_pixels, finish
from samdiffsr.sampling.ranges import DETAIL, STEPS, TILE
from samdiffsr.sampling.schedulers import PREDICTION_TYPE
from samdiffsr.sampling.tiled import Execution, Recipe
from samdiffsr.sampling.tiles import Canvas

DEFAULT_MODEL = Path(__file__).with_name("weights") / "default"
Callback = Callable[[Any, int, int, dict], dict | None]
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass
class SamDiffSROutput(BaseOutput):
    """`images`: a list of PIL images; or float32 in [0, 1], (N, H, W, 3) numpy or (N, 3, H, W) tensor, as a list of
    (H, W, 3) or (3, H, W) if their sizes differ; or a list of uint8 or uint16 numpy (H, W, 3) that use the full range."""

    images: list[Image.Image] | list[np.ndarray] | list[Tensor] | np.ndarray | Tensor


class SamDiffSRPipeline(DiffusionPipeline):
    """Encoder, denoiser and any stock diffusers scheduler.

    The residual x_0 = clip(residual_scale (hr - base), -1, 1) is sampled from noise given the LR image's features, and
    sr = x_0 / residual_scale + base (images in [-1, 1]; SRDiff, arXiv 2104.14951, and SAM-DiffSR).

    Args:
        encoder: has `encode(lr, with_image=) -> (features, image)`.
        denoiser: has `condition(features)`, `forward(x_t, t, None, condition)`, `hr_multiple` and `hr_minimum`. Both networks
            tell their `halo_lr` and `floats_per_lr_pixel`, the denoiser its `condition_halo_lr` and `condition_scale`.
        scheduler: a diffusers scheduler; its prediction_type must fit `target`.
        base: "bicubic" (MATLAB) or "encoder" (the encoder's own estimate).
        residual_scale: see above; 2 in the released models.
        shift: how the training noise was modulated; a record, for sampling does not depend on it.
        target: what the denoiser predicts.
        steps: default number of sampling steps.
        lr_divisor: of the 8-bit pixels that bicubic upscaling sees; 255, or 256 to repeat the released code, whose base is
            0.4 % darker (its encoder does see pixels / 255).
        detail: default of `__call__`'s.
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
        detail: float = 1.0,
    ) -> None:
        super().__init__()
        choose(base, {"bicubic": None, "encoder": None}, "base")
        choose(target, dict.fromkeys(sorted(TARGETS)), "target")
        choose(shift, SHIFTS, "shift")
        choose(str(lr_divisor), {"255": None, "256": None}, "lr_divisor")
        DETAIL.check(detail)
        if not _is_number(residual_scale) or not 0 < residual_scale < math.inf:
            raise ConfigError(f"residual_scale is {residual_scale!r}, but must be a number above 0.")
        STEPS.check(steps)
        for network, needed in ((encoder, "encode"), (denoiser, "condition")):
            if not hasattr(network, needed) or not hasattr(network, "halo_lr"):
                raise ConfigError(f"{type(network).__name__} is no network for this pipeline: it has no {needed!r}.")
        for network in (encoder, denoiser):
            network.eval().to(memory_format=torch.channels_last)  # 1.7x faster on CPU
        self.register_modules(encoder=encoder, denoiser=denoiser, scheduler=scheduler)
        self.register_to_config(
            base=base,
            residual_scale=residual_scale,
            shift=shift,
            target=target,
            steps=steps,
            lr_divisor=lr_divisor,
            detail=detail,
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
            pipe = super().from_pretrained(str(folder), use_safetensors=True, local_files_only=True, **kwargs)
        except (ConfigError, *LOADING_ERRORS) as error:
            raise CheckpointError(f"model folder {name!r} cannot be loaded: {first_line(error)}") from error
        for part in ("encoder", "denoiser"):
            if part not in kwargs:
                check_weights(getattr(pipe, part), folder / part)
        return pipe

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
        detail: float | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> Any:
        """Upscale x4.

        Args:
            image: one image or a list, of any height and width from 1 pixel: PIL (converted to RGB), numpy (H, W, 3) or
                (H, W) uint8, uint16 or float in [0, 1], tensor (3, H, W) or (N, 3, H, W) in [0, 1].
            num_inference_steps: sampling steps; None takes the model's default.
            generator: None, one (every image starts from its present state, so that the result for an image does not depend
                on the others) or a list with one for each image.
            output_type: "pil", "np", "pt", "uint8" or "uint16"; see `SamDiffSROutput`.
            return_dict: False returns the tuple (images,) instead of a `SamDiffSROutput`.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": x_t}); returns None, or a dict whose
                "latents", if there, replace x_t. For an image so large that x_t is kept in a file it is told None.
            tile: side of a tile in pixels of the input, 0 for the whole image at once, None to choose by the free memory. The
                result does not depend on it (docs/tiling.md).
            detail: how much of the sampled residual is added to the base, 0 to 2; None takes the model's default. 1 is the
                sample itself; less is closer to the base: where that is the encoder's estimate, truer on average and softer.
            on_warning: called with a sentence when memory ran out and the work goes on in smaller tiles; None warns.

        Raises:
            ImageError: an image of the wrong type, shape or range; or too little memory for even the least tile.
            ConfigError: an option or a scheduler that does not fit the model.
        """
        choose(output_type, OUTPUTS, "output_type")
        if tile is not None:
            TILE.check(tile)
        steps = self.config["steps"] if num_inference_steps is None else num_inference_steps
        self._check(steps)
        recipe = self._recipe(self.config["detail"] if detail is None else DETAIL.check(detail))
        images = as_list(image)
        outputs = []
        for one, source in zip(images, _generators(generator, len(images)), strict=True):
            run = Execution(recipe, as_pixels(one), tile=tile, note=on_warning or _warn)
            self._sample(run, steps, source, callback_on_step_end)
            outputs.append(finish(run.assemble(output_type), output_type))
        if output_type in ("np", "pt") and len({tuple(out.shape) for out in outputs}) == 1:
            if len(outputs) == 1:
                outputs = outputs[0][None]  # no copy
            else:
                outputs = np.stack(outputs) if output_type == "np" else torch.stack(outputs)
        return SamDiffSROutput(images=outputs) if return_dict else (outputs,)

    def _check(self, steps: int) -> None:
        """Refuse a scheduler that would misread the prediction."""
        config, total = self.scheduler.config, self.scheduler.config.num_train_timesteps
        betas = config.get("trained_betas")
        if betas is not None and len(betas) != total:
            raise ConfigError(f"the scheduler has {len(betas)} betas, but num_train_timesteps is {total}.")
        Range("num_inference_steps", STEPS.least, total, whole=True).check(steps)
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

    def _recipe(self, detail: float) -> Recipe:
        wanted = {name: self.config[name] for name in ("base", "residual_scale", "lr_divisor")}
        return Recipe(self.encoder, self.denoiser, self.device, detail=detail, **wanted)

    def _sample(self, run: Execution, steps: int, generator: torch.Generator, callback: Callback | None) -> None:
        """The reverse process: x_T from N(0, I), then one denoiser call a step and tile."""
        try:
            self.scheduler.set_timesteps(steps, device=self.device)
        except ValueError as error:
            raise ConfigError(f"{type(self.scheduler).__name__} refuses {steps} steps: {error}") from None
        run.encode()
        with _explained(self.scheduler):
            blocks = Blocks(self.scheduler, generator, canvas=run.canvas, state=run.state)
            blocks.start(self.denoiser.dtype, self.device)
        with self.progress_bar(total=steps) as bar:  # pyright: ignore[reportCallIssue]
            for number, timestep in enumerate(self.scheduler.timesteps):
                run.predict(timestep, lambda x_t, timestep=timestep: blocks.scale_input(x_t, timestep))
                with _explained(self.scheduler):
                    blocks.step(run.prediction, timestep)
                if callback is not None:
                    self._call_back(callback, run.state, number, timestep)
                bar.update()

    def _call_back(self, callback: Callback, state: Canvas, number: int, timestep: Tensor) -> None:
        """Show the callback a copy of x_t, for the state changes in place, and take over what it returns."""
        x_t = None if state.in_file else state.read(state.window).clone()
        replaced = (callback(self, number, int(timestep), {"latents": x_t}) or {}).get("latents", x_t)
        if replaced is not None:
            state.write(state.window, replaced.clone())


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


@contextmanager
def _explained(scheduler: Any) -> Iterator[None]:
    """Schedulers that cannot sample a model say so each in its own way."""
    try:
        yield
    except (NotImplementedError, ValueError, AttributeError, TypeError, IndexError) as error:
        kind = type(scheduler).__name__
        raise ConfigError(f"{kind} cannot sample this model: {first_line(error)}") from error


def _warn(note: str) -> None:
    warnings.warn(f"{note}.", RuntimeWarning, stacklevel=2)


def _generators(generator: Generators, count: int) -> list[torch.Generator]:
    """One generator for each of `count` images; a single one is copied, so that each image starts from the same state."""
    if isinstance(generator, (list, tuple)):
        if not all(isinstance(one, torch.Generator) for one in generator):
            raise ConfigError(
                f"generator holds {[type(one).__name__ for one in generator]}, but wants torch.Generator."
            )
        if len(generator) != count:
            raise ConfigError(f"generator is a list of {len(generator)}, but there are {count} images.")
        return list(generator)
    if generator is None:
        seeds = torch.randint(2**62, (count,)).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    if not isinstance(generator, torch.Generator):
        raise ConfigError(f"generator is {generator!r}, but must be a torch.Generator, a list of them, or None.")
    copies = [torch.Generator(generator.device) for _ in range(count - 1)]
    for copy in copies:
        copy.set_state(generator.get_state())
    return [*copies, generator]
