"""The parts of the paper's two networks: dense blocks for the encoder, residual blocks for the U-Net.

Attribute names are part of the released weight format (`RDB1`, `block`, `mlp`, `res_conv` ...): renaming one breaks it.
All tensors are NCHW; no part normalises or attends, so every one of them sees a bounded neighbourhood.
"""

import math

import torch
from torch import Tensor, nn

SLOPE = 0.2  # of every LeakyReLU in the encoder
RESIDUAL_WEIGHT = 0.2  # "residual scaling" of ESRGAN, within and around the dense blocks
INITIAL_WEIGHT = 0.1  # ESRGAN's smaller initialisation: without it 17 blocks of 15 convolutions start far from identity


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each of which sees the input and all earlier outputs (arXiv 1809.00219, fig. 4)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(channels + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(channels + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(channels + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(channels + 4 * growth, channels, 3, padding=1)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            nn.init.kaiming_normal_(conv.weight)
            with torch.no_grad():
                conv.weight.mul_(INITIAL_WEIGHT)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) -> same shape: `x + 0.2 * conv5(everything before)`."""
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, nn.functional.leaky_relu(conv(seen), SLOPE)), dim=1)
        return RESIDUAL_WEIGHT * self.conv5(seen) + x


class RRDB(nn.Module):
    """Residual in residual dense block: three dense blocks and a scaled shortcut around them (ESRGAN, fig. 4)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.RDB1 = DenseBlock(channels, growth)
        self.RDB2 = DenseBlock(channels, growth)
        self.RDB3 = DenseBlock(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) -> same shape."""
        return RESIDUAL_WEIGHT * self.RDB3(self.RDB2(self.RDB1(x))) + x


def embed_time(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of the time step; float32 whatever the network's dtype, as half merges neighbouring steps.

    Args:
        t: (N,) steps, counted from 0.
        width: even and at least 4.

    Returns:
        (N, width): the sines, then the cosines, of `t * exp(-log(10000) * i / (width/2 - 1))`, i = 0 .. width/2 - 1.
    """
    half = width // 2
    # Not a buffer: a non-persistent one would be left uninitialised when the model is built on the meta device.
    index = torch.arange(half, device=t.device, dtype=torch.float32)
    angle = t[:, None].float() * torch.exp(index * (-math.log(10000.0) / (half - 1)))
    return torch.cat((angle.sin(), angle.cos()), dim=1)


class ConvBlock(nn.Module):
    """Reflection pad, 3x3 convolution, Mish. (N, cin, H, W) -> (N, cout, H, W); both sides must be at least 2."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels_in, channels_out, 3), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two `ConvBlock`s with the time added per channel between them, and a 1x1 shortcut where the widths differ."""

    def __init__(self, channels_in: int, channels_out: int, time_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_width, channels_out))
        self.block1 = ConvBlock(channels_in, channels_out)
        self.block2 = ConvBlock(channels_out, channels_out)
        self.res_conv = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (N, cin, H, W), time (N, time_width) -> (N, cout, H, W)."""
        hidden = self.block1(x) + self.mlp(time)[:, :, None, None]
        return self.block2(hidden) + self.res_conv(x)


class Downsample(nn.Module):
    """Half the size: reflection pad and 3x3 convolution of stride 2. (N, c, H, W) -> (N, c, H/2, W/2), H and W even."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the size: transposed 4x4 convolution of stride 2. (N, c, H, W) -> (N, c, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
