"""How degraded the LR image is, as one number from 0 to 1: given to a network, and estimated from the image."""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 32
LEAST_WEIGHT = 1e-4
GAIN = 4.0  # noise of a few grey levels is a hundredth of the range of pixels


def takes_level(network: nn.Module) -> bool:
    """Whether the network looks at the level of degradation."""
    return bool(getattr(network, "takes_level", False))


def level_of(root: Tensor) -> Tensor:
    """The level, from 0 to 1, whose root a `LevelHead` found."""
    return root.clamp(0, 1).square()


class LevelEmbedding(nn.Module):
    """level (N,) -> (N, width): exactly 0 at level 0, whatever the weights, so that a clean image sees the plain network.

    Args:
        width: of the result.
        zero: start with 0 for all levels, where what follows does not.
    """

    def __init__(self, width: int, *, zero: bool = False) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(1, WIDTH), nn.Linear(WIDTH, width)
        if zero:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, level: Tensor) -> Tensor:
        column = level[:, None].to(self.out.weight.dtype)
        return column * self.out(F.silu(self.wide(column)))


class LevelHead(nn.Module):
    """LR image -> the root of its level: convolutions without padding, a weighted mean of what they find over the image, two
    linear layers. The root, because a clean picture taken for a slightly degraded one costs most (docs/log.md).

    Each place says by itself how much it counts: fine texture looks like noise, but noise is also where nothing else is.
    It looks at the pixels, not at the encoder's features, which depend on the level themselves. It costs a 600th of the
    default encoder.
    """

    LEAST = 24
    """Smaller images are padded to this side by their border pixels."""
    MEANS = 4 * WIDTH
    """Length of `means`."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(3, 24, 3),
            nn.Conv2d(24, WIDTH, 3, stride=2),
            nn.Conv2d(WIDTH, WIDTH, 3, stride=2),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3),
        ]
        with torch.no_grad():
            for layer in layers:
                nn.init.kaiming_normal_(layer.weight)
                cast("Tensor", layer.bias).zero_()
            # A start from differences of pixels: with torch's own, 700 updates learn nothing (measured).
            layers[0].weight.sub_(layers[0].weight.mean(dim=(2, 3), keepdim=True))
        self.look = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        self.weigh = nn.Conv2d(2 * WIDTH, 2 * WIDTH, 1)
        nn.init.zeros_(self.weigh.weight)
        nn.init.zeros_(cast("Tensor", self.weigh.bias))  # at first all places count the same
        self.wide, self.out = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, lr: Tensor) -> Tensor:
        """lr (N, 3, h, w) in [-1, 1] -> the root of the level (N,), in training also below 0 and above 1."""
        return self.judge(self.means(lr))

    def estimate(self, windows: Iterable[Tensor]) -> Tensor:
        """Windows (1, 3, h, w) of one image, in [-1, 1] -> its level (1,), from 0 to 1."""
        total = torch.zeros((), device=self.out.weight.device)
        pixels = 0
        for window in windows:
            area = window.shape[2] * window.shape[3]
            total, pixels = total + area * self.means(window).float(), pixels + area
        return level_of(self.judge((total / pixels).to(self.out.weight.dtype)))

    def judge(self, means: Tensor) -> Tensor:
        """The root of the level (N,) that means (N, `MEANS`) speak of, also below 0 and above 1."""
        found, weight = means.chunk(2, dim=1)
        return self.out(F.relu(self.wide(found / (weight + LEAST_WEIGHT))))[:, 0]

    def means(self, lr: Tensor) -> Tensor:
        """Of lr (N, 3, h, w) in [-1, 1] the means over the image of what each place finds, times its weight, and of
        the weights: (N, `MEANS`)."""
        for axis in (2, 3):  # gathered, not padded: an exporter can follow that for every size
            side = lr.shape[axis]
            place = torch.arange(torch.sym_max(side, self.LEAST), device=lr.device)
            lr = lr.index_select(axis, place.clamp(max=side - 1))
        found = self.look(GAIN * lr)
        weight = torch.sigmoid(self.weigh(found))
        return torch.cat((weight * found, weight), dim=1).mean(dim=(2, 3))
