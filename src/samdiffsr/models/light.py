"""The light pair: both networks work at LR resolution, so a step costs a sixteenth of one at HR resolution.

The encoder is an EDSR-like residual network (arXiv 1707.02921) whose trunk is also the condition; the denoiser sees the
residual as 48 channels (pixel-unshuffle x4) beside the encoder's features. Plain 3x3 convolutions of 128 channels, no
normalisation, no attention, no pooling: what a CPU computes at its peak rate, any size from 1x1, a finite receptive field.
docs/log.md has the measurements behind the width.
"""

from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from samdiffsr.errors import ConfigError, choose
from samdiffsr.models.blocks import embed_time
from samdiffsr.models.layers import FilmConv2d, conv
from samdiffsr.models.level import WIDTH, LevelEmbedding, LevelHead
from samdiffsr.models.structure_head import StructureHead
from samdiffsr.resize import SCALE, imresize_tensor

ACTIVATIONS = {"relu": F.relu, "silu": F.silu}


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name} is {size!r}, but must be a whole number from 1.")


class LightBlock(nn.Module):
    """x + conv(f(... conv(f(film(conv(x)))))), where the embedding of the time or of the level scales and shifts each channel.

    Args:
        convs: convolutions, from 2; their names are conv1, conv2, ...
        activation: f, "relu" or "silu".
        bias: False lets an embedding of zeros change nothing.

    Raises:
        ConfigError: fewer convolutions, another activation.
    """

    def __init__(
        self, width: int, time_width: int = 0, *, convs: int = 2, activation: str = "relu", bias: bool = True
    ) -> None:
        super().__init__()
        if not isinstance(convs, int) or convs < 2:
            raise ConfigError(f"convs is {convs!r}, but must be a whole number from 2.")
        self.activate = choose(activation, ACTIVATIONS, "activation")
        self.conv1 = conv(width, width, kind=FilmConv2d)
        self.following = tuple(f"conv{number}" for number in range(2, convs + 1))
        for name in self.following:
            self.add_module(name, conv(width, width, gain=0.1 if name == self.following[-1] else 1.0))
        self.film = nn.Linear(time_width, 2 * width, bias=bias) if time_width else None
        if self.film is not None:
            for parameter in self.film.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        hidden = self.conv1(x) if self.film is None or time is None else self.conv1(x, self.film(time))
        for name in self.following:
            hidden = getattr(self, name)(self.activate(hidden, inplace=True))
        return hidden.add_(x)  # in place: on a CPU a fresh 8 MB costs more than the sum


class LightEncoder(ModelMixin, ConfigMixin):
    """LR image -> features and, from the same pass, its own HR estimate (a residual over MATLAB bicubic).

    Args:
        width: channels of the trunk and of the features.
        blocks: residual blocks.
        level: take the level of degradation as an input, and estimate it (`estimate_level`).
        convs: convolutions of each block, from 2.
        activation: between them, "relu" or "silu".
        limit: the largest size of a value after each block, or None. Above what photographs reach, it keeps pictures of
            strong noise or dots, which no training saw, from growing a thousandfold from block to block (docs/log.md).
    """

    __module__ = "samdiffsr"  # the home that model_index.json names: this file may move

    @register_to_config
    def __init__(
        self,
        width: int = 128,
        blocks: int = 8,
        level: bool = False,
        convs: int = 2,
        activation: str = "relu",
        limit: float | None = None,
    ) -> None:
        super().__init__()
        _check(width=width, blocks=blocks)
        self.conv_in = conv(3, width)
        film = {"time_width": WIDTH, "bias": False} if level else {}
        self.trunk = nn.ModuleList(LightBlock(width, convs=convs, activation=activation, **film) for _ in range(blocks))
        self._trunk_halo = convs * blocks
        self._limit = limit
        self.conv_out = conv(width, width, gain=0.1)
        self.head = conv(width, 3 * SCALE**2, gain=0.1)
        self.level_embedding = LevelEmbedding(WIDTH) if level else None
        self.level_head = LevelHead() if level else None

    @property
    def takes_level(self) -> bool:
        """Whether `encode` looks at a level."""
        return self.level_embedding is not None

    @property
    def feature_channels(self) -> int:
        """Channels of the features that `encode` returns."""
        return self.conv_in.out_channels

    @property
    def halo_lr(self) -> int:
        """Nothing `encode` returns depends on LR pixels further away than this."""
        return 3 + self._trunk_halo

    def floats_per_lr_pixel(self, *, with_image: bool) -> int:
        """About what `encode` holds at once."""
        return 6 * self.conv_in.out_channels + with_image * 6 * 3 * SCALE**2

    @apply_forward_hook
    def encode(
        self, lr: Tensor, level: Tensor | None = None, *, with_image: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """lr (N, 3, h, w) in [-1, 1] -> features (N, width, h, w) and, if asked for, the estimate (N, 3, 4h, 4w) in [-1, 1].

        `level` (N,) in [0, 1] says how degraded lr is, to an encoder that takes it; none is 0.
        """
        first = self.conv_in(lr)
        film = None if self.level_embedding is None or level is None else self.level_embedding(level)
        x = first
        for block in self.trunk:
            x = block(x, film)
            if self._limit is not None:
                x = x.clamp_(-self._limit, self._limit)
        features = self.conv_out(x).add_(first)
        if not with_image:
            return features, None
        detail = F.pixel_shuffle(self.head(features), SCALE)
        return features, (imresize_tensor(lr, SCALE) + detail).clamp(-1, 1)

    @apply_forward_hook
    def estimate_level(self, windows: Iterable[Tensor]) -> Tensor:
        """See `LevelHead.estimate`; of an encoder that takes a level."""
        assert self.level_head is not None, "the encoder was built without a level"
        return self.level_head.estimate(windows)

    def forward(self, lr: Tensor, level: Tensor | None = None) -> Tensor:
        """lr (N, 3, h, w) in [-1, 1], level as for `encode` -> the estimate (N, 3, 4h, 4w), clamped to [-1, 1]."""
        image = self.encode(lr, level, with_image=True)[1]
        assert image is not None
        return image


class TimeEmbedding(nn.Module):
    """t (N,) -> (N, width): `embed_time` of 64 channels, then two linear layers."""

    CHANNELS = 64

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.CHANNELS, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(embed_time(t, self.CHANNELS).to(next(self.mlp.parameters()).dtype))


class LightDenoiser(ModelMixin, ConfigMixin):
    """(x_t, t, features) -> prediction, at LR resolution on the pixel-unshuffled residual.

    Args:
        width: channels of the trunk.
        blocks: residual blocks.
        feature_channels: channels of the encoder's features.
        level: take the level of degradation as an input.
        convs: convolutions of each block, from 2; the time acts after the first.
        activation: between them, "relu" or "silu".
        with_structure: add a `structure_head`, which estimates the structure map from the features.
        structure_input: take the structure map as an input, besides what x_t holds of it.
    """

    __module__ = "samdiffsr"  # the home that model_index.json names: this file may move

    @register_to_config
    def __init__(
        self,
        width: int = 128,
        blocks: int = 8,
        feature_channels: int = 128,
        level: bool = False,
        convs: int = 2,
        activation: str = "relu",
        with_structure: bool = False,
        structure_input: bool = False,
    ) -> None:
        super().__init__()
        _check(width=width, blocks=blocks, feature_channels=feature_channels)
        self.time = TimeEmbedding(width)
        self.conv_in = conv(3 * SCALE**2, width)
        self.conv_features = conv(feature_channels, width)
        self.trunk = nn.ModuleList(
            LightBlock(width, time_width=width, convs=convs, activation=activation) for _ in range(blocks)
        )
        self._trunk_halo = convs * blocks
        self.head = conv(width, 3 * SCALE**2, gain=0.1)
        self.level_embedding = LevelEmbedding(width, zero=True) if level else None
        self.structure_head = StructureHead(feature_channels, SCALE) if with_structure else None
        self.conv_structure = conv(SCALE**2, width, gain=0.1) if structure_input else None

    @property
    def takes_level(self) -> bool:
        """Whether `forward` looks at a level."""
        return self.level_embedding is not None

    @property
    def hr_multiple(self) -> int:
        """The HR height and width must be a multiple of this."""
        return SCALE

    @property
    def hr_minimum(self) -> int:
        """The least HR height and width."""
        return SCALE

    @property
    def halo_lr(self) -> int:
        """A prediction depends on no input further away than this, in LR pixels."""
        return 2 + self._trunk_halo

    @property
    def condition_scale(self) -> int:
        """Pixels of the condition along an LR pixel."""
        return 1

    @property
    def condition_halo_lr(self) -> int:
        """The halo of `condition` alone."""
        return 1

    def floats_per_lr_pixel(self) -> int:
        """About what a pass holds at once."""
        return 5 * self.conv_in.out_channels + 3 * 3 * SCALE**2

    @apply_forward_hook
    def condition(self, features: Tensor) -> Tensor:
        """The part that does not depend on x_t and t, to be computed once an image: (N, C, h, w) -> (N, width, h, w)."""
        return self.conv_features(features)

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
        level: Tensor | None = None,
        structure: Tensor | None = None,
    ) -> Tensor:
        """x_t (N, 3, H, W), t (N,) 0-based, features (N, C, H / 4, W / 4) -> prediction (N, 3, H, W).

        Instead of the features, which may then be None, comes the `condition` made of them, if there is one. `level` (N,) in
        [0, 1] is that of the LR image, for a denoiser that takes it; none is 0. `structure` (N, 1, H, W) is the structure map,
        which a denoiser built with `structure_input` needs.
        """
        time = self.time(t)
        if self.level_embedding is not None and level is not None:
            time = time + self.level_embedding(level)
        condition = self.condition(cast(Tensor, features)) if condition is None else condition
        x = self.conv_in(F.pixel_unshuffle(x_t, SCALE)).add_(condition)
        if self.conv_structure is not None:
            x.add_(self.conv_structure(F.pixel_unshuffle(cast(Tensor, structure), SCALE)))
        for block in self.trunk:
            x = block(x, time)
        return F.pixel_shuffle(self.head(x), SCALE)
