"""What Pillow cannot write: 16 bits, large PNG and JPEG in little memory, TIFF with EXIF, JPEG XL.

Pillow's writers of PNG and TIFF have no 16-bit colour, that of TIFF fails on EXIF as soon as the pixels are compressed, and
all of them want the whole picture, with 4 bytes a pixel.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin, TiffTags

from samdiffsr.images.metadata import XMP_TAG, load_exif, resolution_in_exif
from samdiffsr.images.picture import Metadata

Strip = Callable[[int, int], np.ndarray]
"""(first, end) -> the samples (end - first, W, C) of those rows."""

_BLOCK = 2**21  # bytes of samples that are compressed at once
_MCU = 8  # rows of a block of JPEG, of 4:4:4 and grey


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


def encode_png(strip: Strip, height: int, dressed: bytes) -> Iterator[bytes]:
    """A PNG, piece by piece: no more than a few strips of the picture are in memory.

    Pixels of 8 bits are filtered by Pillow, which chooses for each row, 16 bits by Paeth's filter.

    Args:
        strip: gives uint8 or uint16 samples: grey, grey and alpha, RGB, RGBA.
        dressed: any PNG whose other chunks (profile, EXIF, XMP, resolution) the new one takes over.
    """
    above = strip(0, 1)
    _, width, channels = above.shape
    yield dressed[:8]
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8 * above.itemsize, (0, 4, 2, 6)[channels - 1], 0, 0, 0])
    yield _chunk(b"IHDR", header)
    for kind, data in _chunks(dressed):
        if kind not in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            yield _chunk(kind, data)
    pack = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)  # as Pillow has it
    rows = max(1, _BLOCK // above.nbytes)
    above = np.zeros_like(above)
    for first in range(0, height, rows):
        block = strip(first, min(first + rows, height))
        filtered = _chosen(block, above if first else None) if block.itemsize == 1 else _paeth(block, above)
        if data := pack.compress(filtered):
            yield _chunk(b"IDAT", data)
        above = block[-1:]
    yield _chunk(b"IDAT", pack.flush())
    yield _chunk(b"IEND", b"")


def encode_jpeg(strip: Strip, height: int, options: dict[str, Any], described: dict[str, Any]) -> Iterator[bytes]:
    """A JPEG, piece by piece: no more than a few strips of the picture are in memory.

    Each strip is encoded as a picture of its own with a restart marker after each row of blocks. There the encoder forgets
    the blocks before, so the scans of all strips in a row are the scan of the whole picture: the pixels are the same.

    Args:
        strip: gives uint8 samples: grey or RGB.
        options: of Pillow, what the pixels need; the colour is 4:4:4 or none, the Huffman tables are the standard ones.
        described: of Pillow, what the header says besides (profile, EXIF, XMP, resolution).
    """
    period = 8 * _MCU  # restart markers count from 0 to 7
    rows = max(period, _BLOCK // strip(0, 1).nbytes // period * period)
    if height <= rows:
        yield _jpeg(strip(0, height), options | described)
        return
    for first in range(0, height, rows):
        part = _jpeg(
            strip(first, min(first + rows, height)),
            options | {"restart_marker_rows": 1} | ({} if first else described),
        )
        size, scan = _parts(part)
        if first:
            yield b"\xff\xd7"  # the last of the eight
        else:
            yield part[:size] + height.to_bytes(2) + part[size + 2 : scan]
        yield part[scan:-2]  # without the marker of the end
    yield b"\xff\xd9"


def _jpeg(samples: np.ndarray, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    as_image(samples).save(file, format="JPEG", **options)
    return file.getvalue()


def _parts(jpeg: bytes) -> tuple[int, int]:
    """Where a JPEG says its height, and where its scan starts."""
    size, place = 0, 2
    while True:
        marker = jpeg[place + 1]
        if marker in (0xC0, 0xC1):  # start of frame: length, depth, height
            size = place + 5
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4])
        if marker == 0xDA:  # start of scan
            return size, place


def _chosen(block: np.ndarray, above: np.ndarray | None) -> bytes:
    """PNG rows of uint8 samples, each with the filter that Pillow chooses. `above` is the row before."""
    file = io.BytesIO()
    as_image(block if above is None else np.concatenate([above, block])).save(file, format="PNG", compress_level=0)
    rows = zlib.decompress(b"".join(data for kind, data in _chunks(file.getvalue()) if kind == b"IDAT"))
    return rows if above is None else rows[1 + block[0].nbytes :]


def as_image(samples: np.ndarray) -> Image.Image:
    """uint8 (H, W, C) samples: grey, grey and alpha, RGB, RGBA."""
    return Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4])
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        place += 12 + length


def _paeth(block: np.ndarray, above: np.ndarray) -> bytes:
    """PNG rows of uint16 samples with filter 4: each byte minus that of left, above, above left that predicts it best."""
    step = 2 * block.shape[2]
    rows, before = (part.astype(">u2").reshape(len(part), -1).view(np.uint8) for part in (block, above))
    padded = np.zeros((rows.shape[0] + 1, rows.shape[1] + step), np.int16)
    padded[0, step:], padded[1:, step:] = before[0], rows
    left, up, corner = padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step]
    off_left, off_up = np.abs(up - corner), np.abs(left - corner)
    off_corner = np.abs(left + up - 2 * corner)
    best = np.where((off_left <= off_up) & (off_left <= off_corner), left, np.where(off_up <= off_corner, up, corner))
    filtered = np.full((rows.shape[0], rows.shape[1] + 1), 4, np.uint8)
    filtered[:, 1:] = rows - best.astype(np.uint8)
    return filtered.tobytes()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)
