"""Upscaler: a small image in, one four times larger out. No SAM and no masks are needed here."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from samdiffsr.diffusion.process import ModulatedProcess
from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.errors import ConfigError, choose
from samdiffsr.models.level import takes_level
from samdiffsr.models.structure_head import takes_structure
from samdiffsr.models.weights import move
from samdiffsr.sampling.estimate import Structure, check_structure, estimate_structure
from samdiffsr.sampling.pixels import OUTPUTS, as_list, as_pixels, finish, joined
from samdiffsr.sampling.precision import autocast_type, type_name, whole_picture
from samdiffsr.sampling.ranges import CLEAN, DETAIL, PRECISIONS, STEPS, TILE, Precision
from samdiffsr.sampling.reverse import OnStep, reverse_process
from samdiffsr.sampling.schedulers import check_scheduler, schedule_of, set_timesteps
from samdiffsr.sampling.tiled import Networks, TiledModel
from samdiffsr.sampling.tiles import Canvas
from samdiffsr.structure import OF_SAMPLING, draw_structure, structure_map

Callback = Callable[[Any, int, int, dict], dict | None]
Generators = torch.Generator | Sequence[torch.Generator] | None


# Pixels of small images of one size that go through the networks at once. On a CPU pictures of 16x16 then take 0.6 of the time,
# from 32x32 on little is gained (docs/tiling.md). For other devices it is a guess from what a kernel costs at least.
TOGETHER = {"cpu": 1024, "others": 65_536}


@dataclass
class SamDiffSROutput(BaseOutput):
    """`images`: a list of PIL images; or float32 in [0, 1], (N, H, W, 3) numpy or (N, 3, H, W) tensor, as a list of
    (H, W, 3) or (3, H, W) if their sizes differ; or a list of uint8 or uint16 numpy (H, W, 3) that use the full range.

    `levels`: of each image the level of degradation that was given as `clean` or estimated; None for a model without it.

    `structures`, with `return_structure=True`: the structure maps that were used, one for each image; PIL pictures for
    output type "pil", float32 numpy (H, W) for the others."""

    images: list[Image.Image] | list[np.ndarray] | list[Tensor] | np.ndarray | Tensor
    structures: list[Image.Image] | list[np.ndarray] | None = None
    levels: list[float] | None = None


class Upscaler:
    """Encoder, denoiser and scheduler of a model, and sampling with them.

    Plain torch and a scheduler, which is quicker to start than a whole diffusers pipeline. `SamDiffSRPipeline` is an upscaler
    that diffusers loads, saves and offloads; its arguments are these, and are explained there.

    Args:
        encoder, denoiser, scheduler: on one device.
        config: the other arguments; of models saved before they existed, without `mean_over` and `normalise`.

    Raises:
        ConfigError: parts that do not fit each other, or a value out of its range.
    """

    _callback_tensor_inputs = ("latents",)

    def __init__(self, encoder: Any, denoiser: Any, scheduler: Any, config: Mapping[str, Any]) -> None:
        of_maps: dict[str, Any] = {"mean_over": "region", "normalise": "none"}
        config = of_maps | dict(config)
        self._schedule = checked_parts(encoder, denoiser, scheduler, **config)
        self.encoder, self.denoiser, self.scheduler = encoder, denoiser, scheduler
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.denoiser.parameters()).device

    @property
    def _execution_device(self) -> torch.device:
        """Of diffusers: where networks that wait elsewhere are brought for computing."""
        return self.device

    def maybe_free_model_hooks(self) -> None:
        """Of diffusers: send such networks back."""

    @property
    def process(self) -> ModulatedProcess:
        """The process that the denoiser was trained on."""
        return ModulatedProcess(self._schedule, self.config["shift"], self.config["target"])

    @torch.no_grad()  # not inference_mode, in which accelerate cannot bring weights back
    def __call__(
        self,
        image: Any,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        output_type: Literal["pil", "np", "pt", "uint8", "uint16"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        tile: int | None = None,
        detail: float | None = None,
        clean: float | None = None,
        structure: Structure | Sequence[np.ndarray] = "auto",
        return_structure: bool = False,
        precision: Precision = "float32",
        on_progress: Callable[[float], None] = lambda part: None,
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
            return_dict: False returns the tuple (images,), or (images, structures), instead of a `SamDiffSROutput`.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": y_t}); returns None, or a dict whose
                "latents", if there, replace the state: (N, 3, H, W) of the images that go through the networks together, see
                `together`, or None of one so large that the state is kept in a file.
            callback_on_step_end_tensor_inputs: what the dict holds: "latents", or nothing. A diffusers callback brings its own.
            tile: side of a tile in pixels of the input, 0 for the whole image at once, None to choose by the free memory. The
                result does not depend on it (docs/tiling.md).
            detail: how much of the sampled residual is added to the base, 0 to 2; None takes the model's default. 1 is the
                sample itself; less is closer to the base: where that is the encoder's estimate, truer on average and softer.
            clean: how degraded the image is taken to be, from 0 (each pixel is meant: noise and JPEG blocks are enlarged) to 1
                (an old scan); None estimates it from the image. A model without this input takes 0 or None.
            structure: the structure map. "model": the estimate of the model's own head; "felzenszwalb": from regions of similar
                colour in the enlarged image; "none": 0; or a float map (4h, 4w), for several images a list of maps. "auto" is
                "model" where the model has a head, else "none".
            return_structure: return the structure maps too.
            precision: of the convolutions, "float32" (as the weights are), "bfloat16", "float16" or "auto": see `computed_in`.
            on_progress: called with the part of all images that is done, 0 to 1, after each tile of each network.
            on_warning: called with a sentence where memory ran out and the work goes on in smaller tiles, a precision did not
                suffice, or nobody has tested the scheduler. None warns.

        Raises:
            ImageError: an image of the wrong type, shape or range; or too little memory for even the least tile.
            ConfigError: an option or a scheduler that does not fit the model.
        """
        given = _checked(output_type, tile, clean, self.encoder)
        steps = self.config["steps"] if num_inference_steps is None else num_inference_steps
        share = self.config["detail"] if detail is None else DETAIL.check(detail)
        report, images = on_warning or _warn, [as_pixels(one) for one in as_list(image)]
        structures = check_structure(structure, self.denoiser, images, needed=return_structure)
        self.check(steps, structures[0], report)
        on_step = self._on_step(callback_on_step_end, callback_on_step_end_tensor_inputs)
        kind, outputs, maps, levels = self.computed_in(precision), [], [], []
        given |= {"on_warning": report, "output_type": output_type, "detail": share, "on_step": on_step}
        sources = _generators(generator, len(images))
        for found, estimate, model in self._each_group(images, structures, sources, steps, kind, on_progress, given):
            outputs += found
            levels += [] if model.level is None else model.level.tolist()
            maps += model.gather(estimate) if return_structure and estimate is not None else []
        self.maybe_free_model_hooks()
        shown = [Image.fromarray(draw_structure(one)) for one in maps] if output_type == "pil" else maps
        found = SamDiffSROutput(images=joined(outputs, output_type), levels=levels or None, structures=shown or None)
        return found if return_dict else (found.images, found.structures)[: 1 + return_structure]

    def computed_in(self, precision: Precision) -> torch.dtype | None:
        """The type of the convolutions that a precision means for this model on its device; None for that of the weights.

        "auto" is the short type that the device computes natively, else float32. Noise, scheduler, base and sum stay as they
        are. A result that is not finite, or one colour for an image of several, is computed again in float32.
        """
        choose(precision, dict.fromkeys(PRECISIONS), "precision")
        repeats_released = self.config["lr_divisor"] == 256
        return autocast_type(precision, self._execution_device, repeats_released=repeats_released)

    def together(self, height: int, width: int) -> int:
        """How many images of this size in pixels go through the networks at once, where so many follow each other.

        Small ones do not fill a device. Their results are those of each alone, to rounding.
        """
        return max(1, TOGETHER.get(self._execution_device.type, TOGETHER["others"]) // (height * width))

    def _groups(self, images: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
        """The first and the end of each run of images that go through the networks together."""
        first = 0
        for number, pixels in enumerate(images):
            most = self.together(*images[first].shape[:2])
            if number - first == most or (pixels.shape, pixels.dtype) != (images[first].shape, images[first].dtype):
                yield first, number
                first = number
        yield first, len(images)

    def _each_group(
        self,
        images: list[np.ndarray],
        structures: Sequence[Structure],
        generators: list[torch.Generator],
        steps: int,
        kind: torch.dtype | None,
        on_progress: Callable[[float], None],
        given: dict[str, Any],
    ) -> Iterator[tuple[list, Canvas | None, TiledModel]]:
        """What `_group` makes of each."""
        for first, end in self._groups(images):
            passed = given | {"on_passes": self._reporter(on_progress, first / len(images), end / len(images))}
            group, sources = slice(first, end), generators[first:end]
            one = partial(self._group, images[group], steps, structures[group], sources, **passed)
            yield _sound(one, kind, sources, given["on_warning"])

    def _group(
        self,
        images: Sequence[np.ndarray],
        steps: int,
        structures: Sequence[Structure],
        generators: list[torch.Generator],
        kind: torch.dtype | None,
        *,
        output_type: str,
        detail: float,
        on_step: Callable,
        **given: Any,
    ) -> tuple[list, Canvas | None, TiledModel]:
        """One group: the results, the structure maps that were used, and the `TiledModel`, which takes what is `given`."""
        set_timesteps(self.scheduler, steps, self._execution_device)
        with whole_picture(self._execution_device):
            model = TiledModel(self._networks(), images, kind=kind, **given)
            estimate = estimate_structure(model, structures, {key: self.config[key] for key in OF_SAMPLING})
            x_0 = self._sample(model, estimate, generators, on_step)
            found = [finish(one, output_type) for one in model.assemble(x_0, output_type, detail=detail)]
            return found, estimate, model

    def _sample(
        self, model: TiledModel, structure: Canvas | None, generators: list[torch.Generator], on_step: OnStep
    ) -> Canvas:
        """x_0 of one group, in the steps that the scheduler is prepared for."""
        denoiser = partial(self.denoiser, level=model.level) if takes_level(self.denoiser) else self.denoiser
        given = {"structure_input": takes_structure(self.denoiser), "on_step": on_step}
        return reverse_process(model, denoiser, self.process, self.scheduler, structure, generators, **given)

    def check(
        self, steps: int, structure: Structure = "none", on_warning: Callable[[str], None] = lambda warning: None
    ) -> None:
        """Refuse what would draw rubbish: a scheduler that misreads the model, or regions that get another mean.

        Args:
            steps: number of sampling steps.
            structure: what sampling will use, see `__call__`.
            on_warning: called with a sentence where nobody can know.

        Raises:
            ConfigError: saying what to choose instead.
        """
        estimated = not (isinstance(structure, str) and structure == "none")
        if not estimated:
            self.process.check_without_estimate()
            if takes_structure(self.denoiser):
                raise ConfigError(
                    "this model takes the structure map as an input, but structure is 'none': choose 'felzenszwalb', give a "
                    "map, or 'model' if it has a structure head."
                )
        warning = check_scheduler(self.scheduler, self.process, steps, estimated=estimated)
        if warning is not None:
            on_warning(warning)

    def _reporter(self, on_progress: Callable[[float], None], start: float, end: float) -> Callable[[float], None]:
        """The encoder goes over an image once, the denoiser once a time step; both lead from one part done to another."""

        def report(passes: float) -> None:
            on_progress(start + (end - start) * passes / (1 + len(self.scheduler.timesteps)))

        return report

    def _networks(self) -> Networks:
        wanted = {name: self.config[name] for name in ("base", "residual_scale", "lr_divisor", "encoding")}
        return Networks(self.encoder, self.denoiser, self._execution_device, **wanted)

    def _on_step(self, callback: Callback | None, names: Sequence[str]) -> OnStep:
        """After each step the callback sees a copy of the state, which it may replace."""
        names = getattr(callback, "tensor_inputs", names)  # a diffusers `PipelineCallback`, or several
        for name in names:
            choose(name, dict.fromkeys(self._callback_tensor_inputs), "callback_on_step_end_tensor_inputs")

        def on_step(number: int, timestep: Tensor, y: Canvas) -> None:
            if callback is None:
                return
            # A copy, for the state changes in place.
            values = {name: None if y.in_file else y.read(y.window).clone() for name in names}
            replaced = (callback(self, number, int(timestep), dict(values)) or {}).get("latents", values.get("latents"))
            if replaced is not None:
                y.write(y.window, replaced.clone())

        return on_step


def checked_parts(
    encoder: Any,
    denoiser: Any,
    scheduler: Any,
    *,
    base: str,
    residual_scale: float,
    shift: str,
    target: str,
    steps: int,
    lr_divisor: int,
    detail: float,
    encoding: str,
    mean_over: str,
    normalise: str,
) -> NoiseSchedule:
    """Check the arguments of `SamDiffSRPipeline`, and lay the networks out for the device.

    Returns:
        The betas that the model was trained with.

    Raises:
        ConfigError: parts that do not fit each other, or a value out of its range.
    """
    choose(base, {"bicubic": None, "encoder": None}, "base")
    of_structure = {"encoding": encoding, "mean_over": mean_over, "normalise": normalise}
    structure_map(np.zeros((0, 1, 1), bool), **of_structure)  # pyright: ignore[reportArgumentType] - refuses unknown names
    schedule = schedule_of(scheduler)
    ModulatedProcess(schedule, shift, target)  # pyright: ignore[reportArgumentType] - refuses unknown names
    choose(str(lr_divisor), {"255": None, "256": None}, "lr_divisor")
    DETAIL.check(detail)
    if not _is_number(residual_scale) or not 0 < residual_scale < math.inf:
        raise ConfigError(f"residual_scale is {residual_scale!r}, but must be a number above 0.")
    STEPS.check(steps)
    if takes_level(denoiser) and not takes_level(encoder):
        raise ConfigError(
            "the denoiser takes a level of degradation, but the encoder does not: nobody would estimate it."
        )
    for network, needed in ((encoder, "encode"), (denoiser, "condition")):
        if not hasattr(network, needed) or not hasattr(network, "halo_lr"):
            raise ConfigError(f"{type(network).__name__} is no network for this pipeline: it has no {needed!r}.")
    for network in (encoder, denoiser):
        move(network.eval(), memory_format=torch.channels_last)  # 1.7x faster on CPU
    return schedule


def _checked(output_type: str, tile: int | None, clean: float | None, encoder: Any) -> dict[str, Any]:
    """The arguments of `TiledModel` among these."""
    choose(output_type, OUTPUTS, "output_type")
    if tile is not None:
        TILE.check(tile)
    if clean is not None and CLEAN.check(clean) > 0 and not takes_level(encoder):
        raise ConfigError(
            f"clean is {clean!r}, but this model was not trained to clean; leave it out, or choose another model."
        )
    return {"tile": tile, "clean": clean}


def _sound(
    one: Callable, kind: torch.dtype | None, generators: list[torch.Generator], report: Callable[[str], None]
) -> tuple[list, Canvas | None, TiledModel]:
    """What `one` makes in a type; where that did not suffice, in that of the weights, with the same noise."""
    states = [generator.get_state() for generator in generators]
    try:
        return one(kind)
    except FloatingPointError as error:
        report(f"{type_name(kind)} did not suffice, {error}: the picture is computed again in float32")
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    return one(None)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _warn(warning: str) -> None:
    warnings.warn(f"{warning}.", RuntimeWarning, stacklevel=3)


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
