"""Formats that Pillow does not read: HEIC, JPEG XL and camera raw. Each needs an extra of this package.

Every decoder first gives the size, so that a picture with too many pixels is refused before its pixels are decoded.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samdiffsr.images.formats import RAW

_HEVC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_JXL_STREAM, _JXL_BOXES = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_TIFF = (b"II*\0", b"MM\0*")
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of JPEG XL's header, width to height


@dataclass(frozen=True)
class Decoded:
    """Pixels as a decoder gives them, upright.

    Attributes:
        samples: uint8 or uint16 (H, W, C): grey, grey and alpha, RGB, RGBA.
        bits: a sample in the file.
        exif: with or without its "Exif" mark; its orientation is the decoder's matter and done with.
        notes: what was left out.
    """

    samples: np.ndarray
    bits: int
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Foreign:
    """One such format.

    Attributes:
        label: its name for the user.
        package, extra: the module that decodes it, and the extra of this package that brings it.
        size: content -> width and height as stored.
        decode: content -> pixels. For JPEG XL that was made from a JPEG: the bytes of that JPEG.
    """

    label: str
    package: str
    extra: str
    size: Callable[[bytes], tuple[int, int]] = field(repr=False)
    decode: Callable[[bytes], Decoded | bytes] = field(repr=False)


def foreign_format(head: bytes, extension: str) -> Foreign | None:
    """The format of a file by its first 64 bytes and, for camera raw, its extension; None if it is a matter for Pillow."""
    if head.startswith((_JXL_STREAM, _JXL_BOXES)):
        return _FORMATS["jxl"]
    if head[4:8] == b"ftyp":
        brands = {head[place : place + 4] for place in (8, *range(16, min(len(head), int.from_bytes(head[:4])), 4))}
        if brands & _HEVC or (head[8:12] in (b"mif1", b"msf1") and not brands & {b"avif", b"avis"}):
            return _FORMATS["heif"]
    if extension.lower() in RAW and not head.startswith((b"\xff\xd8", b"\x89PNG")):
        return _FORMATS["raw"]
    return None


def _heif_size(content: bytes) -> tuple[int, int]:
    import pi_heif

    return pi_heif.open_heif(content, convert_hdr_to_8bit=False).size


def _decode_heif(content: bytes) -> Decoded:
    """The main picture. libheif turns it as the container says, so the orientation in EXIF does not count again."""
    import pi_heif

    file = pi_heif.open_heif(content, convert_hdr_to_8bit=False)
    samples = np.array(np.asarray(file))  # without the padding of its rows
    width, height = file.size
    samples = samples.reshape(height, samples.shape[1], -1)[:, :width]
    bits = int(file.info["bit_depth"])
    if samples.dtype == np.uint16:  # pi_heif gives 10 bits as the highest of 16: 1023 would be less than white
        top = 2**bits - 1
        samples = ((samples >> (16 - bits)).astype(np.uint32) * 65_535 + top // 2) // top
        samples = samples.astype(np.uint16)
    if file.premultiplied_alpha:
        samples = _straight(samples)
    notes = ("several pictures, only the main one is used",) if len(file) > 1 else ()
    info = file.info
    return Decoded(samples, bits, info.get("icc_profile"), info.get("exif"), info.get("xmp"), notes)


def _straight(samples: np.ndarray) -> np.ndarray:
    """Colours without the alpha that they were multiplied by."""
    alpha = samples[..., -1:].astype(np.float64)
    top = np.iinfo(samples.dtype).max
    colours = np.where(alpha > 0, samples[..., :-1] * top / np.maximum(alpha, 1), 0)
    return np.concatenate([np.minimum(colours + 0.5, top).astype(samples.dtype), samples[..., -1:]], axis=-1)


def _jxl_size(content: bytes) -> tuple[int, int]:
    """Width and height from the header (ISO/IEC 18181-1, SizeHeader); ImageError if there is none."""
    stream = content if content.startswith(_JXL_STREAM) else _jxl_stream(content)
    bits, place = int.from_bytes(stream[2:16], "little"), 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return bits >> (place - count) & ((1 << count) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height, ratio = side(), take(3)
    if ratio:
        wide, high = _RATIOS[ratio - 1]
        return height * wide // high, height
    return side(), height


def _jxl_stream(content: bytes) -> bytes:
    """The start of the codestream in a file of boxes."""
    place = 0
    while place + 8 <= len(content):
        length, kind, head = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8], 8
        if length == 1:
            length, head = int.from_bytes(content[place + 8 : place + 16]), 16
        if kind in (b"jxlc", b"jxlp"):
            first = place + head + (4 if kind == b"jxlp" else 0)
            return content[first : first + 32]
        if length < head:
            break
        place += length
    raise ValueError("no picture in it")


def _decode_jxl(content: bytes) -> Decoded | bytes:
    """The first frame. The orientation in EXIF does not count: libjxl turns the picture as its own header says."""
    import pillow_jxl

    try:
        is_jpeg, info, data, icc, boxes = pillow_jxl.Decoder(num_threads=1)(content)
    except BaseException as error:  # the decoder is Rust: what it did not foresee is a PanicException
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError("its JPEG XL decoder refuses it") from error
        raise
    if is_jpeg:
        return bytes(data)
    notes = []
    if info.mode[0] == "F":
        values = np.nan_to_num(np.frombuffer(bytes(data), "<f4"))
        if values.min() < 0 or values.max() > 1:
            notes.append("values outside 0 to 1 are cut off")
        samples = (values.clip(0, 1) * 65_535 + 0.5).astype(np.uint16)
    else:
        samples = np.frombuffer(bytes(data), "<u2" if ";16" in info.mode else np.uint8)
    samples = samples.reshape(info.height, info.width, -1)
    found = {bytes(box.box_type): bytes(box.data) for box in boxes}
    exif = found.get(b"Exif")
    if exif is not None and exif[4:8] in _TIFF:
        exif = exif[4:]  # the standard puts an offset before the block
    return Decoded(samples, 8 * samples.itemsize, icc or None, exif, found.get(b"xml "), tuple(notes))


def _raw_size(content: bytes) -> tuple[int, int]:
    with _raw(content) as raw:
        return raw.sizes.width, raw.sizes.height


def _decode_raw(content: bytes) -> Decoded:
    """Demosaiced to 16-bit sRGB with the camera's white balance, turned as the camera was held.

    Nothing brightens it: automatic brightness would clip the lights and depend on the picture.
    """
    import rawpy

    with _raw(content) as raw:
        try:
            samples = raw.postprocess(use_camera_wb=True, output_bps=16, no_auto_bright=True, gamma=(2.4, 12.92))
        except rawpy.LibRawError as error:
            raise ValueError(_words(error)) from error
    exif = content if content[:4] in _TIFF else None
    return Decoded(samples, 16, exif=exif)


def _raw(content: bytes) -> Any:
    import rawpy

    try:
        return rawpy.imread(io.BytesIO(content))
    except rawpy.LibRawError as error:
        raise ValueError(_words(error)) from error


def _words(error: Exception) -> str:
    words = error.args[0] if error.args else ""
    return words.decode(errors="replace") if isinstance(words, bytes) else str(words)


_FORMATS = {
    "heif": Foreign("HEIC", "pi_heif", "heif", _heif_size, _decode_heif),
    "jxl": Foreign("JPEG XL", "pillow_jxl", "jxl", _jxl_size, _decode_jxl),
    "raw": Foreign("camera raw", "rawpy", "raw", _raw_size, _decode_raw),
}
