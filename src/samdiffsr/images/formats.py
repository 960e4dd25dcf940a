"""Which formats there are and what each can hold."""

import importlib
import os
from pathlib import Path
from typing import Any

from samdiffsr.errors import ImageError, Range

WRITABLE = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".avif": "AVIF",
    ".jxl": "JXL",
}
"""Extension -> format of the files `write_image` can make."""

ALPHA = frozenset({".png", ".webp", ".tif", ".tiff", ".avif", ".jxl"})
"""Extensions that can hold transparency. Not .bmp: Pillow writes it there, but does not read it back."""

SIXTEEN_BIT = frozenset({".png", ".tif", ".tiff"})
"""Extensions that can hold 16 bits a sample."""

HEIF = frozenset({".heic", ".heif", ".hif"})
RAW = frozenset(
    f".{name}"
    for name in (
        *("3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "iiq", "kdc", "mef"),
        *("mrw", "nef", "nrw", "orf", "pef", "raf", "rw2", "rwl", "sr2", "srf", "srw"),
    )
)
"""Extensions of camera raw. Most such files are TIFFs inside, so here the name decides."""

READABLE = frozenset(WRITABLE) | HEIF | RAW | {".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
"""Extensions that make a file in a folder count as an image. (What a file *is* is decided by its content.)"""

XMP = frozenset(WRITABLE) - {".bmp"}
"""Extensions that can hold XMP."""

QUALITY = Range("quality", 1, 100, whole=True)
"""Of the formats in `QUALITIES`."""

MAX_PIXELS = 64_000_000
"""Largest input accepted unless the caller says otherwise; 16 times as many pixels come out."""

QUALITIES = frozenset({"JPEG", "WEBP", "AVIF", "JXL"})
"""Formats that have a quality."""

_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 65_536}


def is_picture_name(name: str) -> bool:
    """Whether a file of a folder counts as an image: by its extension, and not hidden."""
    return os.path.splitext(name)[1].lower() in READABLE and name[0] != "."


def list_images(folder: str | os.PathLike[str], *, distinct: bool = False) -> list[Path]:
    """The images of a folder by extension, sorted by name; nothing is opened.

    Args:
        distinct: refuse two that differ in their extensions only, such as a.png and a.jpg.

    Raises:
        ImageError: no such folder, no image in it, or two of one name.
    """
    try:
        files = sorted(file for file in Path(folder).iterdir() if is_picture_name(file.name))
    except OSError as error:
        raise ImageError(f"Cannot list the folder '{folder}': {error.strerror}.") from None
    if not files:
        raise ImageError(f"There is no image in the folder '{folder}'.")
    seen: dict[str, Path] = {}
    for file in files if distinct else ():
        if (other := seen.setdefault(file.stem, file)) != file:
            raise ImageError(f"'{other}' and '{file}' have one name; rename one.")
    return files


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
    if format_ == "JXL":
        load_package("pillow_jxl", "jxl", path, "write")
    if format_ == "AVIF" and not _has_avif():
        raise ImageError(f"Cannot write '{path}': this Pillow has no AVIF; install Pillow 11.3 or newer, or use .png.")
    return format_


def _has_avif() -> bool:
    from PIL import Image

    Image.init()
    return "AVIF" in Image.SAVE


def load_package(package: str, extra: str, path: str | os.PathLike[str], verb: str = "read") -> Any:
    """The module; ImageError names the extra if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImageError(
            f"Cannot {verb} '{path}': {package} is not installed; run pip install \"samdiffsr[{extra}]\"."
        ) from error
