"""The paper's low-resolution encoder: an RRDB network whose intermediate features condition the diffusion.

Trained first, alone, as a super-resolution network (L1), then frozen (SRDiff, arXiv 2104.14951; blocks of ESRGAN, arXiv
1809.00219). Parameter names and sizes are those of the released checkpoints, less the `rrdb.` prefix.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from samdiffsr.errors import ConfigError, SamDiffSRError
from samdiffsr.models.blocks import RRDB, SLOPE


class RRDBEncoder(ModelMixin, ConfigMixin):
    """LR image -> features for the denoiser, and on request its own super-resolution estimate.

    The defaults are the released model: 12,381,443 parameters, 384 feature channels.

    Args:
        channels: width of the trunk.
        blocks: number of RRDBs, at least 2.
        growth: channels each convolution of a dense block adds.
        scale: of the estimate, 4 or 8. The features always have LR size.
        image_channels: 3 for RGB.

    Raises:
        ConfigError: for another scale or fewer than 2 blocks.
    """

    __module__ = "samdiffsr"  # the home that model_index.json names: this file may move

    @register_to_config
    def __init__(
        self, channels: int = 64, blocks: int = 17, growth: int = 32, scale: int = 4, image_channels: int = 3
    ) -> None:
        super().__init__()
        if scale not in (4, 8):
            raise ConfigError(f"scale of the encoder is {scale!r}, but must be 4 or 8.")
        if blocks < 2:
            raise ConfigError(f"blocks of the encoder is {blocks!r}, but must be at least 2.")
        self.channels, self.scale, self.image_channels = channels, scale, image_channels
        # Every third of the outputs of the blocks and, last in the list, the trunk: 2, 5, 8, 11, 14, 17 for 17 blocks.
        self.taps = tuple(range(blocks + 1)[2::3])
        self.conv_first = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.RRDB_trunk = nn.ModuleList(RRDB(channels, growth) for _ in range(blocks))
        self.trunk_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.upconv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.upconv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.upconv3 = nn.Conv2d(channels, channels, 3, padding=1) if scale == 8 else None
        self.HRconv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_last = nn.Conv2d(channels, image_channels, 3, padding=1)

    @property
    def feature_channels(self) -> int:
        """Channels of the features `encode` returns: what the denoiser must be built for."""
        return self.channels * len(self.taps)

    @property
    def halo_lr(self) -> int:
        """Nothing `encode` returns depends on LR pixels further away than this: 259 for 17 blocks of 15 convolutions."""
        return 4 + 15 * len(self.RRDB_trunk)

    def floats_per_lr_pixel(self, *, with_image: bool) -> int:
        """About what `encode` holds at once; the estimate takes most, at HR size."""
        return 2 * self.feature_channels + (5 * self.scale**2 if with_image else 12) * self.channels

    @apply_forward_hook
    def encode(self, lr: Tensor, *, with_image: bool = False) -> tuple[Tensor, Tensor | None]:
        """Features of an LR batch.

        Args:
            lr: (N, image_channels, h, w) in [-1, 1], any h and w.
            with_image: also run the upsampling half, which costs more than the features do.

        Returns:
            features (N, feature_channels, h, w), unbounded; and the encoder's own estimate (N, image_channels,
            scale * h, scale * w), clamped to [-1, 1], or None.

        Raises:
            SamDiffSRError: if lr is not a batch of images with the right number of channels.
        """
        features, deep = self._trunk(lr)
        return features, self._image(deep) if with_image else None

    def forward(self, lr: Tensor) -> Tensor:
        """The encoder's own estimate (N, image_channels, scale * h, scale * w) in [-1, 1]; `lr` as for `encode`."""
        return self._image(self._trunk(lr)[1])

    def _trunk(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """The selected features, concatenated, and the last map (N, channels, h, w), from which comes the estimate."""
        if lr.ndim != 4 or lr.shape[1] != self.image_channels:
            raise SamDiffSRError(
                f"The encoder needs a batch of shape (N, {self.image_channels}, h, w), got {tuple(lr.shape)}."
            )
        shallow = self.conv_first((lr + 1) / 2)  # the released weights expect [0, 1]
        selected, x = [], shallow
        for number, block in enumerate(self.RRDB_trunk):
            x = block(x)
            if number in self.taps:
                selected.append(x)
        deep = shallow + self.trunk_conv(x)
        if len(self.RRDB_trunk) in self.taps:
            selected.append(deep)
        return torch.cat(selected, dim=1), deep

    def _image(self, deep: Tensor) -> Tensor:
        """(N, channels, h, w) -> image (N, image_channels, scale * h, scale * w) in [-1, 1]."""
        x = deep
        for conv in (self.upconv1, self.upconv2, self.upconv3):
            if conv is not None:
                larger = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
                x = nn.functional.leaky_relu(conv(larger), SLOPE)
        x = self.conv_last(nn.functional.leaky_relu(self.HRconv(x), SLOPE))
        return x.clamp(0, 1) * 2 - 1
