"""Metrics of super-resolution, each with its protocol: `METRICS` says how every figure is computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from samdiffsr.errors import CheckpointError, ImageError
from samdiffsr.resize import SCALE, imresize

SQUEEZE = Path(__file__).parents[1] / "weights" / "squeeze" / "squeeze_distance.safetensors"

BORDER = 4
"""HR pixels that PSNR and SSIM cut from each side unless the caller says otherwise: the convention for x4."""

WINDOW = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
WINDOW /= WINDOW.sum()  # the 11x11 Gaussian of SSIM is the outer product of this with itself


@dataclass(frozen=True)
class Metric:
    """A figure of the report.

    Attributes:
        name: as options and the JSON report have it.
        label: as tables have it, with the unit.
        better: "higher" or "lower".
        digits: decimals worth printing.
        protocol: everything needed to repeat the figure, in a line; `{border}` stands for the border.
    """

    name: str
    label: str
    better: Literal["higher", "lower"]
    digits: int
    protocol: str

    def describe(self, border: int) -> str:
        """The protocol for `border` pixels cut from each side."""
        return self.protocol.format(border=f"{border} pixels cut from each side" if border else "no border cut")


_PIXELS = "8-bit results, {border}, mean over images"
_WHOLE = "8-bit RGB results, whole image, mean over images"
_SSIM = "11x11 Gaussian window of sigma 1.5, windows wholly inside only, K1 0.01, K2 0.03, L 255"
METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr-y", "PSNR-Y (dB)", "higher", 2, f"Y of BT.601 in [16, 235], not rounded, peak 255; {_PIXELS}"),
        Metric("ssim-y", "SSIM-Y", "higher", 4, f"Y of BT.601 in [16, 235], not rounded; {_SSIM}; {_PIXELS}"),
        Metric("psnr-rgb", "PSNR-RGB (dB)", "higher", 2, f"one mean squared error over R, G and B; {_PIXELS}"),
        Metric("ssim-rgb", "SSIM-RGB", "higher", 4, f"mean of the three channels; {_SSIM}; {_PIXELS}"),
        Metric(
            "lr-psnr",
            "LR-PSNR (dB)",
            "higher",
            2,
            "consistency: RGB PSNR between the result shrunk by MATLAB's bicubic x1/4 to 8 bit and the LR input; "
            "no border cut, mean over images",
        ),
        Metric("lpips-alex", "LPIPS-Alex", "lower", 4, f"LPIPS 0.1 (arXiv 1801.03924), AlexNet; {_WHOLE}"),
        Metric("lpips-vgg", "LPIPS-VGG", "lower", 4, f"LPIPS 0.1 (arXiv 1801.03924), VGG16; {_WHOLE}"),
        Metric("dists", "DISTS", "lower", 4, f"DISTS (arXiv 2004.07728), VGG16, not shrunk to 256 pixels; {_WHOLE}"),
        Metric(
            "squeeze",
            "squeeze distance",
            "lower",
            4,
            "NOT LPIPS: SqueezeNet 1.1 (Caffe weights) under the heads of LPIPS-squeeze, comparable with itself only; "
            f"{_WHOLE}",
        ),
        Metric(
            "fid",
            "FID",
            "lower",
            2,
            "Frechet distance of the 2048 pool3 features of the TensorFlow Inception (pytorch-fid's port), each whole image "
            "resized to 299x299 (bilinear, no antialiasing); results against the HR images of this set",
        ),
    )
}


def luma(image: np.ndarray) -> np.ndarray:
    """Y of BT.601 as MATLAB's rgb2ycbcr gives it: uint8 (H, W, 3) -> float64 (H, W) in [16, 235], not rounded."""
    return 16 + image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255


def ssim_side(border: int) -> int:
    """HR pixels a side that SSIM needs: its window and the border."""
    return len(WINDOW) + 2 * border


def psnr_y(sr: np.ndarray, hr: np.ndarray, *, border: int = BORDER) -> float:
    """PSNR in dB on the Y channel, `border` pixels cut from each side; infinite for equal images.

    Args:
        sr, hr: uint8 (H, W, 3) of one size.

    Raises:
        ImageError: the sizes differ, or nothing is left inside the border.
    """
    return _psnr(luma(sr), luma(hr), border)


def psnr_rgb(sr: np.ndarray, hr: np.ndarray, *, border: int = BORDER) -> float:
    """PSNR in dB of one mean squared error over the three channels; else as `psnr_y`."""
    return _psnr(sr.astype(np.float64), hr.astype(np.float64), border)


def ssim_y(sr: np.ndarray, hr: np.ndarray, *, border: int = BORDER) -> float:
    """SSIM (Wang et al. 2004) on the Y channel, as the authors' MATLAB code has it: windows wholly inside the image only.

    Args:
        sr, hr: uint8 (H, W, 3) of one size.

    Raises:
        ImageError: the sizes differ, or less than 11x11 pixels are left inside the border.
    """
    return _ssim(luma(sr), luma(hr), border)


def ssim_rgb(sr: np.ndarray, hr: np.ndarray, *, border: int = BORDER) -> float:
    """Mean SSIM of the three channels; else as `ssim_y`."""
    return _ssim(sr.astype(np.float64), hr.astype(np.float64), border)


def lr_psnr(sr: np.ndarray, lr: np.ndarray) -> float:
    """Consistency: PSNR in dB (RGB, no border) between the result shrunk to the input's size, in 8 bit, and the input.

    Args:
        sr: uint8 (4 h, 4 w, 3).
        lr: uint8 (h, w, 3).

    Raises:
        ImageError: the sizes do not fit.
    """
    return psnr_rgb(imresize(sr, 1 / SCALE), lr, border=0)


def _inside(sr: np.ndarray, hr: np.ndarray, border: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Both without their borders; ImageError unless of one shape with `least` pixels a side left."""
    if sr.shape != hr.shape:
        raise ImageError(f"the images to compare have different shapes, {sr.shape} and {hr.shape}.")
    height, width = sr.shape[0] - 2 * border, sr.shape[1] - 2 * border
    if min(height, width) < least:
        raise ImageError(
            f"an image of {sr.shape[1]}x{sr.shape[0]} has {max(0, width)}x{max(0, height)} pixels inside a border of {border}, "
            f"but this metric needs at least {least}x{least} there."
        )
    inside = (slice(border, border + height), slice(border, border + width))
    return sr[inside], hr[inside]


def _psnr(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    sr, hr = _inside(sr, hr, border, 1)
    error = np.mean((sr - hr) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _ssim(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    x, y = _inside(sr, hr, border, len(WINDOW))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float(np.mean(above / below))


def _blur(image: np.ndarray) -> np.ndarray:
    """Weighted means over the window: (H, W, ...) -> (H - 10, W - 10, ...)."""
    height, width = image.shape[0] - len(WINDOW) + 1, image.shape[1] - len(WINDOW) + 1
    rows = sum(weight * image[tap : tap + height] for tap, weight in enumerate(WINDOW))
    return sum(weight * rows[:, tap : tap + width] for tap, weight in enumerate(WINDOW))  # type: ignore[index]


class SqueezeDistance:
    """A perceptual distance in the manner of LPIPS (arXiv 1801.03924); it is NOT LPIPS and its figures are its own.

    SqueezeNet 1.1 with the original Caffe weights under the linear heads published for LPIPS-squeeze, which were fitted to
    another set of weights. Lower is better; Set5 x4 bicubic has 0.165.

    Args:
        file: safetensors with `conv1`, `fireN/...` weights and biases, and `head0` .. `head6`; default: those in the package.

    Raises:
        CheckpointError: the file is missing or damaged.
    """

    LEAST = 32  # pixels a side
    MEAN_BGR = (104.0, 117.0, 123.0)
    STAGES = ((), ("fire2", "fire3"), ("fire4", "fire5"), ("fire6",), ("fire7",), ("fire8",), ("fire9",))

    def __init__(self, file: Path = SQUEEZE) -> None:
        try:
            self.weights = {name: tensor.float() for name, tensor in load_file(file).items()}
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"weights of the perceptual distance {file} cannot be read: {error}.") from None

    def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
        """a, b: uint8 (H, W, 3) of one size, at least 32x32."""
        if a.shape != b.shape or min(a.shape[:2]) < self.LEAST:
            raise ImageError(
                f"the distance needs two images of one size from {self.LEAST}x{self.LEAST}, got {a.shape} and {b.shape}."
            )
        total = 0.0
        with torch.inference_mode():
            for number, (x, y) in enumerate(zip(self._features(a), self._features(b), strict=True)):
                x, y = (z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in (x, y))
                total += float(F.conv2d((x - y) ** 2, self.weights[f"head{number}"]).mean())
        return total

    def _conv(self, x: Tensor, name: str, *, stride: int = 1, padding: int = 0) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))

    def _features(self, image: np.ndarray) -> list[Tensor]:
        rgb = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None]
        x = self._conv(rgb.flip(1) - torch.tensor(self.MEAN_BGR).reshape(1, 3, 1, 1), "conv1", stride=2)
        out = [x]
        for number, fires in enumerate(self.STAGES[1:], 1):
            if number <= 3:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            for fire in fires:
                squeezed = self._conv(x, f"{fire}/squeeze1x1")
                wide = self._conv(squeezed, f"{fire}/expand3x3", padding=1)
                x = torch.cat([self._conv(squeezed, f"{fire}/expand1x1"), wide], dim=1)
            out.append(x)
        return out
