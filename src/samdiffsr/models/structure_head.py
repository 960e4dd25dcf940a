"""The structure head: an estimate of the structure map from the LR image alone, so that sampling needs no masks.

It sees the encoder's features and the position map, and never x_t: in training x_t holds the true map, in sampling the
estimate, which a head that reads x_t would find there again and confirm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samdiffsr.models.layers import conv

WIDTH = 24
DILATIONS = (2, 4, 8)


def takes_structure(network: nn.Module) -> bool:
    """Whether the network looks at the structure map beside x_t."""
    return getattr(network, "conv_structure", None) is not None


class StructureHead(nn.Module):
    """(features, position map) -> structure map. Run once an image, at LR size: 2 % of the operations of a light step.

    The map is the mean of the position map over each region: dilated convolutions see as far as a region reaches.

    Args:
        feature_channels: channels of the encoder's features.
        scale: HR side / LR side.
    """

    def __init__(self, feature_channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv_in = conv(feature_channels + scale**2, WIDTH)
        self.trunk = nn.ModuleList(conv(WIDTH, WIDTH, gain=0.1, dilation=dilation) for dilation in DILATIONS)
        self.conv_out = conv(WIDTH, scale**2, gain=0.1)

    @property
    def halo_lr(self) -> int:
        """The estimate depends on no input further away than this, in LR pixels."""
        return 2 + sum(DILATIONS)

    def forward(self, features: Tensor, position: Tensor) -> Tensor:
        """features (N, C, h, w), position map (N, 1, H, W) of the same window -> structure map (N, 1, H, W)."""
        x = self.conv_in(torch.cat([features, F.pixel_unshuffle(position, self.scale)], dim=1)).relu()
        for layer in self.trunk:
            x = x + layer(x).relu()
        return F.pixel_shuffle(self.conv_out(x), self.scale)
