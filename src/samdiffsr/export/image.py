"""A pipeline as one ONNX file, image -> image, which any program for ONNX can run: `samdiffsr export`, docs/onnx.md."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from samdiffsr.errors import ConfigError, choose
from samdiffsr.export.run_onnx import Sampler
from samdiffsr.export.sampler import sampler_of
from samdiffsr.export.trace import Graph, compare, trace
from samdiffsr.files import check_place, make_folder, write_whole
from samdiffsr.models.level import level_of, takes_level
from samdiffsr.pipeline import SamDiffSRPipeline
from samdiffsr.resize import SCALE, imresize_tensor
from samdiffsr.sampling.ranges import CLEAN, DETAIL

MOST_STEPS = 8  # that are unrolled: each adds the operations, but no weights, of a pass through the denoiser
NOISE_SIDE = 256  # of the noise in the file, which is repeated over the picture: 0.8 MB a step that draws
TYPES = {"float32": torch.float32, "float16": torch.float16}
IMAGE_TOLERANCE = 1e-3  # a quarter of a grey level: rounding adds up over all steps
HALF_TOLERANCE = 0.02  # of a result in [0, 1]: torch rounds after each operation, onnxruntime's CPU computes in float32
ESTIMATED = -1.0  # as `clean`: find it out


class ImageModel(nn.Module):
    """The whole pipeline as one function of tensors, its few steps unrolled.

    Args:
        pipe: is not changed; its networks are copied to the CPU.
        kind: of the weights and of what the networks compute; the rest is float32.
    """

    def __init__(self, pipe: SamDiffSRPipeline, kind: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.denoiser = (
            copy.deepcopy(network).cpu().eval().to(memory_format=torch.contiguous_format)
            for network in (pipe.encoder, pipe.denoiser)
        )
        for network in (self.encoder, self.denoiser):
            nn.Module.to(network, kind)  # in place; diffusers' own `to` warns of every type
        if takes_level(pipe.encoder):
            self.encoder.level_head.float()  # a mean of many pixels
        self.kind, self.config = kind, dict(pipe.config)
        self.sampler: Sampler = sampler_of(pipe)
        self.plan = [(t, self.sampler.coefficients(t, then)) for t, then in self.sampler.plan(pipe.config["steps"])]

    @property
    def draws(self) -> int:
        """How often noise is drawn: for x_T, and in the steps that add some."""
        return 1 + sum(step.noise != 0 for _, step in self.plan)

    def forward(self, image: Tensor, noise: Tensor, detail: Tensor, clean: Tensor | None = None) -> Tensor:
        """Upscale x4.

        Args:
            image: (N, 3, h, w) in [0, 1], any size.
            noise: (draws, 3, y, x) from N(0, I), used from the top left and repeated to the size of the result. Every picture
                of the batch gets the same, as from one generator in the pipeline.
            detail: (1,), see `SamDiffSRPipeline.__call__`.
            clean: (1,), likewise; below 0 it is estimated. Only for networks that take a level.

        Returns:
            (N, 3, 4h, 4w) in [0, 1].
        """
        signed = 2 * image - 1
        level = None if clean is None else self._level(signed, clean)
        of_encoder = {} if level is None else {"level": level.to(self.kind)}
        of_denoiser = of_encoder if takes_level(self.denoiser) else {}
        features, base = self.encoder.encode(
            signed.to(self.kind), with_image=self.config["base"] == "encoder", **of_encoder
        )
        if base is None:
            base = 2 * imresize_tensor(image * (255 / self.config["lr_divisor"]), SCALE) - 1
        condition = self.denoiser.condition(features)
        for axis in (2, 3):
            period = torch.full((1,), noise.shape[axis])  # a tensor, for the exporter knows no remainder of a size
            noise = noise.index_select(axis, torch.arange(SCALE * image.shape[axis]) % period)
        drawn = iter(noise.split(1))
        state = next(drawn).expand(image.shape[0], -1, -1, -1)
        for t, step in self.plan:
            times = torch.tensor([t]).expand(image.shape[0])
            prediction = self.denoiser(state.to(self.kind), times, None, condition, **of_denoiser).float()
            state = self.sampler.step(prediction, state, step, lambda: next(drawn))
        residual = state.clip(-1, 1) * (detail / self.config["residual_scale"])
        return (residual + base.float()).clip(-1, 1) / 2 + 0.5

    def _level(self, signed: Tensor, clean: Tensor) -> Tensor:
        """(N,); the pipeline looks at large pictures in windows, which differs a little from looking at the whole."""
        return torch.where(clean < 0, level_of(self.encoder.level_head(signed)), clean)


def export_image(
    pipe: SamDiffSRPipeline,
    path: Path,
    *,
    precision: str = "float32",
    clean: float | None = None,
    inputs: bool = False,
    overwrite: bool = False,
) -> None:
    """Write one ONNX file: `image` in, `upscaled` out, see `ImageModel.forward`, whose other arguments are constants in it.

    Numbers come and go as float32 in either precision. The file was read back, checked, and repeated the model's output, before
    it is put in place.

    Args:
        pipe: is not changed; its `detail` is the file's.
        path: ends in .onnx; folders above it are made.
        precision: "float32" or "float16", of the weights and of what the networks compute.
        clean: None estimates it from each image.
        inputs: make `noise`, `detail` and `clean` inputs that may be left out. onnxruntime takes them from Python, C and C++,
            and warns of them; onnxruntime-web refuses them, and other programs expect one input.
        overwrite: replace a file of that name.

    Raises:
        ConfigError: a model that cannot be one file, a scheduler that is not known here, a file that exists or cannot be
            written, or an export that does not repeat the model's output.
    """
    kind = choose(precision, TYPES, "precision")
    if path.suffix.lower() != ".onnx" or path.is_dir():
        raise ConfigError(f"output {path} must be a file that ends in .onnx; for a folder of networks use --networks.")
    if path.exists() and not overwrite:
        raise ConfigError(f"output {path} exists already; name another file, or use --overwrite.")
    if clean is not None and CLEAN.check(clean) > 0 and not takes_level(pipe.encoder):
        raise ConfigError(f"clean is {clean!r}, but this model was not trained to clean; leave it out.")
    check_place(path, is_folder=False, error=ConfigError)
    content = _content(pipe, kind, ESTIMATED if clean is None else float(clean))
    make_folder(path.parent, error=ConfigError)
    write_whole(content if inputs else _with_one_input(content), path, error=ConfigError)


@torch.no_grad()
def _content(pipe: SamDiffSRPipeline, kind: torch.dtype, clean: float) -> bytes:
    if pipe.config["steps"] > MOST_STEPS:
        raise ConfigError(
            f"this model samples in {pipe.config['steps']} steps, but one file can hold {MOST_STEPS}: give fewer --steps with "
            "a scheduler that can (--scheduler ddim), or use --networks."
        )
    if pipe.denoiser.hr_multiple > SCALE:
        raise ConfigError(
            f"the {type(pipe.denoiser).__name__} of this model wants sides that are multiples of {pipe.denoiser.hr_multiple}, "
            "but one file must take any size: use --networks."
        )
    model = ImageModel(pipe, kind)
    with_level = takes_level(pipe.encoder)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(model.draws, 3, NOISE_SIDE, NOISE_SIDE, generator=generator)
    defaults = {"noise": noise.numpy(), "detail": _number(pipe.config["detail"])}
    if with_level:
        defaults["clean"] = _number(clean)
    examples = []
    for shape, side, given in (((2, 3, 5, 6), 9, 0.5), ((1, 3, 30, 27), 130, ESTIMATED), ((3, 3, 1, 1), 1, 0.0)):
        # Of noise of full contrast the default encoder makes 1000 times as much of rounding as of photographs.
        values: dict[str, Any] = {"image": 0.375 + torch.rand(shape, generator=generator) / 4}
        values["noise"] = torch.randn(model.draws, 3, side, side + 1, generator=generator)
        values["detail"] = torch.tensor([DETAIL.most / 2])
        examples.append(values | {"clean": torch.tensor([given])})
    shapes = {
        "image": {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")},
        "noise": {2: Dim("noise_height"), 3: Dim("noise_width")},
        "detail": {},
        "clean": {},
    }
    tolerance = IMAGE_TOLERANCE if kind == torch.float32 else HALF_TOLERANCE
    names = ("image", *defaults)
    graph = Graph("the file", model.eval(), names, ("upscaled",), shapes, examples, defaults, tolerance)
    content = trace(graph)
    compare(graph, content)
    return content


def _with_one_input(content: bytes) -> bytes:
    """The inputs that have defaults become constants."""
    model = onnx.load_model_from_string(content)
    del model.graph.input[1:]
    return model.SerializeToString()


def _number(value: float) -> np.ndarray:
    return np.array([value], np.float32)
