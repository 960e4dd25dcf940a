"""A pipeline as ONNX files, beside a runner that needs only numpy and onnxruntime: `samdiffsr export`, docs/onnx.md."""

import contextlib
import copy
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from samdiffsr import __version__
from samdiffsr.errors import ConfigError, choose
from samdiffsr.export import run_onnx
from samdiffsr.files import whole_folder
from samdiffsr.pipeline import SamDiffSRPipeline
from samdiffsr.resize import SCALE

OPSET = 18
TOLERANCE = 1e-4  # of a network's output, as a share of its largest value or of 1
RUNNER = "run_onnx.py"
REPORT = "nothing is written: please report it with the versions of torch, onnx, onnxscript and onnxruntime"
SAMPLERS = {"LCMScheduler": "lcm", "DDIMScheduler": "ddim", "DDPMScheduler": "ddpm"}
VARIANCES = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"}


class _Encoder(nn.Module):
    """The encoder as a function of lr alone: features, and the estimate if it is the base."""

    def __init__(self, encoder: Any, with_image: bool) -> None:
        super().__init__()
        self.encoder, self.with_image = encoder, with_image

    def forward(self, lr: Tensor) -> tuple[Tensor, ...]:
        features, estimate = self.encoder.encode(lr, with_image=self.with_image)
        return (features,) if estimate is None else (features, estimate)


@dataclass(frozen=True)
class _Graph:
    """The content of one ONNX file: `shapes` and `examples` hold more names than its inputs."""

    name: str
    network: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, dict[int, Any]]
    examples: list[dict[str, Tensor]]

    def example(self, number: int) -> dict[str, Tensor]:
        return {name: self.examples[number][name] for name in self.inputs}


def export(pipe: SamDiffSRPipeline, folder: Path, *, overwrite: bool = False) -> None:
    """Write encoder.onnx, denoiser.onnx, config.json and run_onnx.py into `folder`.

    Batch, height and width are free. Each file was read back, checked, and repeated its network's output to within
    `TOLERANCE`, before it is put in place.

        encoder.onnx   lr (N, 3, h, w) in [-1, 1] -> features (N, C, h, w), and estimate (N, 3, 4h, 4w) if that is the base
        denoiser.onnx  x_t (N, 3, H, W), t int64 (N,), features (N, C, H/4, W/4) -> prediction (N, 3, H, W)

    Args:
        pipe: is not changed; float32 is exported whatever its dtype.
        folder: is made, and the folders above it.
        overwrite: put the files into a folder that exists.

    Raises:
        ConfigError: a scheduler that the runner has not, a folder that exists or cannot be written, or a network whose
            export does not repeat its output.
    """
    if folder.exists() and not (overwrite and folder.is_dir()):
        raise ConfigError(
            f"output {folder} exists already; name a new folder, or use --overwrite to replace its files."
        )
    config = describe(pipe)
    with whole_folder(folder, add=overwrite, error=ConfigError) as fresh:
        for graph in _graphs(pipe):
            content = _trace(graph)
            _compare(graph, content)
            (fresh / graph.name).write_bytes(content)
            config["sha256"][graph.name] = hashlib.sha256(content).hexdigest()
        (fresh / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        shutil.copyfile(run_onnx.__file__, fresh / RUNNER)


def describe(pipe: SamDiffSRPipeline) -> dict[str, Any]:
    """The facts that the runner needs besides the networks; config.json, still without checksums.

    Raises:
        ConfigError: the scheduler does not fit the model, or the runner has none like it.
    """
    name = type(pipe.scheduler).__name__
    if name not in SAMPLERS:
        raise ConfigError(f"the runner samples with lcm, ddim or ddpm, but the model has {name}: choose a --scheduler.")
    scheduler, target = pipe.scheduler.config, pipe.config["target"]
    if scheduler.get("thresholding"):
        raise ConfigError(f"the runner knows no dynamic thresholding, but this {name} uses it; switch it off.")
    pipe.check(pipe.config["steps"])
    sampler = run_onnx.Sampler(
        name=SAMPLERS[name],
        alpha_bars=pipe.scheduler.alphas_cumprod.tolist(),
        last_alpha_bar=float(pipe.scheduler.final_alpha_cumprod) if name == "DDIMScheduler" else 1.0,
        predicts="v_prediction" if target == "velocity" else scheduler.prediction_type,
        clip=scheduler.clip_sample_range if scheduler.clip_sample else None,
        spacing=scheduler.timestep_spacing,
        offset=scheduler.steps_offset,
        variance=choose(scheduler.get("variance_type", "fixed_small"), VARIANCES, "variance_type"),
        original_steps=scheduler.get("original_inference_steps", scheduler.num_train_timesteps),
        time_scale=scheduler.get("timestep_scaling", 10.0),
        all_steps=target == "posterior_noise",
    )
    try:
        plan = sampler.plan(pipe.config["steps"])
    except ValueError as error:
        raise ConfigError(f"{name} does not suit the model's own settings: {error}.") from error
    return {
        "format": run_onnx.FORMAT,
        "samdiffsr": __version__,
        "opset": OPSET,
        "scale": SCALE,
        **{key: pipe.config[key] for key in ("base", "residual_scale", "detail", "lr_divisor", "target", "steps")},
        "timesteps": [t for t, _ in plan],
        "hr_multiple": pipe.denoiser.hr_multiple,
        "hr_minimum": pipe.denoiser.hr_minimum,
        "sampler": vars(sampler),
        "sha256": {},
    }


@torch.no_grad()
def _graphs(pipe: SamDiffSRPipeline) -> Iterator[_Graph]:
    """Both networks as float32 copies on the CPU, with examples of three sizes and batches."""
    encoder, denoiser = (
        copy.deepcopy(network).cpu().float().eval().to(memory_format=torch.contiguous_format)
        for network in (pipe.encoder, pipe.denoiser)
    )
    multiple = denoiser.hr_multiple
    least = denoiser.hr_minimum // multiple
    with_image = pipe.config["base"] == "encoder"
    examples = []
    for batch, rows, columns in ((2, least + 3, least + 1), (1, least, least + 2), (3, least + 2, least)):
        generator = torch.Generator().manual_seed(0)
        x_t = torch.randn(batch, 3, multiple * rows, multiple * columns, generator=generator)
        lr = torch.rand(batch, 3, x_t.shape[2] // SCALE, x_t.shape[3] // SCALE, generator=generator) * 2 - 1
        t = torch.arange(1, batch + 1) * (len(pipe.scheduler.alphas_cumprod) - 1) // batch
        examples.append({"lr": lr, "x_t": x_t, "t": t, "features": encoder.encode(lr)[0]})
    n, h, w = Dim("n"), Dim("h", min=least), Dim("w", min=least)  # h and w count the denoiser's multiples
    at_hr = {0: n, 2: multiple * h, 3: multiple * w}
    at_lr = {0: n, 2: multiple // SCALE * h, 3: multiple // SCALE * w} if multiple > SCALE else {0: n, 2: h, 3: w}
    shapes = {"lr": {0: n, 2: Dim("h"), 3: Dim("w")}, "x_t": at_hr, "t": {0: n}, "features": at_lr}
    outputs = ("features", "estimate") if with_image else ("features",)
    yield _Graph("encoder.onnx", _Encoder(encoder, with_image).eval(), ("lr",), outputs, shapes, examples)
    yield _Graph("denoiser.onnx", denoiser, ("x_t", "t", "features"), ("prediction",), shapes, examples)


@torch.no_grad()
def _trace(graph: _Graph) -> bytes:
    """The ONNX file; without the exporter's notes, which quote the source and its place on this machine."""
    try:
        with _quiet():
            program = torch.onnx.export(
                graph.network,
                tuple(graph.example(0).values()),  # of two images: traced with one, the batch would be a constant
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=graph.inputs,
                output_names=graph.outputs,
                dynamic_shapes=tuple(graph.shapes[name] for name in graph.inputs),
            )
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(f"torch {torch.__version__} cannot make {graph.name} of this model; {REPORT}.") from error
    assert program is not None  # it is None only for the older exporter
    model = program.model_proto
    for tensor in model.graph.input:
        for axis in graph.shapes[tensor.name]:
            if not tensor.type.tensor_type.shape.dim[axis].dim_param:
                raise ConfigError(f"{tensor.name} of {graph.name} came out with a fixed size of axis {axis}; {REPORT}.")
    del model.metadata_props[:]
    parts = (model.graph.node, model.graph.input, model.graph.output, model.graph.value_info, model.graph.initializer)
    for part in (model.graph, *(entry for entries in parts for entry in entries)):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@torch.no_grad()
def _compare(graph: _Graph, content: bytes) -> None:
    """Run the file and the network on all examples; a ConfigError says by how much they differ if it is too much."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for number in range(len(graph.examples)):
        inputs = graph.example(number)
        expected = graph.network(*inputs.values())
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for name, ours, theirs in zip(
            graph.outputs, found, expected if isinstance(expected, tuple) else (expected,), strict=True
        ):
            reference = theirs.numpy()
            difference = float(np.abs(ours - reference).max() / max(1.0, np.abs(reference).max()))
            if not difference <= TOLERANCE:
                raise ConfigError(
                    f"{name} of {graph.name} differs by {difference:.2g} from the model's, more than {TOLERANCE:g}; {REPORT}."
                )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks: that torchvision is absent, which nothing needs, and torch's own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
