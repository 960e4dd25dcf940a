"""The paper's denoiser: a convolutional U-Net at HR size, conditioned on the encoder's features.

SRDiff's network (arXiv 2104.14951) in the sizes SAM-DiffSR (arXiv 2402.17133) released. Parameter names are those of
the released checkpoints, less the `denoise_fn.` prefix. The network knows no schedule: what its output means is the
pipeline's affair.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from samdiffsr.errors import ConfigError, SamDiffSRError
from samdiffsr.models.blocks import ConvBlock, Downsample, ResidualBlock, Upsample, embed_time
from samdiffsr.models.structure_head import StructureHead


class ConditionalUNet(ModelMixin, ConfigMixin):
    """(noisy residual, time step, features) -> prediction of the same shape as the residual.

    The defaults are the released model: 12,934,915 parameters.

    Args:
        dim: width of the first level and of the time embedding; even, at least 4.
        multipliers: width of each level as a multiple of dim; one level per entry, the first at full size.
        feature_channels: channels of the encoder's features.
        scale: HR side / LR side, even.
        image_channels: 3 for RGB.
        with_structure: add a `structure_head`, which estimates the structure map from the features.
        structure_input: take the structure map as an input, besides what x_t holds of it.

    Raises:
        ConfigError: for an odd scale, an odd or too small dim, or no level.
    """

    __module__ = "samdiffsr"  # the home that model_index.json names: this file may move

    @register_to_config
    def __init__(
        self,
        dim: int = 64,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        feature_channels: int = 384,
        scale: int = 4,
        image_channels: int = 3,
        with_structure: bool = False,
        structure_input: bool = False,
    ) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ConfigError(f"dim of the U-Net is {dim!r}, but must be even and at least 4.")
        if scale < 2 or scale % 2:
            raise ConfigError(f"scale of the U-Net is {scale!r}, but must be even and at least 2.")
        if not multipliers or min(multipliers) < 1:
            raise ConfigError(f"multipliers of the U-Net is {multipliers!r}, but must be positive integers.")
        self.dim, self.scale, self.image_channels, self.feature_channels = dim, scale, image_channels, feature_channels
        widths = [dim * multiplier for multiplier in multipliers]
        self.cond_proj = nn.ConvTranspose2d(feature_channels, widths[0], 2 * scale, stride=scale, padding=scale // 2)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))
        self.downs = nn.ModuleList()
        for level, (before, width) in enumerate(zip([image_channels, *widths], widths, strict=False)):
            shrink = nn.Identity() if level == len(widths) - 1 else Downsample(width)
            blocks = (ResidualBlock(before, width, dim), ResidualBlock(width, width, dim))
            self.downs.append(nn.ModuleList([*blocks, shrink]))
        self.mid_block1 = ResidualBlock(widths[-1], widths[-1], dim)
        self.mid_block2 = ResidualBlock(widths[-1], widths[-1], dim)
        self.ups = nn.ModuleList()
        for width, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
            blocks = (ResidualBlock(2 * width, after, dim), ResidualBlock(after, after, dim))
            self.ups.append(nn.ModuleList([*blocks, Upsample(after)]))
        self.final_conv = nn.Sequential(ConvBlock(widths[0], widths[0]), nn.Conv2d(widths[0], image_channels, 1))
        self.structure_head = StructureHead(feature_channels, scale) if with_structure else None
        self.conv_structure = nn.Conv2d(1, widths[0], 3, padding=1) if structure_input else None

    @property
    def hr_multiple(self) -> int:
        """Both HR sides must be a multiple of this: 8 for four levels at scale 4."""
        return math.lcm(self.scale, 2 ** (len(self.downs) - 1))

    @property
    def hr_minimum(self) -> int:
        """The smallest HR side: 16 for four levels. At 8 the lowest level is one pixel wide, too few to reflect."""
        return max(self.hr_multiple, 2 ** len(self.downs))

    @property
    def halo_lr(self) -> int:
        """A prediction depends on no input further away than this, in LR pixels: 43 for four levels at scale 4."""
        strides = [2**level for level in range(len(self.downs))]
        down = 4 * sum(strides) + sum(strides[:-1])  # four 3x3 convolutions a level, and one to get to the next
        up = 4 * strides[-1] + 5 * sum(strides[1:]) + 1  # the middle; four and a transposed one a level; the last
        return -(-(down + up) // self.scale)

    @property
    def condition_scale(self) -> int:
        """Pixels of the condition along an LR pixel."""
        return self.scale

    @property
    def condition_halo_lr(self) -> int:
        """The halo of `condition` alone."""
        return 1

    def floats_per_lr_pixel(self) -> int:
        """About what a pass holds at once, most of it at HR size in the first level."""
        return 8 * self.scale**2 * self.dim

    @apply_forward_hook
    def condition(self, features: Tensor) -> Tensor:
        """The part that does not depend on x_t and t, to be computed once an image: (N, C, h, w) -> (N, width, H, W)."""
        return self.cond_proj(features)

    @apply_forward_hook
    def structure(self, features: Tensor, position: Tensor) -> Tensor:
        """The structure map (N, 1, H, W) that the head sees in features (N, C, h, w) and position map (N, 1, H, W)."""
        assert self.structure_head is not None, "the network was built without a structure head"
        return self.structure_head(features, position)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        features: Tensor | None,
        condition: Tensor | None = None,
        structure: Tensor | None = None,
    ) -> Tensor:
        """Predict what the model was trained for (its saved configuration says what) from the noisy residual.

        Args:
            x_t: (N, image_channels, H, W), unbounded; H and W multiples of `hr_multiple` and at least `hr_minimum`.
            t: (N,) integer time steps, counted from 0.
            features: (N, feature_channels, H / scale, W / scale), from the encoder; may be None with a condition.
            condition: `condition(features)`, which saves computing it here.
            structure: the structure map (N, 1, H, W), for a network built with `structure_input`, which needs it.

        Returns:
            (N, image_channels, H, W), unbounded.

        Raises:
            SamDiffSRError: if a shape does not fit.
        """
        self._check(x_t, t, features)
        condition = self.condition(cast(Tensor, features)) if condition is None else condition
        time = self.mlp(embed_time(t, self.dim).to(x_t.dtype))
        x, skips = x_t, []
        for level, parts in enumerate(self.downs):
            first, second, shrink = cast(nn.ModuleList, parts)
            x = second(first(x, time), time)
            if level == 0:
                x = x + condition
                if self.conv_structure is not None:
                    x = x + self.conv_structure(cast(Tensor, structure))
            else:  # the full-size skip has no taker: the way up ends in an upsampling, not in a concatenation
                skips.append(x)
            x = shrink(x)
        x = self.mid_block2(self.mid_block1(x, time), time)
        for parts in self.ups:
            first, second, grow = cast(nn.ModuleList, parts)
            x = torch.cat((x, skips.pop()), dim=1)
            x = grow(second(first(x, time), time))
        return self.final_conv(x)

    def _check(self, x_t: Tensor, t: Tensor, features: Tensor | None) -> None:
        """Raise a SamDiffSRError that names the shape that does not fit."""
        if x_t.ndim != 4 or x_t.shape[1] != self.image_channels:
            raise SamDiffSRError(f"x_t has the shape {tuple(x_t.shape)}, but must be (N, {self.image_channels}, H, W).")
        batch, _, height, width = x_t.shape
        if height % self.hr_multiple or width % self.hr_multiple or min(height, width) < self.hr_minimum:
            raise SamDiffSRError(
                f"x_t is {height}x{width}, but both sides must be a multiple of {self.hr_multiple} and at least "
                f"{self.hr_minimum}; pad the image first."
            )
        if t.shape != (batch,):
            raise SamDiffSRError(f"t has the shape {tuple(t.shape)}, but must have one step per image: ({batch},).")
        expected = (batch, self.feature_channels, height // self.scale, width // self.scale)
        if features is not None and features.shape != expected:
            raise SamDiffSRError(
                f"features have the shape {tuple(features.shape)}, but x_t of {tuple(x_t.shape)} needs {expected}."
            )
