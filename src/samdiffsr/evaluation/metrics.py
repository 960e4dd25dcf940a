"""Metrics of super-resolution, each with its protocol."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from samdiffsr.errors import CheckpointError, ImageError

BORDER = 4


def luma(image: np.ndarray) -> np.ndarray:
    """Y of BT.601 as MATLAB's rgb2ycbcr gives it: uint8 (H, W, 3) -> float64 (H, W) in [16, 235], not rounded."""
    return 16 + image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255


def psnr_y(sr: np.ndarray, hr: np.ndarray, *, border: int = BORDER) -> float:
    """PSNR in dB on the Y channel, `border` pixels cut from each side; the convention of the SR literature (x4: 4).

    Args:
        sr, hr: uint8 (H, W, 3) of one size.

    Raises:
        ImageError: the sizes differ, or nothing is left inside the border.
    """
    if sr.shape != hr.shape:
        raise ImageError(f"the images to compare have different shapes, {sr.shape} and {hr.shape}.")
    inside = (slice(border, sr.shape[0] - border), slice(border, sr.shape[1] - border))
    difference = (luma(sr) - luma(hr))[inside]
    if difference.size == 0:
        raise ImageError(f"an image of shape {sr.shape} has nothing left inside a border of {border} pixels.")
    error = np.mean(difference**2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


class SqueezeDistance:
    """A perceptual distance in the manner of LPIPS (arXiv 1801.03924); it is NOT LPIPS and its figures are its own.

    SqueezeNet 1.1 with the original Caffe weights under the linear heads published for LPIPS-squeeze, which were fitted to
    another set of weights. Lower is better; Set5 x4 bicubic has 0.165.

    Args:
        file: safetensors with `conv1`, `fireN/...` weights and biases, and `head0` .. `head6`.

    Raises:
        CheckpointError: the file is missing or damaged.
    """

    MEAN_BGR = (104.0, 117.0, 123.0)
    STAGES = ((), ("fire2", "fire3"), ("fire4", "fire5"), ("fire6",), ("fire7",), ("fire8",), ("fire9",))

    def __init__(self, file: Path) -> None:
        try:
            self.weights = load_file(file)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"weights of the perceptual distance {file} cannot be read: {error}.") from None

    def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
        """a, b: uint8 (H, W, 3) of one size, at least 32x32."""
        if a.shape != b.shape or min(a.shape[:2]) < 32:
            raise ImageError(f"the distance needs two images of one size from 32x32, got {a.shape} and {b.shape}.")
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
