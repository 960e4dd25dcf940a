"""LPIPS (arXiv 1801.03924), version 0.1: a forward pass of our own over the published weights.

Features of AlexNet or VGG16 after five of their ReLUs, each scaled to unit length along its channels; squared differences,
weighted by a published linear head per layer, averaged over positions, summed over layers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samdiffsr.errors import ImageError, choose
from samdiffsr.evaluation.downloads import load_published

# LPIPS normalises images in [-1, 1] with these, by channel (version 0.0 did not).
SHIFT, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class Trunk:
    """A published feature network up to its last used layer.

    Attributes:
        weights, heads: names of the published files.
        least: smallest side of an image that leaves a pixel at the last layer.
        pool: kernel of the max pooling between stages, stride 2.
        stages: convolutions as (index in `features`, stride, padding), None for a pooling; each stage ends in a used ReLU.
    """

    weights: str
    heads: str
    least: int
    pool: int
    stages: tuple[tuple[tuple[int, int, int] | None, ...], ...]


TRUNKS = {
    "alex": Trunk(
        weights="alexnet-owt-7be5be79.pth",
        heads="alex.pth",
        least=31,
        pool=3,
        stages=(((0, 4, 2),), (None, (3, 1, 2)), (None, (6, 1, 1)), ((8, 1, 1),), ((10, 1, 1),)),
    ),
    "vgg": Trunk(
        weights="vgg16-397923af.pth",
        heads="vgg.pth",
        least=16,
        pool=2,
        stages=(
            ((0, 1, 1), (2, 1, 1)),
            (None, (5, 1, 1), (7, 1, 1)),
            (None, (10, 1, 1), (12, 1, 1), (14, 1, 1)),
            (None, (17, 1, 1), (19, 1, 1), (21, 1, 1)),
            (None, (24, 1, 1), (26, 1, 1), (28, 1, 1)),
        ),
    ),
}


def stage_features(
    image: Tensor,
    weights: Mapping[str, Tensor],
    trunk: Trunk,
    stages: int | None = None,
    *,
    pool: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """The maps after the first `stages` stages (all by default) of a normalised image (N, 3, H, W).

    Args:
        weights: `features.INDEX.weight` and `.bias`, as torchvision names them.
        pool: takes the place of the trunk's own pooling.
    """
    x, out = image, []
    for stage in trunk.stages[:stages]:
        for layer in stage:
            if layer is None:
                x = F.max_pool2d(x, trunk.pool, 2) if pool is None else pool(x)
                continue
            index, stride, padding = layer
            weight, bias = (weights[f"features.{index}.{part}"] for part in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))
        out.append(x)
    return out


class LPIPS:
    """The distance, on the CPU.

    Args:
        trunk: "alex" (what papers report unless they say otherwise) or "vgg".
        folder: holds the published files; what is missing is downloaded into it.

    Raises:
        CheckpointError: see `published_file`.
    """

    def __init__(self, trunk: str, folder: Path) -> None:
        self.trunk: Trunk = choose(trunk, TRUNKS, "trunk")
        self.weights = load_published(self.trunk.weights, folder)
        self.heads = load_published(self.trunk.heads, folder)

    @torch.inference_mode()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
        """a, b: uint8 (H, W, 3) of one size. 0 for equal images.

        Raises:
            ImageError: the sizes differ or are too small for the network.
        """
        least = self.trunk.least
        if a.shape != b.shape or min(a.shape[:2]) < least:
            raise ImageError(f"LPIPS needs two images of one size from {least}x{least}, got {a.shape} and {b.shape}.")
        total = 0.0
        for number, (x, y) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            x, y = (z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in (x, y))
            total += float(F.conv2d((x - y) ** 2, self.heads[f"lin{number}.model.1.weight"]).mean())
        return total

    def _features(self, image: np.ndarray) -> list[Tensor]:
        shift, spread = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (SHIFT, SPREAD))
        rgb = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None]
        return stage_features((rgb / 127.5 - 1 - shift) / spread, self.weights, self.trunk)
