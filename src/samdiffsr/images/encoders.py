"""16-bit PNG, TIFF and JPEG XL: what Pillow cannot write.

Pillow's PNG writer has no 16-bit colour. Its TIFF writer has none either, and fails on EXIF as soon as the pixels are
compressed.
"""

import io
import zlib
from typing import Any

import numpy as np
from PIL import TiffImagePlugin, TiffTags

from samdiffsr.images.metadata import XMP_TAG, load_exif, resolution_in_exif
from samdiffsr.images.picture import Metadata

_BLOCK = 2**23  # bytes of samples that are compressed at once


def encode_tiff(samples: np.ndarray, icc: bytes | None, metadata: Metadata) -> io.BytesIO:
    """A little-endian TIFF of uint8 or uint16 (H, W, C) samples: deflate, horizontal differences, strips.

    C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA).
    """
    height, width, channels = samples.shape
    rows = max(1, min(height, _BLOCK // samples[0].nbytes))
    strips = []
    for first in range(0, height, rows):
        block = samples[first : first + rows].astype(samples.dtype.newbyteorder("<"))
        block[:, 1:] -= samples[first : first + rows, :-1]
        strips.append(zlib.compress(block.tobytes()))
    lengths = tuple(len(strip) for strip in strips)
    tags = _described(metadata)
    tags |= {256: width, 257: height, 258: (8 * samples.itemsize,) * channels, 259: 8, 262: 1 if channels < 3 else 2}
    tags |= {273: tuple(np.cumsum((0, *lengths[:-1])).tolist()), 277: channels, 278: rows, 279: lengths, 284: 1, 317: 2}
    if channels in (2, 4):
        tags[338] = 2  # unassociated alpha
    if icc:
        tags[34675] = icc
    if metadata.dpi:
        tags |= {282: metadata.dpi[0], 283: metadata.dpi[1], 296: 2}
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
    for tag, value in tags.items():
        directory[tag] = value
    for tag in (273, 279):
        directory.tagtype[tag] = TiffTags.LONG
    file = io.BytesIO()
    directory.save(file)  # moves the offsets in 273 behind itself
    for strip in strips:
        file.write(strip)
    return file


def encode_jxl(samples: np.ndarray, metadata: Metadata, quality: int | None) -> io.BytesIO:
    """A JPEG XL of uint8 (H, W, C) sRGB samples: grey, grey and alpha, RGB, RGBA.

    Args:
        quality: 1 to 100; None is lossless.
    """
    import pillow_jxl

    height, width, channels = samples.shape
    make: Any = pillow_jxl.Encoder  # its stub is that of an older version
    encoder = make(
        mode=("L", "LA", "RGB", "RGBA")[channels - 1],
        lossless=quality is None,
        quality=100 if quality is None else quality,
        decoding_speed=0,
        effort=7,
        use_container=True,
        use_original_profile=quality is None,
        num_threads=-1,
    )
    exif = resolution_in_exif(metadata)
    described = {"exif": exif and exif.removeprefix(b"Exif\0\0"), "xmp": metadata.xmp, "jumb": None, "compress": False}
    pixels = np.ascontiguousarray(samples).tobytes()
    return io.BytesIO(encoder(pixels, width, height, jpeg_encode=False, **described))


def _described(metadata: Metadata) -> dict[int, Any]:
    """EXIF and XMP as tags."""
    tags: dict[int, Any] = {}
    if metadata.exif is not None:
        exif = load_exif(metadata.exif)
        tags = {tag: exif.get_ifd(tag) if tag in TiffTags.TAGS_V2_GROUPS else exif[tag] for tag in exif}
    if metadata.xmp is not None:
        tags[XMP_TAG] = metadata.xmp
    return tags


def encode_16_bit_png(samples: np.ndarray, dressed: bytes) -> io.BytesIO:
    """A 16-bit PNG.

    Args:
        samples: uint16 (H, W, C): grey, grey and alpha, RGB, RGBA.
        dressed: any PNG whose other chunks (profile, EXIF, XMP, resolution) the new one takes over.
    """
    height, width, channels = samples.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    file = io.BytesIO()
    file.write(dressed[:8])
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([16, colour, 0, 0, 0])
    _chunk(file, b"IHDR", header)
    place = 8
    while place < len(dressed):
        length, kind = int.from_bytes(dressed[place : place + 4]), dressed[place + 4 : place + 8]
        if kind not in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            file.write(dressed[place : place + 12 + length])
        place += 12 + length
    pack = zlib.compressobj(6)
    above = np.zeros(width * channels * 2, np.uint8)
    rows = max(1, _BLOCK // above.size)
    for first in range(0, height, rows):
        block = samples[first : first + rows].astype(">u2").reshape(-1, width * channels).view(np.uint8)
        if data := pack.compress(_paeth(block, above, 2 * channels).tobytes()):
            _chunk(file, b"IDAT", data)
        above = block[-1]
    _chunk(file, b"IDAT", pack.flush())
    _chunk(file, b"IEND", b"")
    return file


def _paeth(rows: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """PNG filter 4 of uint8 rows (H, bytes): each byte minus that of left, above, above left that predicts it best."""
    padded = np.zeros((rows.shape[0] + 1, rows.shape[1] + step), np.int16)
    padded[0, step:], padded[1:, step:] = above, rows
    left, up, corner = padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step]
    off_left, off_up = np.abs(up - corner), np.abs(left - corner)
    off_corner = np.abs(left + up - 2 * corner)
    best = np.where((off_left <= off_up) & (off_left <= off_corner), left, np.where(off_up <= off_corner, up, corner))
    filtered = np.full((rows.shape[0], rows.shape[1] + 1), 4, np.uint8)
    filtered[:, 1:] = rows - best.astype(np.uint8)
    return filtered


def _chunk(file: io.BytesIO, kind: bytes, data: bytes) -> None:
    file.write(len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4))
