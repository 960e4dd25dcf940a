"""DISTS (arXiv 2004.07728): similarity of the structure and of the texture of deep features, by a forward pass of our own.

For the image itself and for each of five stages of VGG16, every channel is compared by its mean over the picture (texture,
Eq. 6) and by its covariance (structure, Eq. 7); the weights alpha and beta of the channels are the authors' (MIT licence).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samdiffsr.errors import ImageError
from samdiffsr.evaluation.downloads import load_published
from samdiffsr.evaluation.lpips import TRUNKS, stage_features

HEADS = "weights.pt"
CHANNELS = (3, 64, 128, 256, 512, 512)  # of the image and of each stage
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, by channel, in [0, 1]
SMALL = 1e-6  # c_1 and c_2 of Eq. 6 and 7


def l2_pool(x: Tensor) -> Tensor:
    """Half the resolution: the root of the squares under a 3x3 Hann window (Eq. 3), in place of VGG's maximum, which folds
    high frequencies into low ones."""
    line = torch.tensor([0.5, 1.0, 0.5])
    window = torch.outer(line, line) / 4
    channels = x.shape[1]
    kernel = window.expand(channels, 1, 3, 3)
    return (F.conv2d(x**2, kernel, stride=2, padding=1, groups=channels) + 1e-12).sqrt()


class DISTS:
    """The distance, on the CPU, of whole images; the authors' own script shrinks them to 256 pixels first, this does not.

    Args:
        folder: holds the published files; what is missing is downloaded into it.

    Raises:
        CheckpointError: see `published_file`.
    """

    LEAST = 16
    """Smallest side of an image."""

    def __init__(self, folder: Path) -> None:
        self.weights = load_published(TRUNKS["vgg"].weights, folder)
        heads = load_published(HEADS, folder)
        total = heads["alpha"].sum() + heads["beta"].sum()
        self.alpha, self.beta = (
            torch.split((heads[name] / total).detach().flatten(), list(CHANNELS)) for name in ("alpha", "beta")
        )

    @torch.inference_mode()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
        """a, b: uint8 (H, W, 3) of one size. 0 for equal images; 1 is the most unlike of those that do not anticorrelate.

        Raises:
            ImageError: the sizes differ or are too small for the network.
        """
        if a.shape != b.shape or min(a.shape[:2]) < self.LEAST:
            raise ImageError(
                f"DISTS needs two images of one size from {self.LEAST}x{self.LEAST}, got {a.shape}, {b.shape}."
            )
        similar = 0.0
        for x, y, alpha, beta in zip(self._maps(a), self._maps(b), self.alpha, self.beta, strict=True):
            x, y = x.double().flatten(1), y.double().flatten(1)  # (C, H W): variances need the digits
            mean_x, mean_y = x.mean(1), y.mean(1)
            covariance = (x * y).mean(1) - mean_x * mean_y
            texture = (2 * mean_x * mean_y + SMALL) / (mean_x**2 + mean_y**2 + SMALL)
            structure = (2 * covariance + SMALL) / (x.var(1, correction=0) + y.var(1, correction=0) + SMALL)
            similar += float((alpha * texture + beta * structure).sum())
        return 1 - similar

    def _maps(self, image: np.ndarray) -> list[Tensor]:
        """(C, H, W) of the image in [0, 1] and of each stage."""
        rgb = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None] / 255
        mean, spread = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, SPREAD))
        maps = stage_features((rgb - mean) / spread, self.weights, TRUNKS["vgg"], pool=l2_pool)
        return [one[0] for one in (rgb, *maps)]
