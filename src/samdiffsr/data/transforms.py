"""One random crop and flip for HR, LR and structure together, drawn once, in LR units."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samdiffsr.errors import ConfigError


@dataclass(frozen=True)
class JointCrop:
    """A square of `crop_lr` LR pixels with its corner at (top_lr, left_lr), then one of the 8 flips and rotations.

    `orientation` 0..7: bit 0 flips left-right, bit 1 flips up-down, bit 2 swaps rows and columns.
    """

    top_lr: int
    left_lr: int
    crop_lr: int
    orientation: int = 0

    @classmethod
    def draw(cls, words: Sequence[int], height_lr: int, width_lr: int, crop_lr: int, *, flips: bool) -> "JointCrop":
        """A place and, if `flips`, an orientation, from three random integers of 32 bits."""
        if crop_lr > min(height_lr, width_lr):
            raise ConfigError(f"crop_lr is {crop_lr}, but an image has only {width_lr}x{height_lr} LR pixels.")
        top, left = words[0] * (height_lr - crop_lr + 1) >> 32, words[1] * (width_lr - crop_lr + 1) >> 32
        return cls(top, left, crop_lr, words[2] >> 29 if flips else 0)

    def window(self, image: np.ndarray, scale: int) -> np.ndarray:
        """Crop an array whose first axes are rows and columns; `scale` is 1 for LR, 4 for HR and structure."""
        top, left, size = self.top_lr * scale, self.left_lr * scale, self.crop_lr * scale
        return image[top : top + size, left : left + size]

    def apply(self, image: np.ndarray, scale: int) -> np.ndarray:
        """`window`, then the orientation; the pixels are a copy.

        Rows are flipped while they are copied, whole rows at once; the rest is a view of the copy. Copying mirrored pixels
        straight out of a large image takes five times as long.
        """
        window = self.window(image, scale)
        out = np.array(window[::-1] if self.orientation & 2 else window, order="C")
        if self.orientation & 1:
            out = out[:, ::-1]
        return out.swapaxes(0, 1) if self.orientation & 4 else out
