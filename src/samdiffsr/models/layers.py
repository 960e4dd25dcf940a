"""The convolutions of the light networks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FilmConv2d(nn.Conv2d):
    """A 3x3 convolution whose output channels may be scaled and shifted: (1 + scale) conv(x) + shift.

    One module, so that whatever moves weights to a device when a module is called finds them used nowhere else.
    """

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        """x (N, C, h, w), film (N, 2 channels): scale, then shift."""
        if film is None:
            return super().forward(x)
        if x.shape[0] > 1:  # not len(), which an exporter takes for a constant
            hidden = super().forward(x)
            scale, shift = film[:, :, None, None].chunk(2, dim=1)
            return torch.addcmul(hidden + shift, hidden, scale)
        scale, shift = film[0].chunk(2)  # one image: it goes into the weights, which are far fewer than the pixels
        weight = self.weight * (1 + scale)[:, None, None, None]
        bias = shift if self.bias is None else torch.addcmul(shift, self.bias, 1 + scale)
        return F.conv2d(x, weight, bias, padding=self.padding)


def conv(
    in_channels: int, out_channels: int, *, gain: float = 1.0, dilation: int = 1, kind: type[nn.Conv2d] = nn.Conv2d
) -> nn.Conv2d:
    """A 3x3 convolution; `gain` 0 starts a branch as zero, which keeps deep residual trunks stable without normalisation."""
    layer = kind(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
    with torch.no_grad():
        nn.init.kaiming_normal_(layer.weight, a=math.sqrt(1))
        layer.weight.mul_(gain)
        nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layer
