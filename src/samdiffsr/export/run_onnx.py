"""Enlarge a picture four times with the ONNX files beside this script.  python run_onnx.py photo.jpg large.png

`samdiffsr export` puts this file, encoder.onnx, denoiser.onnx and config.json into one folder, which then needs neither
samdiffsr nor torch: numpy and onnxruntime are enough, and Pillow to read and write files. As a library:

    from run_onnx import Upscaler
    large = Upscaler("folder")(image)  # (h, w, 3) in, float32 (4h, 4w, 3) in [0, 1] out
"""

import argparse
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

SCALE = 4  # pixels of the result along a pixel of the picture
FORMAT = 1  # of config.json
PLAIN = ("1", "L", "P", "RGB")  # the Pillow modes that 8-bit RGB holds whole
Noise = Callable[[tuple[int, ...]], np.ndarray]
"""Shape to standard normal float32 numbers. Called for x_T, then once for each step that needs noise."""


def gaussian(seed: int) -> Noise:
    """Noise of numpy's default generator. (torch draws other numbers, so a seed means another sample there.)"""
    generator = np.random.default_rng(seed)
    return lambda shape: generator.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Sampler:
    """One of diffusers' schedulers, with its arithmetic: float32, time steps counted from 0.

    Attributes:
        name: "lcm", "ddim" or "ddpm".
        alpha_bars: abar_t of each training step.
        last_alpha_bar: abar before the first step, 1 or nearly.
        predicts: "epsilon", "sample" or "v_prediction".
        clip: x_0 is clipped to [-clip, clip]; None leaves it.
        spacing, offset: how ddim and ddpm choose their steps: "leading", "trailing" or "linspace".
        variance: of ddpm, "fixed_small" or "fixed_large".
        original_steps, time_scale: of lcm.
        all_steps: only as many steps as in training are exact.
    """

    name: str
    alpha_bars: list[float]
    last_alpha_bar: float
    predicts: str
    clip: float | None
    spacing: str
    offset: int
    variance: str
    original_steps: int
    time_scale: float
    all_steps: bool

    def plan(self, steps: int) -> list[tuple[int, int]]:
        """(t, the step that follows or -1) of each of `steps` steps; ValueError if there cannot be so many."""
        total = len(self.alpha_bars)
        most = self.original_steps if self.name == "lcm" else total
        if not (isinstance(steps, int) and 1 <= steps <= most):
            raise ValueError(f"steps is {steps!r}, but must be a whole number from 1 to {most}")
        if self.all_steps and steps != total:
            raise ValueError(f"steps is {steps}, but this model is only exact with all {total}")
        if self.name == "lcm":
            taught = (total // most) * np.arange(most, 0, -1) - 1
            times = taught[np.floor(np.linspace(0, most, steps, endpoint=False)).astype(int)]
        elif self.spacing == "leading":
            times = (total // steps) * np.arange(steps - 1, -1, -1) + self.offset
        elif self.spacing == "trailing":
            times = np.round(np.arange(total, 0, -total / steps)).astype(int) - 1
        else:
            times = np.round(np.linspace(0, total - 1, steps)).astype(int)[::-1]
        after = [*times[1:], -1] if self.name != "ddim" else times - total // steps
        return [(int(t), int(then)) for t, then in zip(times, after, strict=True)]

    def step(self, prediction: np.ndarray, x_t: np.ndarray, t: int, then: int, noise: Noise) -> np.ndarray:
        """From x_t to the state at the time `then`, given the network's prediction."""
        here = np.float32(self.alpha_bars[t])
        there = np.float32(self.alpha_bars[then] if then >= 0 else self.last_alpha_bar)
        if self.predicts == "epsilon":
            x_0 = (x_t - np.sqrt(1 - here) * prediction) / np.sqrt(here)
        elif self.predicts == "v_prediction":
            x_0 = np.sqrt(here) * x_t - np.sqrt(1 - here) * prediction
        else:
            x_0 = prediction
        clipped = x_0 if self.clip is None else np.clip(x_0, -self.clip, self.clip)
        if self.name == "ddim":  # arXiv 2010.02502, eq. 12 without noise; epsilon is that of the unclipped x_0
            epsilon = (x_t - np.sqrt(here) * x_0) / np.sqrt(1 - here)
            return np.sqrt(there) * clipped + np.sqrt(1 - there) * epsilon
        if self.name == "lcm":  # arXiv 2310.04378: the estimate, and fresh noise on it
            time = np.float32(t * self.time_scale)
            estimate = time / np.sqrt(time**2 + 0.25) * clipped + 0.25 / (time**2 + 0.25) * x_t
            return np.sqrt(there) * estimate + np.sqrt(1 - there) * noise(x_t.shape) if then >= 0 else estimate
        alpha = here / there  # ddpm, arXiv 2006.11239, eq. 7
        mean = np.sqrt(there) * (1 - alpha) * clipped + np.sqrt(alpha) * (1 - there) * x_t
        mean = mean / (1 - here)
        if t == 0:
            return mean
        variance = 1 - alpha if self.variance == "fixed_large" else (1 - there) / (1 - here) * (1 - alpha)
        return mean + np.sqrt(np.maximum(variance, np.float32(1e-20))) * noise(x_t.shape)


class Upscaler:
    """The two networks and the sampling between them.

    Args:
        folder: what `samdiffsr export` wrote.
        threads: of onnxruntime; 0 leaves the choice to it.
        providers: of onnxruntime, in order of preference; see `onnxruntime.get_available_providers()`.

    Raises:
        OSError, ValueError: a file is missing, damaged or of another version.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if self.config.get("format") != FORMAT:
            raise ValueError(f"config.json has format {self.config.get('format')!r}, but this script reads {FORMAT}")
        self.sampler = Sampler(**self.config["sampler"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        networks = (_read(folder / name, self.config["sha256"][name]) for name in ("encoder.onnx", "denoiser.onnx"))
        self._encoder, self._denoiser = (
            onnxruntime.InferenceSession(network, options, providers=list(providers)) for network in networks
        )

    def __call__(self, image: np.ndarray, steps: int | None = None, noise: Noise | None = None) -> np.ndarray:
        """Upscale x4.

        Args:
            image: (h, w, 3), uint8, or floating in [0, 1]; any size from 1x1. It is worked on as a whole: no tiles.
            steps: sampling steps; None takes the model's default.
            noise: None takes `gaussian(0)`.

        Returns:
            float32 (4h, 4w, 3) in [0, 1].

        Raises:
            ValueError: for another shape or range, or a number of steps that the sampler cannot take.
        """
        lr = _as_nchw(image)
        features, base = self.encode(lr)
        x_0 = deque(self.states(features, steps, noise or gaussian(0)), maxlen=1).pop()
        return self.finish(x_0, base)

    def encode(self, lr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """lr (1, 3, h, w) in [0, 1] -> features of the padded picture, and the base (1, 3, 4h, 4w) in [-1, 1]."""
        height, width = lr.shape[2:]
        found = _run(self._encoder, {"lr": 2 * self._pad(lr) - 1})
        if self.config["base"] == "encoder":
            return found[0], found[1][..., : SCALE * height, : SCALE * width]
        return found[0], 2 * bicubic(lr * (255 / self.config["lr_divisor"])) - 1

    def states(self, features: np.ndarray, steps: int | None, noise: Noise) -> Iterator[np.ndarray]:
        """The state after each step of the reverse process; the last is x_0."""
        plan = self.sampler.plan(self.config["steps"] if steps is None else steps)
        x_t = noise((1, 3, SCALE * features.shape[2], SCALE * features.shape[3]))
        for t, then in plan:
            inputs = {"x_t": x_t, "t": np.array([t], dtype=np.int64), "features": features}
            (prediction,) = _run(self._denoiser, inputs)
            x_t = self.sampler.step(prediction, x_t, t, then, noise)
            yield x_t

    def finish(self, x_0: np.ndarray, base: np.ndarray) -> np.ndarray:
        """x_0, cut to the base's size, is scaled back and added, as much of it as the model's `detail` says: -> (4h, 4w, 3)
        in [0, 1]."""
        strength = self.config["detail"] / self.config["residual_scale"]
        residual = strength * np.clip(x_0[..., : base.shape[2], : base.shape[3]], -1, 1)
        return (np.clip(residual + base, -1, 1)[0] / 2 + 0.5).transpose(1, 2, 0).astype(np.float32)

    def _pad(self, lr: np.ndarray) -> np.ndarray:
        """Repeat the last row and column until the denoiser can take the size."""
        multiple, least = self.config["hr_multiple"], self.config["hr_minimum"]
        wanted = [-(-max(SCALE * side, least) // multiple) * multiple // SCALE for side in lr.shape[2:]]
        extra = [(0, want - side) for want, side in zip(wanted, lr.shape[2:], strict=True)]
        return np.pad(lr, [(0, 0), (0, 0), *extra], mode="edge")


def _run(session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(output) for output in session.run(None, inputs)]


def bicubic(batch: np.ndarray) -> np.ndarray:
    """MATLAB's `imresize(..., 4)` of floating (..., h, w), not clipped: Keys' kernel (a = -0.5), symmetric border."""
    out = batch
    for axis in (-2, -1):
        length = out.shape[axis]
        centre = (np.arange(SCALE * length) + 0.5) / SCALE - 0.5
        index = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)
        x = np.abs(centre[:, None] - index)
        weight = np.where(x <= 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
        index = np.minimum(index % (2 * length), 2 * length - 1 - index % (2 * length))
        along = (-1, 1) if axis == -2 else (-1,)
        total = sum(np.take(out, index[:, tap], axis) * weight[:, tap].reshape(along) for tap in range(4))
        out = np.asarray(total)
    return out.astype(batch.dtype)


def _read(file: Path, digest: str) -> bytes:
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"'{file}' is damaged, or not of the same export as config.json: export the model again")
    return content


def _as_nchw(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) -> float32 (1, 3, h, w) in [0, 1]."""
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image has the shape {image.shape}, but must be (h, w, 3) with at least 1x1 pixel")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"image is {image.dtype}, but must be uint8 or floating")
    pixels = image / np.float32(255) if image.dtype == np.uint8 else image.astype(np.float32)
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # also catches NaN
        raise ValueError(f"pixels must lie in [0, 1], got values from {pixels.min():.4g} to {pixels.max():.4g}")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def _enlarge(options: argparse.Namespace) -> None:
    """One file to another."""
    from PIL import Image, ImageOps

    output = Path(options.output)
    if output.exists() and not options.overwrite:
        raise ValueError(f"'{output}' exists already: use --overwrite or another name")
    try:
        opened = Image.open(options.picture)
    except Image.DecompressionBombError as error:
        raise ValueError(f"'{options.picture}': {error}") from error
    with opened:
        if opened.mode not in PLAIN or "transparency" in opened.info:
            raise ValueError(f"'{options.picture}' is {opened.mode}, not plain 8-bit grey or RGB: convert it first")
        image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    large = Upscaler(options.folder, threads=options.threads)(image, options.steps, gaussian(options.seed))
    picture = Image.fromarray(np.round(large * 255).astype(np.uint8))
    temporary = output.with_name(f".{os.getpid()}-{output.name}")  # keeps the extension, which names the format
    try:
        picture.save(temporary)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 after one sentence on stderr."""
    parser = argparse.ArgumentParser(description="Enlarge a picture four times.")
    parser.add_argument("picture")
    parser.add_argument("output")
    parser.add_argument("--steps", type=int, help="denoising steps (default: as the model was saved)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: onnxruntime chooses")
    parser.add_argument("--folder", default=Path(__file__).parent, help="of the ONNX files (default: this script's)")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    try:
        _enlarge(parser.parse_args(arguments))
    except (OSError, ValueError) as error:
        print(f"Error: {error}.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
