"""TIFF out. Pillow's own writer has no 16-bit colour, and fails on EXIF as soon as the pixels are compressed."""

import io
import zlib
from typing import Any

import numpy as np
from PIL import TiffImagePlugin, TiffTags

from samdiffsr.images.metadata import XMP_TAG, load_exif
from samdiffsr.images.picture import Metadata

_BLOCK = 2**23  # bytes of samples in a strip


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


def _described(metadata: Metadata) -> dict[int, Any]:
    """EXIF and XMP as tags."""
    tags: dict[int, Any] = {}
    if metadata.exif is not None:
        exif = load_exif(metadata.exif)
        tags = {tag: exif.get_ifd(tag) if tag in TiffTags.TAGS_V2_GROUPS else exif[tag] for tag in exif}
    if metadata.xmp is not None:
        tags[XMP_TAG] = metadata.xmp
    return tags
