"""FID (arXiv 1706.08500): the TensorFlow Inception as pytorch-fid publishes it, in a forward pass of our own, and the distance.

This Inception v3 differs from the usual one: average pooling does not count its padding, and the last block pools with the
maximum. Layers carry their published names.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samdiffsr.errors import ConfigError
from samdiffsr.evaluation.downloads import load_published

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
FEATURES, SIDE = 2048, 299
FEW = 100
"""Of fewer images, FID measures the error of its own 2048 means more than the method; reports mark it."""
EPSILON = 1e-3  # of the batch normalisation


class Conv(NamedTuple):
    """Convolution, batch normalisation, ReLU."""

    name: str
    stride: int = 1
    same: bool = True  # padded so that stride 1 keeps the size


Step = Conv | str | tuple[Conv, ...]  # a string: a pooling; a tuple: layers side by side on the same input
Branch = tuple[Step, ...]


def _chain(name: str, *parts: str) -> Branch:
    return tuple(Conv(f"{name}_{part}") for part in parts)


_A: tuple[Branch, ...] = (
    (Conv("branch1x1"),),
    _chain("branch5x5", "1", "2"),
    _chain("branch3x3dbl", "1", "2", "3"),
    ("average", Conv("branch_pool")),
)
_B: tuple[Branch, ...] = (
    (Conv("branch3x3", 2, same=False),),
    (*_chain("branch3x3dbl", "1", "2"), Conv("branch3x3dbl_3", 2, same=False)),
    ("halve",),
)
_C: tuple[Branch, ...] = (
    (Conv("branch1x1"),),
    _chain("branch7x7", "1", "2", "3"),
    _chain("branch7x7dbl", "1", "2", "3", "4", "5"),
    ("average", Conv("branch_pool")),
)
_D: tuple[Branch, ...] = (
    (Conv("branch3x3_1"), Conv("branch3x3_2", 2, same=False)),
    (*_chain("branch7x7x3", "1", "2", "3"), Conv("branch7x7x3_4", 2, same=False)),
    ("halve",),
)


def _e(pooling: str) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1"),),
        (Conv("branch3x3_1"), (Conv("branch3x3_2a"), Conv("branch3x3_2b"))),
        (*_chain("branch3x3dbl", "1", "2"), (Conv("branch3x3dbl_3a"), Conv("branch3x3dbl_3b"))),
        (pooling, Conv("branch_pool")),
    )


STEM: Branch = (
    Conv("Conv2d_1a_3x3", 2, same=False),
    Conv("Conv2d_2a_3x3", same=False),
    Conv("Conv2d_2b_3x3"),
    "halve",
    Conv("Conv2d_3b_1x1"),
    Conv("Conv2d_4a_3x3", same=False),
    "halve",
)
BLOCKS = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _A),
    "Mixed_6a": _B,
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _C),
    "Mixed_7a": _D,
    "Mixed_7b": _e("average"),
    "Mixed_7c": _e("maximum"),
}
POOLINGS = {
    "average": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "maximum": lambda x: F.max_pool2d(x, 3, 1, 1),
    "halve": lambda x: F.max_pool2d(x, 3, 2),
}


class InceptionFeatures:
    """Image -> its 2048 pool3 features, on the CPU.

    Args:
        folder: holds the published file; if it is missing it is downloaded into it.

    Raises:
        CheckpointError: see `published_file`.
    """

    def __init__(self, folder: Path) -> None:
        self.weights = load_published(WEIGHTS, folder)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) of any size -> float64 (2048,)."""
        rgb = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)[None]
        x = 2 * F.interpolate(rgb, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - 1
        x = self._branch(x, STEM, "")
        for name, branches in BLOCKS.items():
            x = torch.cat([self._branch(x, branch, f"{name}.") for branch in branches], dim=1)
        return x.mean(dim=(2, 3))[0].double().numpy()

    def _branch(self, x: Tensor, branch: Branch, prefix: str) -> Tensor:
        for step in branch:
            if isinstance(step, str):
                x = POOLINGS[step](x)
            elif isinstance(step, Conv):
                x = self._conv(x, step, prefix)
            else:
                x = torch.cat([self._conv(x, conv, prefix) for conv in step], dim=1)
        return x

    def _conv(self, x: Tensor, conv: Conv, prefix: str) -> Tensor:
        name = prefix + conv.name
        kernel = self.weights[f"{name}.conv.weight"]
        padding = (kernel.shape[2] // 2, kernel.shape[3] // 2) if conv.same else 0
        mean, variance, weight, bias = (
            self.weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.conv2d(x, kernel, stride=conv.stride, padding=padding)
        return F.relu(F.batch_norm(x, mean, variance, weight, bias, eps=EPSILON))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians fitted to features (n, d) and (m, d), with the unbiased covariances.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). With A = X^T X and B = Y^T Y for the centred features X and Y, each divided
    by the root of its degrees of freedom, tr (A B)^(1/2) is the sum of the singular values of X Y^T: no matrix square root,
    nothing imaginary, and exact where the covariances are singular.

    Raises:
        ConfigError: fewer than 2 samples, which have no covariance.
    """
    check_count(min(len(a), len(b)))
    x, y = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (a, b))
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    shift = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return float(shift + (x**2).sum() + (y**2).sum() - 2 * cross)


def check_count(images: int) -> None:
    """A ConfigError unless a covariance can be estimated."""
    if images < 2:
        raise ConfigError(f"FID needs at least 2 images, got {images}; leave it out.")
