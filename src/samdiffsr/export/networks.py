"""The networks of a pipeline as ONNX files, beside a runner that needs only numpy and onnxruntime: docs/onnx.md."""

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from samdiffsr import __version__
from samdiffsr.errors import ConfigError
from samdiffsr.export import run_onnx
from samdiffsr.export.sampler import sampler_of
from samdiffsr.export.trace import OPSET, Graph, compare, trace
from samdiffsr.files import whole_folder
from samdiffsr.models.level import LevelHead, level_of, takes_level
from samdiffsr.pipeline import SamDiffSRPipeline
from samdiffsr.resize import SCALE

RUNNER = "run_onnx.py"


class _Encoder(nn.Module):
    """The encoder as a function of lr, and of the level if it takes one: features, and the estimate if it is the base."""

    def __init__(self, encoder: Any, with_image: bool) -> None:
        super().__init__()
        self.encoder, self.with_image = encoder, with_image

    def forward(self, lr: Tensor, level: Tensor | None = None) -> tuple[Tensor, ...]:
        given = {} if level is None else {"level": level}
        features, estimate = self.encoder.encode(lr, with_image=self.with_image, **given)
        return (features,) if estimate is None else (features, estimate)


class _LevelDenoiser(nn.Module):
    """A denoiser that takes a level, without the inputs between."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t: Tensor, t: Tensor, features: Tensor, level: Tensor) -> Tensor:
        return self.denoiser(x_t, t, features, level=level)


class _Level(nn.Module):
    """The level of a picture that comes window by window: what the windows before had on average, and this one's share."""

    def __init__(self, head: LevelHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, lr: Tensor, means: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        here = share[:, None] * self.head.means(lr) + (1 - share)[:, None] * means
        return here, level_of(self.head.judge(here))


def export_networks(pipe: SamDiffSRPipeline, folder: Path, *, overwrite: bool = False) -> None:
    """Write encoder.onnx, denoiser.onnx, for a model with a level level.onnx, config.json and run_onnx.py into `folder`.

    Batch, height and width are free. Each file was read back, checked, and repeated its network's output to within
    `TOLERANCE`, before it is put in place.

        encoder.onnx   lr (N, 3, h, w) in [-1, 1] -> features (N, C, h, w), and estimate (N, 3, 4h, 4w) if that is the base
        denoiser.onnx  x_t (N, 3, H, W), t int64 (N,), features (N, C, H/4, W/4) -> prediction (N, 3, H, W)
        level.onnx     lr, means (N, C), share (N,): see `run_onnx.Upscaler.level` -> means (N, C), level (N,)

    Networks with a level have it as their last input, `level` (N,).

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
            content = trace(graph)
            compare(graph, content)
            (fresh / graph.name).write_bytes(content)
            config["sha256"][graph.name] = hashlib.sha256(content).hexdigest()
        (fresh / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        shutil.copyfile(run_onnx.__file__, fresh / RUNNER)


def describe(pipe: SamDiffSRPipeline) -> dict[str, Any]:
    """The facts that the runner needs besides the networks; config.json, still without checksums.

    Raises:
        ConfigError: see `sampler_of`.
    """
    sampler = sampler_of(pipe)
    encoder, denoiser = pipe.encoder, pipe.denoiser
    return {
        "format": run_onnx.FORMAT,
        "samdiffsr": __version__,
        "opset": OPSET,
        "scale": SCALE,
        **{key: pipe.config[key] for key in ("base", "residual_scale", "detail", "lr_divisor", "target", "steps")},
        "timesteps": [t for t, _ in sampler.plan(pipe.config["steps"])],
        "hr_multiple": denoiser.hr_multiple,
        "hr_minimum": denoiser.hr_minimum,
        "halo": {"encoder": encoder.halo_lr, "denoiser": denoiser.halo_lr + denoiser.condition_halo_lr},
        "level_channels": encoder.level_head.MEANS if takes_level(encoder) else 0,
        "level_in_denoiser": takes_level(denoiser),
        "sampler": vars(sampler),
        "sha256": {},
    }


@torch.no_grad()
def _graphs(pipe: SamDiffSRPipeline) -> Iterator[Graph]:
    """The networks as float32 copies on the CPU, with examples of three sizes and batches."""
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
        lr = torch.rand(batch, 3, x_t.shape[2] // SCALE, x_t.shape[3] // SCALE, generator=generator) / 2 - 0.25
        t = torch.arange(1, batch + 1) * (len(pipe.scheduler.alphas_cumprod) - 1) // batch
        level = torch.rand(batch, generator=generator)
        examples.append({"lr": lr, "x_t": x_t, "t": t, "level": level, "features": encoder.encode(lr)[0]})
    n, h, w = Dim("n"), Dim("h", min=least), Dim("w", min=least)  # h and w count the denoiser's multiples
    at_hr = {0: n, 2: multiple * h, 3: multiple * w}
    at_lr = {0: n, 2: multiple // SCALE * h, 3: multiple // SCALE * w} if multiple > SCALE else {0: n, 2: h, 3: w}
    shapes = {
        "lr": {0: n, 2: Dim("h"), 3: Dim("w")},
        "x_t": at_hr,
        "t": {0: n},
        "level": {0: n},
        "features": at_lr,
        "means": {0: n},
        "share": {0: n},
    }
    inputs = ("lr", "level") if takes_level(encoder) else ("lr",)
    outputs = ("features", "estimate") if with_image else ("features",)
    yield Graph("encoder.onnx", _Encoder(encoder, with_image).eval(), inputs, outputs, shapes, examples)
    inputs = ("x_t", "t", "features")
    if takes_level(denoiser):
        inputs, denoiser = (*inputs, "level"), _LevelDenoiser(denoiser).eval()
    yield Graph("denoiser.onnx", denoiser, inputs, ("prediction",), shapes, examples)
    if takes_level(encoder):
        head = encoder.level_head
        for example in examples:
            batch = len(example["lr"])
            example |= {"means": torch.rand(batch, head.MEANS), "share": torch.rand(batch)}
        names = ("lr", "means", "share")
        yield Graph("level.onnx", _Level(head).eval(), names, ("means_after", "level"), shapes, examples)
