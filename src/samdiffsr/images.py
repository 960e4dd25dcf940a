"""Read and write picture files: whatever Pillow opens comes in as 8-bit RGB, and leaves as the kind of picture it was.

The border of the package: inside there is only float RGB in [-1, 1]; palettes, grey, alpha, CMYK, 16 bit, colour
profiles and camera orientation end here.
"""

import contextlib
import errno
import io
import os
import secrets
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from samdiffsr.errors import ImageError

MAX_PIXELS = 64_000_000
"""Largest input accepted unless the caller says otherwise; 16 times as many pixels come out."""

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

READABLE = frozenset(WRITABLE) | {".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif"}
"""Extensions that make a file in a folder count as an image. (What a file *is* is decided by its content.)"""

# A fixed list: Pillow's full one would run Ghostscript on an EPS, let an ICO hide a larger image in a small one, and
# end the whole process on a damaged JPEG 2000 (an assertion in openjpeg 2.5.4; met while fuzzing).
_DECODERS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "AVIF")
_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
_SAVE: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},  # 4:4:4
    "WEBP": {"lossless": True, "exact": True},  # lossy WebP is 4:2:0 only; exact keeps the colour under alpha 0
    "TIFF": {"compression": "tiff_deflate"},
    "BMP": {},
}
_TURN = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BROKEN = (
    # what Pillow's decoders were seen to raise on damaged files (fuzzed); OSError comes last, see _opened
    *(SyntaxError, ValueError, EOFError, struct.error, zlib.error, RuntimeError, IndexError),
)
_pillow_limit = threading.Lock()


@dataclass(frozen=True, eq=False)
class Picture:
    """One upright picture.

    Attributes:
        rgb: uint8 (H, W, 3), H and W at least 1. Not linear: whatever colour space `icc` says, sRGB without one.
        alpha: uint8 (H, W), not premultiplied; None when the source had none.
        grey: the source was greyscale; written as L (or LA).
        icc: colour profile of `rgb`, kept on writing where the format can hold it.
        notes: what reading changed beyond an exact conversion, in words for the user.

    Raises:
        ImageError: when shapes or dtypes differ from the above.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    icc: bytes | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rgb, alpha = self.rgb, self.alpha
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or min(rgb.shape) < 1:
            raise ImageError(f"A picture needs uint8 pixels of shape (H, W, 3), got {rgb.dtype} {rgb.shape}.")
        if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != rgb.shape[:2]):
            raise ImageError(f"Alpha must be uint8 of shape {rgb.shape[:2]}, got {alpha.dtype} {alpha.shape}.")


@dataclass(frozen=True)
class Header:
    """What a file says about its picture before anything is decoded. Sizes are as stored, before EXIF orientation."""

    height: int
    width: int
    alpha: bool


def peek(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read only the header; ImageError under the same conditions as `read_image`, except damage further inside."""
    with _opened(Path(path), max_pixels) as (image, _):
        return Header(image.height, image.width, image.has_transparency_data)


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read the first frame of an image file, upright, as 8-bit RGB.

    CMYK is converted through its colour profile to sRGB (plainly if there is none). More than 8 bits are scaled down,
    floating-point pixels must lie in [0, 1]; both leave a note.

    Args:
        path: any PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, TGA or AVIF file; the name does not matter.
        max_pixels: width times height above which the file is refused before it is decoded.

    Raises:
        ImageError: missing, a folder, empty, not an image, damaged, unreadable, too large or of an unknown colour mode.
    """
    path = Path(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _opened(path, max_pixels) as (image, bits):
            picture = _decode(image, bits, path)
    words = tuple(f"while reading: {' '.join(str(warning.message).split()).rstrip('.')}" for warning in caught)
    return replace(picture, notes=picture.notes + tuple(dict.fromkeys(words)))


def _decode(image: Image.Image, bits: int, path: Path) -> Picture:
    notes = []
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a phone's JPEG with a preview
        notes.append("several frames, only the first is used")
    if bits > 8:
        notes.append(f"{bits}-bit pixels reduced to 8 bit")
    icc = image.info.get("icc_profile") or None
    image.load()
    upright = _turned(image)
    alpha, grey = None, False
    if image.mode == "CMYK":
        colour, icc = _from_cmyk(upright, icc, notes), None
    elif image.mode[0] in "IF":
        grey = True
        colour, alpha = _from_wide(upright, image.info.get("transparency"), bits, path)
    else:
        grey = image.mode in ("1", "L", "LA", "La")
        colour, alpha = _from_bytes(upright, bits, path)
    rgb = np.array(colour.convert("RGB"))
    return Picture(rgb, None if alpha is None else np.array(alpha), grey, icc, tuple(notes))


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


def write_image(picture: Picture, path: str | os.PathLike[str]) -> None:
    """Write `picture` in the format its extension names: JPEG at quality 95 with 4:4:4 colour, everything else lossless.

    The file appears whole or not at all: it is written beside its place under a temporary name, then moved over
    whatever is there. BMP holds no colour profile; a grey profile is left out of a WebP, which is always RGB.

    Raises:
        ImageError: unknown extension, transparency in a format without, missing folder, no permission, disk full.
    """
    path = Path(path)
    height, width = picture.rgb.shape[:2]
    format_ = check_target(path, height=height, width=width, alpha=picture.alpha is not None)
    image = Image.fromarray(picture.rgb)
    if picture.grey:
        image = image.convert("L")
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
    options = dict(_SAVE[format_])
    if picture.icc and not (format_ == "WEBP" and picture.icc[16:20] == b"GRAY"):
        options["icc_profile"] = picture.icc
    # Through memory, because Pillow's own file writing turns a full disk into "encoder error -2".
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=format_, **options)
    except (OSError, ValueError) as error:
        raise ImageError(f"Cannot write '{path}': {_reason(error)}; try .png.") from error
    write_whole(buffer.getbuffer(), path)


def write_whole(content: bytes | memoryview, path: Path) -> None:
    """Write `content` to a temporary file in the folder of `path`, then move it there; nothing is left on failure.

    Raises:
        ImageError: no such folder, no permission, disk full.
    """
    temporary = path.parent / f".samdiffsr-{secrets.token_hex(8)}.tmp"  # short: the final name may have 255 bytes
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(content)
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C as well
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except FileNotFoundError as error:
        raise ImageError(f"Cannot write '{path}': the folder '{path.parent}' does not exist; make it first.") from error
    except OSError as error:
        advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another output"
        raise ImageError(f"Cannot write '{path}': {_reason(error)}; {advice}.") from error


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[tuple[Image.Image, int]]:
    """The image, its pixels not yet decoded, and its bits per sample. Every failure in the body becomes an ImageError."""
    try:
        with _regular_file(path) as file:
            head = file.read(26)
            image = _identify(path, file, max_pixels)
            with image:
                yield image, _bits(image, head)
    except UnidentifiedImageError as error:
        known = "PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, TGA, AVIF"
        raise ImageError(f"'{path}' is not an image, or its header is damaged; give one of {known}.") from error
    except OSError as error:
        if error.errno is None:
            raise _damaged(path, error) from error
        raise ImageError(f"Cannot read '{path}': {_reason(error)}; check the file and its permissions.") from error
    except _BROKEN as error:
        raise _damaged(path, error) from error


def _regular_file(path: Path) -> BinaryIO:
    """Open a file that exists, is no folder or device, and is not empty."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"'{path}' does not exist; check the name.") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"'{path}' is a folder, not an image; give a file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"'{path}' is not a regular file; give an image file.")
    if status.st_size == 0:
        raise ImageError(f"'{path}' is empty (0 bytes); copy or export it again.")
    return open(path, "rb")


def _identify(path: Path, file: BinaryIO, max_pixels: int) -> Image.Image:
    """Let Pillow read the header, and refuse sizes outside 1..max_pixels before anything is decoded."""
    file.seek(0)
    with _pillow_limit:  # Pillow's own limit is global; ours, an argument, takes its place for this one call
        saved, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=_DECODERS)
        finally:
            Image.MAX_IMAGE_PIXELS = saved
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"'{path}' is {width}x{height} pixels, so there is nothing in it; export it again.")
    if width * height > max_pixels:
        size, limit = f"{width}x{height} = {width * height} pixels", f"limit of {max_pixels}"
        raise ImageError(f"'{path}' has {size}, above the {limit}; raise it with --max-pixels if you trust the file.")
    return image


def _bits(image: Image.Image, head: bytes) -> int:
    """Bits per sample in the file; Pillow itself opens 16-bit RGB as 8 bit without a word."""
    if image.format == "PNG":
        return head[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]  # BitsPerSample
    if image.mode[0] == "F":
        return 32
    return 16 if image.mode[0] == "I" else 8


def _turned(image: Image.Image) -> Image.Image:
    """The image as the camera's orientation tag wants it. To be called after load(): Pillow turns TIFFs there itself."""
    turn = _TURN.get(image.getexif().get(0x0112, 1))
    return image if turn is None else image.transpose(turn)


def _from_bytes(image: Image.Image, bits: int, path: Path) -> tuple[Image.Image, Image.Image | None]:
    """Colour and alpha of a picture with 8 bits or fewer a sample."""
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"):
        raise ImageError(f"'{path}' has the colour mode {image.mode}, which is not supported; convert it to RGB.")
    if not image.has_transparency_data:
        return image, None
    key = image.info.get("transparency")
    if bits > 8 and isinstance(key, tuple):  # Pillow has cut the pixels to their high bytes, but not this colour
        image.info["transparency"] = tuple(value >> 8 for value in key)
    image = image.convert("RGBA")
    return image, image.getchannel("A")


def _from_wide(
    image: Image.Image, transparent: int | None, bits: int, path: Path
) -> tuple[Image.Image, Image.Image | None]:
    """Colour and alpha of a greyscale picture of 12, 16 or 32 bits (Pillow modes I;16, I, F).

    Integers span 0..65535 (0..4095 when the file says 12 bits), floats 0..1; rounded to the nearest of 256 levels.
    """
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 4095.0 if bits == 12 else 65535.0
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # also true for NaN
        span = f"from {low:g} to {high:g}"
        raise ImageError(f"'{path}' has pixel values {span}, outside 0 to {top:g}; scale it or export it as 8 bit.")
    colour = Image.fromarray(np.floor(values * (255.0 / top) + 0.5).astype(np.uint8))
    if transparent is None:
        return colour, None
    return colour, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))


def _from_cmyk(image: Image.Image, icc: bytes | None, notes: list[str]) -> Image.Image:
    """CMYK to sRGB, through the picture's own profile where it has a usable one."""
    if icc:
        from PIL import ImageCms

        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            out = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError) as error:
            notes.append(f"CMYK profile not usable ({_reason(error)}), converted plainly")
        else:
            assert out is not None  # None only with inPlace=True
            return out
    return image.convert("RGB")


def _damaged(path: Path, error: BaseException) -> ImageError:
    return ImageError(f"'{path}' is damaged or cut short ({_reason(error)}); copy or export it again.")


def _reason(error: BaseException) -> str:
    """The system's or Pillow's words as one line without a final stop."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return " ".join(words.split()).rstrip(".")
