"""EXIF, XMP and resolution: read, and made true again for the upright and larger picture."""

import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from xml.sax.saxutils import quoteattr

from PIL import Image

from samdiffsr.errors import ImageError
from samdiffsr.images.picture import Metadata

BROKEN = (SyntaxError, ValueError, EOFError, struct.error, zlib.error, RuntimeError, IndexError)
"""Errors that Pillow's decoders were seen to raise on damaged files besides OSError (fuzzed)."""

XMP_TAG = 700  # in a TIFF
_ORIENTATION, _EXIF_IFD, _GPS_IFD, _INTEROP, _MAKER_NOTE = 0x0112, 0x8769, 0x8825, 0xA005, 0x927C
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
# Tags of IFD 0 that describe the picture and not how its pixels are stored: description, maker, model, software, date,
# artist, computer, rating, copyright, and what Windows adds. (The resolution is `Metadata.dpi`.)
_DESCRIPTIVE = frozenset({270, 271, 272, 305, 306, 315, 316, 18246, 18249, 33432, *range(40091, 40096)})
_XMP_WIDTH, _XMP_HEIGHT = (rb"(?:exif:PixelXDimension|tiff:ImageWidth)", rb"(?:exif:PixelYDimension|tiff:ImageLength)")

_RUN_NAMESPACE = "urn:samdiffsr:upscale#"
_EARLIER_RUN = rb'<rdf:Description[^<>]*xmlns:samdiffsr="' + _RUN_NAMESPACE.encode() + rb'"[^<>]*/>'
_XMP_HEAD = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
)
_XMP_TAIL = b'</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'


def read_metadata(image: Image.Image, notes: list[str]) -> tuple[Metadata, int]:
    """All that a loaded image says besides its pixels, and its EXIF orientation (1 to 8).

    Damaged EXIF is left out with a note: the picture itself may be whole.
    """
    try:
        exif = image.getexif()
        orientation = exif.get(_ORIENTATION, 1)
        block = _kept(exif)
    except (*BROKEN, OSError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        notes.append(f"damaged EXIF left out ({type(error).__name__})")
        exif, orientation, block = Image.Exif(), 1, None
    return Metadata(block, _kept_xmp(image.info.get("xmp")), _dpi(image, exif)), orientation


def _kept(exif: Image.Exif) -> bytes | None:
    """The descriptive part of EXIF, re-packed: no orientation, no thumbnail, no offsets into the old file."""
    fresh = Image.Exif()
    for tag in sorted(_DESCRIPTIVE & set(exif)):
        fresh[tag] = exif[tag]
    for tag in (_EXIF_IFD, _GPS_IFD):
        inner = {key: value for key, value in exif.get_ifd(tag).items() if key != _INTEROP}
        if inner:
            fresh[tag] = inner
    return fresh.tobytes() if len(fresh) else None


def _kept_xmp(xmp: Any) -> bytes | None:
    if not isinstance(xmp, bytes) or not xmp.strip(b"\0 "):
        return None
    upright = re.sub(rb"(tiff:Orientation(?:=[\"']|>))\d", rb"\g<1>1", xmp)
    return re.sub(rb"<xmp:Thumbnails>.*?</xmp:Thumbnails>", b"", upright, flags=re.DOTALL)


def _dpi(image: Image.Image, exif: Image.Exif) -> tuple[float, float] | None:
    found: Any = image.info.get("dpi")
    if found is None and exif.get(_RESOLUTION_UNIT) == 2:  # WebP says it in EXIF alone
        found = (exif.get(_X_RESOLUTION), exif.get(_Y_RESOLUTION))
    if found is None:
        return None
    try:
        x, y = (float(value) for value in found)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    sane = all(math.isfinite(value) and 1 <= value <= 65_535 for value in (x, y))
    return (x, y) if sane else None


def sized(metadata: Metadata, height: int, width: int) -> Metadata:
    """The same with the picture's size, wherever EXIF and XMP state it."""
    exif, xmp = metadata.exif, metadata.xmp
    if exif is not None:
        block = load_exif(exif)
        inner = block.get_ifd(_EXIF_IFD)
        if _PIXEL_WIDTH in inner or _PIXEL_HEIGHT in inner:
            block[_EXIF_IFD] = inner | {_PIXEL_WIDTH: width, _PIXEL_HEIGHT: height}
            exif = block.tobytes()
    if xmp is not None:
        for name, value in ((_XMP_WIDTH, width), (_XMP_HEIGHT, height)):
            xmp = re.sub(rb"(" + name + rb"(?:=[\"']|>))\d+", rb"\g<1>" + str(value).encode(), xmp)
    return Metadata(exif, xmp, metadata.dpi)


def with_run(metadata: Metadata, tool: str, values: Mapping[str, object]) -> Metadata:
    """The same with how the picture was made in its XMP: `xmp:CreatorTool`, and each value as `samdiffsr:name`.

    What an earlier run or another tool said there is replaced. XMP without a `</rdf:RDF>` stays as it is.
    """
    said = " ".join(f"samdiffsr:{name}={quoteattr(str(value))}" for name, value in values.items())
    about = (
        f'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:samdiffsr="{_RUN_NAMESPACE}" '
        f"xmp:CreatorTool={quoteattr(tool)} {said}/>"
    ).encode()
    if metadata.xmp is None:
        return replace(metadata, xmp=_XMP_HEAD + about + _XMP_TAIL)
    xmp = re.sub(_EARLIER_RUN, b"", metadata.xmp)
    before, end, after = xmp.rpartition(b"</rdf:RDF>")
    if not end:
        return metadata
    before = re.sub(rb"""\s+xmp:CreatorTool=("[^"]*"|'[^']*')|<xmp:CreatorTool>[^<]*</xmp:CreatorTool>""", b"", before)
    return replace(metadata, xmp=before + about + end + after)


def resolution_in_exif(metadata: Metadata) -> bytes | None:
    """The EXIF block with the resolution in it, for a format that says it nowhere else."""
    if metadata.dpi is None:
        return metadata.exif
    exif = Image.Exif() if metadata.exif is None else load_exif(metadata.exif)
    exif[_X_RESOLUTION], exif[_Y_RESOLUTION], exif[_RESOLUTION_UNIT] = *metadata.dpi, 2
    return exif.tobytes()


def load_exif(block: bytes) -> Image.Exif:
    """A `Metadata.exif` as Pillow's mapping; ImageError if it is none."""
    exif = Image.Exif()
    try:
        exif.load(block)
    except (SyntaxError, ValueError, TypeError) as error:
        raise ImageError(f"Metadata.exif is no EXIF block ({error}); leave it out.") from error
    return exif


def fitting(metadata: Metadata, limit: int, notes: list[str]) -> Metadata:
    """Leave out what has more than `limit` bytes, saying so in `notes`; of EXIF first the maker's own notes."""
    exif, xmp = metadata.exif, metadata.xmp
    if exif is not None and len(exif) > limit:
        block = load_exif(exif)
        block[_EXIF_IFD] = {key: value for key, value in block.get_ifd(_EXIF_IFD).items() if key != _MAKER_NOTE}
        exif = block.tobytes()
        notes.append("EXIF is too long for a JPEG, the maker's notes are left out")
        if len(exif) > limit:
            exif = None
            notes[-1] = "EXIF is too long for a JPEG and left out"
    if xmp is not None and len(xmp) > limit:
        xmp = None
        notes.append("XMP is too long for a JPEG and left out")
    return Metadata(exif, xmp, metadata.dpi)


def reason(error: BaseException) -> str:
    """The system's or Pillow's words as one line without a final stop."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return " ".join(words.split()).rstrip(".")
