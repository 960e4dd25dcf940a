"""Enlarge a picture four times with the ONNX files beside this script.  python run_onnx.py photo.jpg large.png

`samdiffsr export --networks` puts this file, the networks and config.json into one folder, which then needs neither samdiffsr
nor torch: numpy and onnxruntime are enough, and Pillow to read and write files. As a library:

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
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

SCALE = 4  # pixels of the result along a pixel of the picture
FORMAT = 1  # of config.json
TILE = 384  # pixels of the picture along a tile: about 600 MB for the default model
LEVEL_TILE = 256  # always the same, so that the estimated level does not depend on the tiles of the networks
# Of onnxruntime, before its CPU, where they are there. Those left out want fixed sizes, or minutes to start.
PROVIDERS = ("CUDAExecutionProvider", "MIGraphXExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider")
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

    def coefficients(self, t: int, then: int) -> "Step":
        """Of the step from the state x_t to the one at the time `then`."""
        here = np.float32(self.alpha_bars[t])
        there = np.float32(self.alpha_bars[then] if then >= 0 else self.last_alpha_bar)
        signal, rest = np.sqrt(here), np.sqrt(1 - here)
        estimate = {
            "epsilon": (1 / signal, -rest / signal),
            "v_prediction": (signal, -rest),
            "sample": (np.float32(0), np.float32(1)),
        }[self.predicts]
        if self.name == "ddim":  # arXiv 2010.02502, eq. 12 without noise; epsilon is that of the unclipped x_0
            epsilon = np.sqrt(1 - there) / rest
            return _step(estimate, np.sqrt(there), epsilon, -epsilon * signal)
        if self.name == "lcm":  # arXiv 2310.04378: the estimate, and fresh noise on it
            time = np.float32(t * self.time_scale)
            of_x_0, of_x_t = time / np.sqrt(time**2 + 0.25), 0.25 / (time**2 + 0.25)
            if then < 0:
                return _step(estimate, of_x_0, of_x_t)
            return _step(estimate, np.sqrt(there) * of_x_0, np.sqrt(there) * of_x_t, noise=np.sqrt(1 - there))
        alpha = here / there  # ddpm, arXiv 2006.11239, eq. 7
        mean = np.sqrt(there) * (1 - alpha) / (1 - here), np.sqrt(alpha) * (1 - there) / (1 - here)
        if t == 0:
            return _step(estimate, *mean)
        variance = 1 - alpha if self.variance == "fixed_large" else (1 - there) / (1 - here) * (1 - alpha)
        return _step(estimate, *mean, noise=np.sqrt(np.maximum(variance, np.float32(1e-20))))

    def step(self, prediction: Any, x_t: Any, step: "Step", noise: Callable[[], Any]) -> Any:
        """The next state, given the network's prediction at x_t; arrays of numpy, or tensors of torch."""
        x_0 = step.of_prediction * prediction
        if step.of_state:
            x_0 = x_0 + step.of_state * x_t
        clipped = x_0 if self.clip is None else x_0.clip(-self.clip, self.clip)
        after = step.clipped * clipped + step.state * x_t
        if step.unclipped:
            after = after + step.unclipped * x_0
        return after + step.noise * noise() if step.noise else after


class Step(NamedTuple):
    """x_0 = of_state x_t + of_prediction prediction; the next state is the sum of the others, each times its own."""

    of_state: float
    of_prediction: float
    clipped: float
    state: float
    unclipped: float
    noise: float


def _step(estimate: tuple[Any, Any], clipped: Any, state: Any, unclipped: Any = 0.0, noise: Any = 0.0) -> Step:
    of_state, of_prediction = estimate
    return Step(*map(float, (of_state, of_prediction, clipped, state, unclipped, noise)))


class Upscaler:
    """The networks and the sampling between them.

    Args:
        folder: what `samdiffsr export --networks` wrote.
        threads: of onnxruntime; 0 leaves the choice to it.
        providers: of onnxruntime, in order of preference; None takes those of `PROVIDERS` that are there, and the CPU.
        tile: side of a tile in pixels of the picture, 0 for the whole picture at once. The result does not depend on it.

    Raises:
        OSError, ValueError: a file is missing, damaged or of another version.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        threads: int = 0,
        providers: Sequence[str] | None = None,
        tile: int = TILE,
    ) -> None:
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if self.config.get("format") != FORMAT:
            raise ValueError(f"config.json has format {self.config.get('format')!r}, but this script reads {FORMAT}")
        if not (isinstance(tile, int) and tile >= 0):
            raise ValueError(f"tile is {tile!r}, but must be a whole number from 0")
        self.tile, self.sampler = tile, Sampler(**self.config["sampler"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if providers is None:
            there = onnxruntime.get_available_providers()
            providers = [name for name in (*PROVIDERS, "CPUExecutionProvider") if name in there]
        self._networks = {
            name: onnxruntime.InferenceSession(_read(folder / name, digest), options, providers=list(providers))
            for name, digest in self.config["sha256"].items()
        }

    def __call__(
        self, image: np.ndarray, steps: int | None = None, noise: Noise | None = None, *, clean: float | None = None
    ) -> np.ndarray:
        """Upscale x4.

        Args:
            image: (h, w, 3), uint8, or floating in [0, 1]; any size from 1x1.
            steps: sampling steps; None takes the model's default.
            noise: None takes `gaussian(0)`.
            clean: how degraded the picture is taken to be, 0 to 1; None estimates it, where the model can.

        Returns:
            float32 (4h, 4w, 3) in [0, 1].

        Raises:
            ValueError: for another shape or range, a number of steps that the sampler cannot take, or a model without `clean`.
        """
        lr = _as_nchw(image)
        level = self.level(lr, clean)
        features, base = self.encode(lr, level)
        x_0 = deque(self.states(features, steps, noise or gaussian(0), level), maxlen=1).pop()
        return self.finish(x_0, base)

    def level(self, lr: np.ndarray, clean: float | None = None) -> np.ndarray | None:
        """(1,), given or estimated from lr (1, 3, h, w) in [0, 1]; None for a model without this input."""
        if clean is not None and not 0 <= clean <= 1:
            raise ValueError(f"clean is {clean!r}, but must be a number from 0 to 1")
        if "level.onnx" not in self._networks:
            if clean:
                raise ValueError(f"clean is {clean!r}, but this model was not trained to clean")
            return None
        if clean is not None:
            return np.array([clean], np.float32)
        found, seen, means = np.zeros(1, np.float32), 0, np.zeros((1, self.config["level_channels"]), np.float32)
        for tile, _ in _tiles(lr.shape[2:], LEVEL_TILE):
            window = lr[(..., *tile)]
            here = window.shape[2] * window.shape[3]
            seen += here
            inputs = {"lr": 2 * window - 1, "means": means, "share": np.array([here / seen], np.float32)}
            means, found = self._run("level.onnx", inputs)
        return found

    def encode(self, lr: np.ndarray, level: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """lr (1, 3, h, w) in [0, 1] -> features of the padded picture, and the base (1, 3, 4h, 4w) in [-1, 1]."""
        height, width = lr.shape[2:]
        padded = 2 * self._pad(lr) - 1
        given = {"level": level} if level is not None else {}
        found = self._each_tile(
            "encoder",
            padded.shape[2:],
            lambda window: self._run("encoder.onnx", {"lr": padded[(..., *window)], **given}),
        )
        if self.config["base"] == "encoder":
            return found[0], found[1][..., : SCALE * height, : SCALE * width]
        return found[0], 2 * bicubic(lr * (255 / self.config["lr_divisor"])) - 1

    def states(
        self, features: np.ndarray, steps: int | None, noise: Noise, level: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """The state after each step of the reverse process; the last is x_0."""
        plan = self.sampler.plan(self.config["steps"] if steps is None else steps)
        shape = (1, 3, SCALE * features.shape[2], SCALE * features.shape[3])
        x_t = noise(shape)
        for t, then in plan:
            given = {"t": np.array([t], dtype=np.int64)}
            if level is not None and self.config["level_in_denoiser"]:
                given["level"] = level

            def predict(window: Area, x_t: np.ndarray = x_t, given: dict[str, np.ndarray] = given) -> list[np.ndarray]:
                there = {"x_t": x_t[(..., *_scaled(window, SCALE))], "features": features[(..., *window)]}
                return self._run("denoiser.onnx", {**there, **given})

            (prediction,) = self._each_tile("denoiser", features.shape[2:], predict)
            x_t = self.sampler.step(prediction, x_t, self.sampler.coefficients(t, then), lambda: noise(shape))
            yield x_t

    def finish(self, x_0: np.ndarray, base: np.ndarray) -> np.ndarray:
        """x_0, cut to the base's size, is scaled back and added, as much of it as the model's `detail` says: -> (4h, 4w, 3)
        in [0, 1]."""
        strength = self.config["detail"] / self.config["residual_scale"]
        residual = strength * np.clip(x_0[..., : base.shape[2], : base.shape[3]], -1, 1)
        return (np.clip(residual + base, -1, 1)[0] / 2 + 0.5).transpose(1, 2, 0).astype(np.float32)

    def _each_tile(
        self, network: str, shape: Sequence[int], work: Callable[["Area"], list[np.ndarray]]
    ) -> list[np.ndarray]:
        """The outputs of a network for the whole padded picture of h x w pixels, each made of those of windows: a tile, and
        around it as much as the network sees. At a true border a window ends with the picture."""
        multiple = -(-self.config["hr_multiple"] // SCALE)
        side, halo = (-(-size // multiple) * multiple for size in (self.tile, self.config["halo"][network]))
        whole: list[np.ndarray] = []
        for tile, window in _tiles(shape, side, halo, multiple):
            found = work(window)
            if tile == window:
                return found
            for number, output in enumerate(found):
                scale = output.shape[2] // (window[0].stop - window[0].start)
                if number == len(whole):
                    whole.append(np.empty((*output.shape[:2], scale * shape[0], scale * shape[1]), output.dtype))
                inner = [slice(a.start - b.start, a.stop - b.start) for a, b in zip(tile, window, strict=True)]
                whole[number][(..., *_scaled(tile, scale))] = output[(..., *_scaled(inner, scale))]
        return whole

    def _run(self, name: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(output) for output in self._networks[name].run(None, inputs)]

    def _pad(self, lr: np.ndarray) -> np.ndarray:
        """Repeat the last row and column until the denoiser can take the size."""
        multiple, least = self.config["hr_multiple"], self.config["hr_minimum"]
        wanted = [-(-max(SCALE * side, least) // multiple) * multiple // SCALE for side in lr.shape[2:]]
        extra = [(0, want - side) for want, side in zip(wanted, lr.shape[2:], strict=True)]
        return np.pad(lr, [(0, 0), (0, 0), *extra], mode="edge")


Area = tuple[slice, slice]  # rows and columns


def _scaled(area: Sequence[slice], factor: int) -> list[slice]:
    return [slice(factor * side.start, factor * side.stop) for side in area]


def _tiles(shape: Sequence[int], side: int, halo: int = 0, multiple: int = 1) -> Iterator[tuple[Area, Area]]:
    """Tiles of about equal size that cover a picture once, each with the window that is larger by the halo.

    All start at a multiple of `multiple`, as `side` and `halo` are. A `side` of 0 is one tile.
    """
    parts = []
    for length in shape:
        count = -(-length // (side or length))
        step = -(-length // (count * multiple)) * multiple
        ends = [(start, min(start + step, length)) for start in range(0, length, step)]
        parts.append([(slice(*end), slice(max(0, end[0] - halo), min(length, end[1] + halo))) for end in ends])
    for rows, rows_seen in parts[0]:
        for columns, columns_seen in parts[1]:
            yield (rows, columns), (rows_seen, columns_seen)


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
    upscaler = Upscaler(options.folder, threads=options.threads, tile=options.tile)
    large = upscaler(image, options.steps, gaussian(options.seed), clean=options.clean)
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
    parser.add_argument("--clean", type=float, help="how degraded the picture is, 0 to 1 (default: estimated)")
    parser.add_argument("--tile", type=int, default=TILE, help="side of a tile, 0 for none (default: %(default)s)")
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
