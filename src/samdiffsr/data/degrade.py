"""Degraded LR images for training: what cameras, scanners and web sites do to a picture, as a function of (seed, index).

Two passes of blur, resize, noise and JPEG with the ranges of Real-ESRGAN (arXiv 2107.10833, which all later work copies),
but only for some of the examples: a model that sees nothing else smooths clean pictures too. As many are degraded lightly, as
today's web pictures are, and the rest are exact bicubic reductions. `Degradation.level` says how much was done.
"""

import io
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from PIL import Image
from scipy import fft, special

from samdiffsr.resize import SCALE, imresize

MARGIN_LR = 8
"""LR pixels around the crop that `degrade` wants to see."""

CLEAN_SHARE = 1 / 3
"""Share of the examples that are not degraded, where no other is given."""

STREAM = 3  # of the random streams of a seed; 0 to 2 draw crops, images, and the noise of the diffusion
BLOCK = 8  # side of a JPEG block

Shape = Literal["gaussian", "generalised", "plateau"]
# Both antialiased. Not averages over areas: they move a point to the middle of a coarse pixel, 0.6 LR pixels away (measured).
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)

# Strengths that count as 1 in `Degradation.level`.
FULL_BLUR = 2.0  # standard deviation in LR pixels
FULL_NOISE = 50.0  # standard deviation in grey levels
FULL_JPEG = 120.0  # 100 less the quality: JPEG alone, even at quality 30, is never more than 0.6


@dataclass(frozen=True)
class Blur:
    """A kernel of `size` x `size` pixels: exp(-q^p / 2) or 1 / (1 + q^p), with q = x' covariance^-1 x and p = `power`.

    `sigma` are the two standard deviations in pixels, `angle` that of the first axis in radians.
    """

    size: int
    sigma: tuple[float, float]
    angle: float
    shape: Shape = "gaussian"
    power: float = 1.0

    def kernel(self) -> np.ndarray:
        """float32 (size, size), symmetric about its centre, sum 1."""
        reach = self.size // 2
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        u, v = x * math.cos(self.angle) + y * math.sin(self.angle), y * math.cos(self.angle) - x * math.sin(self.angle)
        q = (u / self.sigma[0]) ** 2 + (v / self.sigma[1]) ** 2
        weight = 1 / (1 + q**self.power) if self.shape == "plateau" else np.exp(-0.5 * q**self.power)
        return (weight / weight.sum()).astype(np.float32)

    @property
    def spread(self) -> float:
        """Standard deviation in pixels, both axes together."""
        return math.sqrt((self.sigma[0] ** 2 + self.sigma[1] ** 2) / 2)


@dataclass(frozen=True)
class Sinc:
    """The ideal circular low-pass filter of frequencies below `cutoff` (radians a pixel): it makes edges ring."""

    size: int
    cutoff: float

    def kernel(self) -> np.ndarray:
        """float32 (size, size), symmetric about its centre, sum 1."""
        reach = self.size // 2
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        radius = np.hypot(x, y)
        radius[reach, reach] = 1.0
        weight = self.cutoff * special.j1(self.cutoff * radius) / (2 * math.pi * radius)
        weight[reach, reach] = self.cutoff**2 / (4 * math.pi)
        return (weight / weight.sum()).astype(np.float32)

    @property
    def spread(self) -> float:
        """Standard deviation in pixels of a Gaussian that takes away about as much; 0 where every frequency passes."""
        return 0.5 * (math.pi / self.cutoff - 1)


@dataclass(frozen=True)
class Resize:
    """To `factor` times the LR size, centres to centres."""

    factor: float
    filter: Image.Resampling


@dataclass(frozen=True)
class Noise:
    """Normal noise of `sigma` grey levels; `shot` noise grows with the root of the brightness, with `sigma` at level 128.

    Shot noise is the normal limit of Poisson's: the two differ in the darkest levels only, and drawing it costs a fifth.
    """

    sigma: float
    shot: bool
    grey: bool


@dataclass(frozen=True)
class Jpeg:
    """Pillow's encoder and decoder; `subsampled` halves the resolution of colour (4:2:0)."""

    quality: int
    subsampled: bool


Step = Blur | Sinc | Resize | Noise | Jpeg


@dataclass(frozen=True)
class Degradation:
    """The changes of an HR image on its way to the LR image, step by step, to a `Resize` to factor 1 and perhaps more.

    No step: the exact bicubic reduction.
    """

    steps: tuple[Step, ...] = ()

    def apply(self, hr: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """uint8 (H, W, 3), both sides multiples of 4 -> uint8 (H / 4, W / 4, 3)."""
        if not self.steps:
            return imresize(hr, 1 / SCALE)
        lr_shape = hr.shape[0] // SCALE, hr.shape[1] // SCALE
        image = hr.astype(np.float32)
        for step in self.steps:
            image = _after(step, image, lr_shape, random)
        return _bytes(image)

    @cached_property
    def level(self) -> float:
        """How much is done, from 0 (the exact bicubic reduction) to 1, whatever the picture shows.

        The length of a vector of three strengths, but at most 1: blur (standard deviation in LR pixels, with what a low
        resolution on the way loses), noise (standard deviation in grey levels; an image that shrinks averages it) and JPEG
        (100 less the quality, the worse of two; shrinking weakens it too). `FULL_BLUR`, `FULL_NOISE` and `FULL_JPEG` are
        their units. More blur, more noise or a lower quality never makes the level smaller.
        """
        blur = noise = jpeg = 0.0  # the first two as variances
        pixels = least = float(SCALE)  # a side of an LR pixel has so many pixels now, and had at least
        for step in self.steps:
            match step:
                case Blur() | Sinc():
                    blur += (step.spread / pixels) ** 2
                case Resize():
                    averaged = min(1.0, step.factor / pixels)
                    noise, jpeg = noise * averaged**2, jpeg * averaged
                    pixels, least = step.factor, min(least, step.factor)
                case Noise():
                    noise += step.sigma**2
                case Jpeg():
                    jpeg = max(jpeg, 100.0 - step.quality)
        blur += max(0.0, 1 / least**2 - 1) / 12  # the variance of a square pixel beyond that of an LR pixel
        return min(1.0, math.hypot(math.sqrt(blur) / FULL_BLUR, math.sqrt(noise) / FULL_NOISE, jpeg / FULL_JPEG))


def random_of(seed: int, index: int) -> np.random.Generator:
    """The random numbers of example `index`: a counter-based stream (Philox, Salmon et al. 2011) of its own."""
    return np.random.Generator(np.random.Philox(key=seed + (STREAM << 64), counter=index << 64))


def draw(random: np.random.Generator, clean: float = CLEAN_SHARE) -> Degradation:
    """None with the chance `clean`; else, with equal chances, a light one or one of the whole range."""
    place = random.random()
    if place < clean:
        return Degradation()
    return _light(random) if place < (1 + clean) / 2 else _whole(random)


def degrade(hr: np.ndarray, seed: int, index: int, clean: float = CLEAN_SHARE) -> tuple[np.ndarray, float]:
    """The degraded LR image of a crop, and the level of its degradation: a function of these arguments.

    Args:
        hr: uint8 (H + 2 M, W + 2 M, 3): the HR crop with a margin of M = 4 `MARGIN_LR` pixels, H and W multiples of 4.
            Blur reaches into the margin, and the JPEG grid starts at a random place in it.
        clean: the share of examples that stay exact bicubic reductions, from 0 to 1.

    Returns:
        uint8 (H / 4, W / 4, 3), not shifted, and `Degradation.level`. At level 0 it is bit for bit the crop of the whole
        photograph's MATLAB bicubic reduction (where a photograph ends, the margin must mirror it, edge pixel included).
    """
    random = random_of(seed, index)
    chosen = draw(random, clean)
    height, width = (side // SCALE - 2 * MARGIN_LR for side in hr.shape[:2])
    if not chosen.steps:
        top = left = MARGIN_LR
        lr = chosen.apply(hr, random)
    else:  # less than the whole margin, for speed: 1 to 8 pixels before the crop, 9 in all
        top, left = (int(offset) for offset in random.integers(1, BLOCK + 1, 2))
        window = hr[SCALE * (MARGIN_LR - top) :, SCALE * (MARGIN_LR - left) :]
        lr = chosen.apply(window[: SCALE * (height + BLOCK + 1), : SCALE * (width + BLOCK + 1)], random)
    return lr[top : top + height, left : left + width], chosen.level


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """float32 (H, W, 3) with an odd, symmetric kernel, by FFT; the border is mirrored, edge pixel included."""
    reach, (height, width) = len(kernel) // 2, image.shape[:2]
    wide = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), "symmetric").transpose(2, 0, 1)
    size = [fft.next_fast_len(side, real=True) for side in wide.shape[1:]]
    spectrum = np.asarray(fft.rfft2(wide, size)) * np.asarray(fft.rfft2(kernel, size))
    out = np.asarray(fft.irfft2(spectrum, size))[:, 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]
    return np.ascontiguousarray(out.transpose(1, 2, 0))


def _after(step: Step, image: np.ndarray, lr_shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """float32 (H, W, 3) after a step; nothing shifts."""
    match step:
        case Blur() | Sinc():
            return convolve(image, step.kernel())
        case Resize():
            height, width = (max(1, round(step.factor * side)) for side in lr_shape)
            if (height, width) == image.shape[:2]:
                return image
            return np.asarray(_picture(image).resize((width, height), step.filter), np.float32)
        case Noise():
            noise = step.sigma * random.standard_normal((*image.shape[:2], 1 if step.grey else 3), np.float32)
            if step.shot:
                light = image.mean(axis=2, keepdims=True) if step.grey else image
                noise = noise * np.sqrt(np.clip(light, 0, 255) / 128)
            return image + noise
        case Jpeg():
            file = io.BytesIO()
            _picture(image).save(file, "JPEG", quality=step.quality, subsampling=2 if step.subsampled else 0)
            return np.asarray(Image.open(file), np.float32)


def _light(random: np.random.Generator) -> Degradation:
    """A picture of the web: resized once, JPEG twice, hardly blurred or noisy (ranges of traiNNer-redux's templates)."""
    steps: list[Step] = []
    if random.random() < 0.5:
        steps.append(_gaussian(random, 7, (0.2, 1.0)))
    steps.append(Resize(SCALE * random.uniform(0.4, 1.5), _filter(random)))
    if random.random() < 0.5:
        steps.append(Noise(random.uniform(0, 4), bool(random.random() < 0.5), bool(random.random() < 0.4)))
    return Degradation((*steps, _jpeg(random, 75), Resize(1.0, _filter(random)), _jpeg(random, 75)))


def _whole(random: np.random.Generator) -> Degradation:
    """Two passes with the ranges of Real-ESRGAN; the last JPEG comes before or after the last resize."""
    first: list[Step] = [_blur(random, (0.2, 3.0)), _resize(random, SCALE, (0.2, 0.7), (0.15, 1.5))]
    first += [_noise(random, 30.0, 3.0), _jpeg(random, 30)]
    second: list[Step] = [_blur(random, (0.2, 1.5))] if random.random() < 0.8 else []
    second += [_resize(random, 1, (0.3, 0.4), (0.3, 1.2)), _noise(random, 25.0, 2.5)]
    last: list[Step] = [Resize(1.0, _filter(random))]
    if random.random() < 0.8:
        last.append(_sinc(random))
    jpeg = _jpeg(random, 30)
    last = [*last, jpeg] if random.random() < 0.5 else [jpeg, *last]
    return Degradation((*first, *second, *last))


def _blur(random: np.random.Generator, sigma: tuple[float, float]) -> Blur | Sinc:
    if random.random() < 0.1:
        return _sinc(random)
    size = _kernel_size(random)
    kinds = ("gaussian", "gaussian", "generalised", "generalised", "plateau", "plateau")
    number = int(random.choice(6, p=(0.45, 0.25, 0.12, 0.03, 0.12, 0.03)))
    kind: Shape = kinds[number]
    power = {"gaussian": 1.0, "generalised": random.uniform(0.5, 4.0), "plateau": random.uniform(1.0, 2.0)}[kind]
    blur = _gaussian(random, size, sigma, isotropic=number % 2 == 0)
    return Blur(size, blur.sigma, blur.angle, kind, power)


def _gaussian(
    random: np.random.Generator, size: int, sigma: tuple[float, float], *, isotropic: bool | None = None
) -> Blur:
    """Of one standard deviation or, drawn with equal chances if not said, of two and an angle."""
    if isotropic if isotropic is not None else random.random() < 0.5:
        one = random.uniform(*sigma)
        return Blur(size, (one, one), 0.0)
    return Blur(size, (random.uniform(*sigma), random.uniform(*sigma)), random.uniform(-math.pi, math.pi))


def _sinc(random: np.random.Generator) -> Sinc:
    size = _kernel_size(random)
    return Sinc(size, random.uniform(math.pi / 3 if size < 13 else math.pi / 5, math.pi))


def _kernel_size(random: np.random.Generator) -> int:
    return 7 + 2 * int(random.integers(8))


def _resize(
    random: np.random.Generator, scale: float, chances: tuple[float, float], limits: tuple[float, float]
) -> Resize:
    """Up or down with these chances, else none; factors are relative to `scale` times the LR size."""
    up, down = chances
    place = random.random()
    factor = random.uniform(1, limits[1]) if place < up else random.uniform(limits[0], 1) if place < up + down else 1.0
    return Resize(scale * factor, _filter(random))


def _filter(random: np.random.Generator) -> Image.Resampling:
    return FILTERS[random.integers(len(FILTERS))]


def _noise(random: np.random.Generator, sigma: float, shot: float) -> Noise:
    """Of one strength, or shot noise of `shot` roots of the brightness, at most."""
    grey = bool(random.random() < 0.4)
    if random.random() < 0.5:
        return Noise(random.uniform(1, sigma), shot=False, grey=grey)
    return Noise(random.uniform(0.05, shot) * math.sqrt(128), shot=True, grey=grey)


def _jpeg(random: np.random.Generator, least: int) -> Jpeg:
    return Jpeg(int(random.integers(least, 96)), bool(random.random() < 0.5))


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(_bytes(image))


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(image.clip(0, 255)).astype(np.uint8)
