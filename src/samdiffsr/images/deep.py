"""16 bits a sample where Pillow has only 8: colour, and grey with alpha; PNG and TIFF in, PNG out.

Reading. Pillow opens 16-bit colour as 8 bit: of each sample it keeps the high byte. Told that the samples have the other byte
order, the same decoder keeps the low byte. Two decodings are the whole sample, exactly, with Pillow's own checks for damage.
"""

import io
import sys
import zlib

import numpy as np
from PIL import Image

_LITTLE = sys.byteorder == "little"
# Pillow's "raw mode" that takes the high bytes -> the one that takes the low bytes. N is the machine's own order.
_LOW = {f"{mode};16{a}": f"{mode};16{b}" for mode in ("RGB", "RGBA", "RGBX") for a, b in ("BL", "LB")}
_LOW |= {f"{mode};16N": f"{mode};16{'B' if _LITTLE else 'L'}" for mode in ("RGB", "RGBA", "RGBX")}
_GREY_ALPHA, _ALL_FOUR = "LA;16B", "RGBA"  # two samples of two bytes are four bytes
_BLOCK = 2**23  # bytes of samples that are filtered and compressed at once


def is_grey_alpha(image: Image.Image) -> bool:
    """Whether an image, not yet loaded, is a PNG of 16-bit grey with alpha, which Pillow calls RGBA."""
    return _raw_modes(image) == {_GREY_ALPHA}


def set_low(image: Image.Image) -> bool:
    """Make an image that is not yet loaded decode to the low bytes of its samples; False if that cannot be done.

    For `is_grey_alpha` the channels become high and low byte of grey, high and low byte of alpha.
    """
    tiles = []
    for tile in image.tile:  # type: ignore[attr-defined]
        raw = tile.args if isinstance(tile.args, str) else tile.args[0]
        low = _ALL_FOUR if raw == _GREY_ALPHA else _LOW.get(raw)
        if low is None:
            return False
        tiles.append(tile._replace(args=low if isinstance(tile.args, str) else (low, *tile.args[1:])))
    image.tile = tiles  # type: ignore[attr-defined]
    return bool(tiles)


def _raw_modes(image: Image.Image) -> set[str]:
    return {t.args if isinstance(t.args, str) else t.args[0] for t in image.tile}  # type: ignore[attr-defined]


def join(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """uint8 high and low bytes -> uint16."""
    return (high.astype(np.uint16) << 8) | low


def encode_png(samples: np.ndarray, dressed: bytes) -> io.BytesIO:
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
