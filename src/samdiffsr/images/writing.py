"""Write a picture as the kind of file its name says, whole or not at all."""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from samdiffsr.errors import ImageError
from samdiffsr.files import whole_file
from samdiffsr.images.animation import encode_frames
from samdiffsr.images.encoders import as_image, encode_jpeg, encode_jxl, encode_png, encode_tiff
from samdiffsr.images.formats import QUALITY, SIXTEEN_BIT, check_target
from samdiffsr.images.metadata import fitting, reason, resolution_in_exif, sized
from samdiffsr.images.picture import Metadata, Picture, to_8_bit

_NAMED = {"WEBP": "a WebP", "AVIF": "an AVIF"}
_JPEG_LIMIT = 65_500  # bytes of EXIF or XMP
_LUMA = np.array([19_595, 38_470, 7_471], np.uint32)  # ITU-R 601-2 as Pillow has it, times 2^16


def write_image(picture: Picture, path: str | os.PathLike[str], *, quality: int | None = None) -> tuple[str, ...]:
    """Write `picture` in the format its extension names.

    PNG, TIFF, BMP are lossless, the first two with 16 bits if the picture has them. JPEG and AVIF have 4:4:4 colour. The
    file appears whole or not at all: it is written beside its place under a temporary name, then moved over whatever is there.

    Args:
        quality: 1 to 100; None is 95 for JPEG and AVIF and lossless for WebP and JPEG XL. Other formats have none.

    Returns:
        What the format could not hold of depth, profile and metadata, in words for the user.

    Raises:
        ImageError: unknown extension, one whose extra is not installed, transparency in a format without, missing folder, no
            permission, disk full.
        ConfigError: a quality outside 1 to 100.
    """
    pieces, notes = _encoded(picture, Path(path), quality)
    with whole_file(Path(path), error=ImageError) as file:
        for piece in pieces:
            file.write(piece)
    return tuple(notes)


def encode_image(
    picture: Picture, path: str | os.PathLike[str], *, quality: int | None = None
) -> tuple[memoryview, tuple[str, ...]]:
    """The bytes that `write_image` would write to `path`, and its notes; nothing is written.

    Raises:
        ImageError: unknown extension, or transparency in a format without.
        ConfigError: a quality outside 1 to 100.
    """
    pieces, notes = _encoded(picture, Path(path), quality)
    file = io.BytesIO()
    for piece in pieces:
        file.write(piece)
    return file.getbuffer(), tuple(notes)


def _encoded(picture: Picture, path: Path, quality: int | None) -> tuple[Iterator[bytes | memoryview], list[str]]:
    """The pieces of the file, made one by one, and the notes, complete after the last piece."""
    if quality is not None:
        QUALITY.check(quality)
    height, width = picture.rgb.shape[:2]
    format_ = check_target(path, height=height, width=width, alpha=picture.alpha is not None)
    notes: list[str] = []
    if picture.depth == 16 and path.suffix.lower() not in SIXTEEN_BIT:
        notes.append(f"16-bit pixels reduced to the 8 bit that {path.suffix.lower()} holds")

    def pieces() -> Iterator[bytes | memoryview]:
        try:
            yield from _pieces(picture, format_, quality, notes)
        except (OSError, ValueError, struct.error, OverflowError) as error:
            raise ImageError(f"Cannot write '{path}': {reason(error)}; try .png.") from error

    return pieces(), notes


def _pieces(picture: Picture, format_: str, quality: int | None, notes: list[str]) -> Iterator[bytes | memoryview]:
    height, width = picture.rgb.shape[:2]
    metadata = sized(picture.metadata, height, width)
    if format_ == "TIFF":
        yield encode_tiff(_samples(picture, keep_grey=picture.depth == 8), picture.icc, metadata).getbuffer()
    elif format_ == "JXL":
        yield encode_jxl(_samples(_in_srgb(picture.in_8_bit(), notes)), metadata, quality).getbuffer()
    else:
        yield from _by_pillow(picture, metadata, format_, quality, notes)


def _in_srgb(picture: Picture, notes: list[str]) -> Picture:
    """An 8-bit picture for the JPEG XL encoder, which takes no profile and says sRGB: the colours themselves change."""
    if not picture.icc:
        return picture
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.icc))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return picture
        image = Image.fromarray(_grey(picture.rgb) if picture.icc[16:20] == b"GRAY" else picture.rgb)
        out = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        notes.append(f"a JPEG XL is written as sRGB, and the colour profile is not usable ({reason(error)})")
        return picture
    notes.append("a JPEG XL is written as sRGB, so the colours are converted from their profile")
    return replace(picture, rgb=np.asarray(out), icc=None)


def _samples(picture: Picture, *, keep_grey: bool = True) -> np.ndarray:
    """(H, W, C): grey or RGB, and alpha. Without `keep_grey`, grey with alpha is RGBA: Pillow reads no such 16-bit TIFF."""
    grey = picture.grey and (keep_grey or picture.alpha is None)
    layers = [_grey(picture.rgb) if grey else picture.rgb]
    if picture.alpha is not None:
        layers.append(picture.alpha)
    return np.dstack(layers) if len(layers) > 1 or grey else layers[0]  # a copy only where there is need


def _grey(rgb: np.ndarray) -> np.ndarray:
    """RGB -> grey of the same depth."""
    if rgb.dtype == np.uint8:
        return np.asarray(Image.fromarray(rgb).convert("L"))
    total = np.full(rgb.shape[:2], 2**15, np.uint32)
    for channel, weight in enumerate(_LUMA):
        total += rgb[..., channel] * weight
    return (total >> 16).astype(np.uint16)


def _by_pillow(
    picture: Picture, metadata: Metadata, format_: str, quality: int | None, notes: list[str]
) -> Iterator[bytes | memoryview]:
    """The file by Pillow's encoders. In memory, because its own file writing turns a full disk into "encoder error -2"."""
    pixels, described = _options(metadata, format_, quality, notes)
    if picture.icc and format_ == "BMP":
        notes.append("a BMP holds no colour profile, so it is left out")
    elif picture.icc and format_ in ("WEBP", "AVIF") and picture.icc[16:20] == b"GRAY":
        notes.append(f"{_NAMED[format_]} is always RGB, so the grey colour profile is left out")
    elif picture.icc:
        described["icc_profile"] = picture.icc
    if picture.animation is not None and format_ not in ("PNG", "WEBP"):
        notes.append("this format holds no moving picture, only the first frame is kept")
    height = len(picture.rgb)

    def strip(first: int, end: int) -> np.ndarray:
        alpha = None if picture.alpha is None else picture.alpha[first:end]
        part = Picture(picture.rgb[first:end], alpha, picture.grey)
        return _samples(part if format_ == "PNG" else part.in_8_bit())

    file = io.BytesIO()
    if picture.animation is not None and format_ in ("PNG", "WEBP") and (picture.depth == 8 or format_ == "WEBP"):
        yield encode_frames(picture.in_8_bit(), format_, pixels | described).getbuffer()
    elif format_ == "PNG":
        as_image(to_8_bit(strip(0, 1)[:, :1])).save(file, format=format_, **described)
        yield from encode_png(strip, height, file.getvalue())
    elif format_ == "JPEG":
        yield from encode_jpeg(strip, height, pixels, described)
    else:
        as_image(strip(0, height)).save(file, format=format_, **pixels, **described)
        yield file.getbuffer()


def _options(
    metadata: Metadata, format_: str, quality: int | None, notes: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of Pillow's `save`: those of the pixels, and those of what the file says besides."""
    pixels: dict[str, Any] = {}
    described: dict[str, Any] = {}
    if format_ == "JPEG":
        pixels = {"quality": 95 if quality is None else quality, "subsampling": 0}  # 4:4:4
        metadata = fitting(metadata, _JPEG_LIMIT, notes)
    elif format_ == "WEBP":  # lossy WebP is 4:2:0 only; exact keeps the colour under alpha 0
        pixels = {"lossless": True, "exact": True} if quality is None else {"quality": quality, "exact": True}
    elif format_ == "AVIF":  # what Pillow writes is never quite lossless: its colours are YCbCr
        pixels = {"quality": 95 if quality is None else quality, "subsampling": "4:4:4"}
    if format_ in ("WEBP", "AVIF"):
        metadata = replace(metadata, exif=resolution_in_exif(metadata))
    elif metadata.dpi:
        described["dpi"] = metadata.dpi
    if format_ == "BMP":
        if metadata.exif or metadata.xmp:
            notes.append("a BMP holds neither EXIF nor XMP, so they are left out")
        return pixels, described
    if metadata.exif:
        described["exif"] = metadata.exif
    if metadata.xmp and format_ == "PNG":
        described["pnginfo"] = PngImagePlugin.PngInfo()
        described["pnginfo"].add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
    elif metadata.xmp:
        described["xmp"] = metadata.xmp
    return pixels, described
