"""How large a result is: a factor, or pixels."""

import math
import re
from dataclasses import dataclass
from typing import Self

from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.resize import SCALE

MAX_SCALE = SCALE**2
"""The network enlarges once or twice; what lies between its sizes is reduced to."""


@dataclass(frozen=True)
class OutputSize:
    """A factor, or a size with one side or both.

    Attributes:
        scale: from 1, the picture's own size, to 16; sides are rounded to the nearest pixel.
        width, height: pixels. With one of them the aspect stays; both must fit the picture's aspect to within rounding.

    Raises:
        ConfigError: a factor outside that range, both a factor and a size, or neither.
    """

    scale: float | None = None
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        sized = self.width is not None or self.height is not None
        if (self.scale is None) == (not sized):
            raise ConfigError("Give either a scale or a size.")
        if self.scale is not None and not 1 <= self.scale <= MAX_SCALE:  # also false for NaN
            raise ConfigError(f"The scale is {self.scale:g}, but must be from 1 to {MAX_SCALE}.")
        if sized and min(side for side in (self.width, self.height) if side is not None) < 1:
            raise ConfigError(f"The size is {self._size()}, but a side has at least 1 pixel.")

    @classmethod
    def parse(cls, scale: float | None, size: str | None) -> Self:
        """From what a user wrote: a factor or "1920x1080", "1920x", "x1080"; neither is a factor of 4."""
        if size is None:
            return cls(scale=SCALE if scale is None else scale)
        if scale is not None:
            raise ConfigError(f"scale {scale:g} and size {size} contradict each other; give one of them.")
        found = re.fullmatch(r"(\d{1,7})?x(\d{1,7})?", size.strip().lower())
        if found is None or not any(found.groups()):
            raise ConfigError(f"The size is {size!r}, but must look like 1920x1080, 1920x or x1080.")
        width, height = (int(side) if side else None for side in found.groups())
        return cls(width=width, height=height)

    @property
    def suffix(self) -> str:
        """For file names: "_x4", "_x2.5", "_1920x1080", "_1920x"."""
        return f"_{self._size()}" if self.scale is None else f"_x{self.scale:g}"

    def _size(self) -> str:
        return f"{'' if self.width is None else self.width}x{'' if self.height is None else self.height}"

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an upright picture of this height and width becomes.

        Raises:
            ImageError: a picture that would shrink, would grow more than 16 times, or would be distorted.
        """
        if self.scale is not None:
            return _nearest(self.scale * height), _nearest(self.scale * width)
        wide = self.width if self.width is not None else _nearest(width * (self.height or 0) / height)
        high = self.height if self.height is not None else _nearest(height * wide / width)
        here, there = f"The picture has {width}x{height} pixels", f"{wide}x{high}"
        if high < height or wide < width:
            raise ImageError(f"{here}, so {there} would shrink it; ask for more.")
        if high > MAX_SCALE * height or wide > MAX_SCALE * width:
            raise ImageError(f"{here}, so {there} is more than {MAX_SCALE} times larger; ask for less.")
        if abs(wide - width * high / height) > 1 and abs(high - height * wide / width) > 1:
            raise ImageError(f"{here}, so {there} would distort it; give one side, as in {wide}x.")
        return high, wide


def passes(height: int, width: int, size: tuple[int, int]) -> int:
    """How often the network enlarges by 4 to reach at least `size` (height, width): 1 or 2."""
    return 1 if size[0] <= SCALE * height and size[1] <= SCALE * width else 2


def _nearest(side: float) -> int:
    return max(1, math.floor(side + 0.5))
