"""Which formats there are and what each can hold."""

import os
from pathlib import Path

from samdiffsr.errors import ImageError, Range

WRITABLE = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""Extension -> format of the files `write_image` can make."""

ALPHA = frozenset({".png", ".webp", ".tif", ".tiff"})
"""Extensions that can hold transparency. Not .bmp: Pillow writes it there, but does not read it back."""

SIXTEEN_BIT = frozenset({".png", ".tif", ".tiff"})
"""Extensions that can hold 16 bits a sample."""

READABLE = frozenset(WRITABLE) | {".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif"}
"""Extensions that make a file in a folder count as an image. (What a file *is* is decided by its content.)"""

QUALITY = Range("quality", 1, 100, whole=True)
"""Of JPEG and WebP."""

MAX_PIXELS = 64_000_000
"""Largest input accepted unless the caller says otherwise; 16 times as many pixels come out."""

_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}


def is_picture_name(name: str) -> bool:
    """Whether a file of a folder counts as an image: by its extension, and not hidden."""
    return os.path.splitext(name)[1].lower() in READABLE and name[0] != "."


def check_target(path: str | os.PathLike[str], *, height: int, width: int, alpha: bool) -> str:
    """The Pillow format for writing such a picture to `path`; ImageError if its extension cannot hold the picture."""
    path = Path(path)
    extension = path.suffix.lower()
    if extension not in WRITABLE:
        raise ImageError(f"Cannot write '{path}': the extension must be one of {', '.join(WRITABLE)}.")
    format_ = WRITABLE[extension]
    if alpha and extension not in ALPHA:
        raise ImageError(f"Cannot write '{path}': the picture has transparency, which {extension} loses; use .png.")
    if max(height, width) > (limit := _MAX_SIDE.get(format_, 2**31 - 1)):
        size = f"{width}x{height}"
        raise ImageError(
            f"Cannot write '{path}': {size} is more than the {limit} pixels a side of {extension}; use .png."
        )
    return format_
