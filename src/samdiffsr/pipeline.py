"""SamDiffSRPipeline: an upscaler as diffusers loads, saves and offloads it."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from samdiffsr.errors import CheckpointError, ConfigError, first_line
from samdiffsr.models.weights import DEFAULT_MODEL, LOADING_ERRORS, check_weights
from samdiffsr.sampling.reverse import OnStep
from samdiffsr.sampling.tiled import TiledModel
from samdiffsr.sampling.tiles import Canvas
from samdiffsr.sampling.upscaler import Upscaler, checked_parts

# Written into each saved folder.
PIPELINE_FILE = 'from samdiffsr.pipeline import SamDiffSRPipeline\n\n__all__ = ["SamDiffSRPipeline"]\n'


class SamDiffSRPipeline(DiffusionPipeline, Upscaler):
    """Encoder, denoiser and any stock diffusers scheduler.

    The residual x_0 = clip(residual_scale (hr - base), -1, 1) is sampled from noise given the LR image's features, and
    sr = x_0 / residual_scale + base (images in [-1, 1]; SRDiff, arXiv 2104.14951, and SAM-DiffSR).

    Args:
        encoder: has `encode(lr, with_image=) -> (features, image)`.
        denoiser: has `condition(features)`, `forward(x_t, t, None, condition)`, `hr_multiple`, `hr_minimum` and a
            `structure_head` or None. Both networks have `halo_lr` and `floats_per_lr_pixel`, the denoiser
            `condition_halo_lr` and `condition_scale`.
        scheduler: a diffusers scheduler on the betas that the model was trained with; its prediction_type must fit `target`.
        base: "bicubic" (MATLAB) or "encoder" (the encoder's own estimate).
        residual_scale: see above; 2 in the released models.
        shift: how the training noise was modulated.
        target: what the denoiser predicts.
        steps: default number of sampling steps.
        lr_divisor: of the 8-bit pixels that bicubic upscaling sees; 255, or 256 to repeat the released code, whose base is
            0.4 % darker (its encoder does see pixels / 255).
        detail: default of `__call__`'s.
        encoding: of the structure maps that the model was trained with, see `structure_map`.
        mean_over: of the same maps.
        normalise: of the same maps.
    """

    model_cpu_offload_seq = "encoder->denoiser"

    def __init__(
        self,
        encoder: Any,
        denoiser: Any,
        scheduler: Any,
        *,
        base: str = "bicubic",
        residual_scale: float = 2.0,
        shift: str = "released",
        target: str = "marginal_noise",
        steps: int = 100,
        lr_divisor: int = 255,
        detail: float = 1.0,
        encoding: str = "rope",
        mean_over: str = "region",
        normalise: str = "none",
    ) -> None:
        config = {
            "base": base,
            "residual_scale": residual_scale,
            "shift": shift,
            "target": target,
            "steps": steps,
            "lr_divisor": lr_divisor,
            "detail": detail,
            "encoding": encoding,
            "mean_over": mean_over,
            "normalise": normalise,
        }
        self._schedule = checked_parts(encoder, denoiser, scheduler, **config)
        self.register_modules(encoder=encoder, denoiser=denoiser, scheduler=scheduler)
        self.register_to_config(**config)

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
        given = "dtype" in kwargs or "torch_dtype" in kwargs  # versions of diffusers differ in the name
        kwargs.setdefault("low_cpu_mem_usage", False)  # True needs accelerate, and gains nothing at this size
        try:
            pipe = super().from_pretrained(str(folder), use_safetensors=True, local_files_only=True, **kwargs)
        except (ConfigError, *LOADING_ERRORS) as error:
            raise CheckpointError(f"model folder {name!r} cannot be loaded: {first_line(error)}") from error
        for part in ("encoder", "denoiser"):
            if part not in kwargs:
                network = getattr(pipe, part)
                if not given:  # they may be stored in float16; `to` of diffusers would warn
                    torch.nn.Module.to(network, torch.float32)
                check_weights(network, folder / part)
        return pipe

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As diffusers does it, with a pipeline.py, so that `DiffusionPipeline.from_pretrained(folder,
        custom_pipeline="pipeline", trust_remote_code=True)` loads the folder too."""
        super().save_pretrained(save_directory, *args, **kwargs)
        (Path(save_directory) / "pipeline.py").write_text(PIPELINE_FILE, encoding="utf-8")

    def _sample(
        self, model: TiledModel, structure: Canvas | None, generators: list[torch.Generator], on_step: OnStep
    ) -> Canvas:
        """As an `Upscaler` does it, with a progress bar."""
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:  # pyright: ignore[reportCallIssue]

            def after(number: int, timestep: torch.Tensor, y: Canvas) -> None:
                on_step(number, timestep, y)
                bar.update()

            return super()._sample(model, structure, generators, after)
