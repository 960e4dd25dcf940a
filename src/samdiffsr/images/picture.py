"""One picture in memory: pixels, transparency, colour space, and what its file said besides."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from samdiffsr.errors import ImageError


@dataclass(frozen=True)
class Metadata:
    """All that a file says besides its pixels and their colour space; dropping it changes no colour.

    Attributes:
        exif: b"Exif\0\0" and a TIFF block, as in a JPEG; without orientation and thumbnail.
        xmp: an XMP packet.
        dpi: pixels an inch, horizontal and vertical.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Animation:
    """What makes a picture the first frame of a moving one.

    Attributes:
        later: the other frames, whole ones, of the first one's size.
        milliseconds: how long each frame is seen, the first one too.
        plays: how often it runs; 0 is for ever.
    """

    later: "tuple[Picture, ...]"
    milliseconds: tuple[float, ...]
    plays: int


@dataclass(frozen=True, eq=False)
class Picture:
    """One upright picture.

    Attributes:
        rgb: uint8 or uint16 (H, W, 3), H and W at least 1. Not linear: whatever colour space `icc` says, sRGB without one.
        alpha: (H, W) of the same dtype, not premultiplied; None when the source had none.
        grey: the source was greyscale; written as grey (with alpha if there is one).
        icc: colour profile of `rgb`, kept on writing where the format can hold it.
        metadata: EXIF, XMP and resolution.
        notes: what reading changed beyond an exact conversion, in words for the user.
        animation: of a moving picture whose frames were asked for: the others.
        level: of a result: the level of degradation, 0 to 1, that it was made with, given or estimated; None where the
            model has no such input, and for what was read.

    Raises:
        ImageError: when shapes or dtypes differ from the above.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    icc: bytes | None = None
    metadata: Metadata = Metadata()
    notes: tuple[str, ...] = ()
    animation: Animation | None = None
    level: float | None = None

    def __post_init__(self) -> None:
        rgb, alpha = self.rgb, self.alpha
        if rgb.dtype not in (np.uint8, np.uint16) or rgb.ndim != 3 or rgb.shape[2] != 3 or min(rgb.shape) < 1:
            raise ImageError(f"A picture needs uint8 or uint16 pixels of shape (H, W, 3), got {rgb.dtype} {rgb.shape}.")
        if alpha is not None and (alpha.dtype != rgb.dtype or alpha.shape != rgb.shape[:2]):
            raise ImageError(f"Alpha must be {rgb.dtype} of shape {rgb.shape[:2]}, got {alpha.dtype} {alpha.shape}.")

    @property
    def depth(self) -> int:
        """Bits a sample: 8 or 16."""
        return 8 * self.rgb.itemsize

    def in_8_bit(self) -> Self:
        """The same picture with 8 bits a sample."""
        alpha = None if self.alpha is None else to_8_bit(self.alpha)
        return replace(self, rgb=to_8_bit(self.rgb), alpha=alpha)


def to_16_bit(samples: np.ndarray) -> np.ndarray:
    """uint8 -> uint16 of the same brightness, exactly invertible; uint16 stays as it is."""
    return samples if samples.dtype == np.uint16 else samples.astype(np.uint16) * 257


def to_8_bit(samples: np.ndarray) -> np.ndarray:
    """uint16 -> the nearest uint8; uint8 stays as it is."""
    if samples.dtype == np.uint8:
        return samples
    return ((np.arange(65_536) + 128) // 257).astype(np.uint8)[samples]  # a table: no wide copy of a large picture
