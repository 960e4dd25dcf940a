"""Read a picture file: whatever Pillow or a decoder of `foreign` opens comes in as upright RGB, 8 or 16 bits a sample.

The border of the package: palettes, grey, CMYK, high depths, camera orientation and damaged files end here.

16-bit colour: Pillow opens it as 8 bit and keeps the high byte of each sample. If the samples are declared to have the other
byte order, the same decoder keeps the low byte. Two decodings together are the whole sample, exactly, with Pillow's own checks
for damage.
"""

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from samdiffsr.errors import ImageError
from samdiffsr.images.animation import is_moving, read_frames
from samdiffsr.images.avif import avif_bits, deep_pixels
from samdiffsr.images.foreign import Foreign, foreign_format
from samdiffsr.images.formats import MAX_PIXELS, load_package
from samdiffsr.images.metadata import read_metadata, reason
from samdiffsr.images.picture import Picture, to_16_bit
from samdiffsr.images.source import File, check_size, failures, unchanged

# A fixed list: Pillow's full one would run Ghostscript on an EPS, let an ICO hide a larger image in a small one, and
# end the whole process on a damaged JPEG 2000 (an assertion in openjpeg 2.5.4; met while fuzzing).
_DECODERS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "AVIF")
_TURN = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BYTE_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")
_FIRST_ONLY = "several frames, only the first is used"
_SRGB_GAMMA = 0.45455
_PLANAR = 284  # TIFF's PlanarConfiguration; 1 is pixel after pixel
_PHOTOMETRIC = 262  # TIFF's PhotometricInterpretation; 0 says that white is zero
_LITTLE = sys.byteorder == "little"
# Pillow's "raw mode" that takes the high bytes -> the one that takes the low bytes. N is the machine's own order.
_LOW = {f"{mode};16{a}": f"{mode};16{b}" for mode in ("RGB", "RGBA", "RGBX") for a, b in ("BL", "LB")}
_LOW |= {f"{mode};16N": f"{mode};16{'B' if _LITTLE else 'L'}" for mode in ("RGB", "RGBA", "RGBX")}
_GREY_ALPHA, _ALL_FOUR = "LA;16B", "RGBA"  # two samples of two bytes are four bytes
_pillow_limit = threading.Lock()


def read_image(
    path: str | os.PathLike[str],
    *,
    content: bytes | None = None,
    keep_16_bit: bool = False,
    all_frames: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Picture:
    """Read the first frame of an image file, upright.

    CMYK is converted to 8-bit sRGB through its colour profile (plainly if there is none, with a note). Whatever is lost
    leaves a note.

    Args:
        path: any PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, TGA or AVIF file, with their extras also HEIC, JPEG XL and camera
            raw; the name matters for camera raw only.
        content: of the file, if it is in memory already; then `path` is only its name in messages, and is not opened.
        keep_16_bit: a file with more than 8 bits a sample becomes 16 bit: PNG and TIFF of 16 bits exactly, 12 bits scaled,
            floats from [0, 1]; AVIF of 10 and 12 bits where PyAV (extra `video`) is installed. Without it everything
            becomes 8 bit, with a note.
        all_frames: keep those of a moving GIF, WebP or APNG of 8 bits, see `Picture.animation`.
        max_pixels: width times height above which the file is refused before it is decoded.

    Raises:
        ImageError: missing, a folder, empty, damaged, unreadable, changed meanwhile, of an unknown colour mode or of a format
            whose extra is not installed; UnknownFormatError: not an
            image; TooLargeError: more pixels.
    """
    file = File(Path(path), content)
    with unchanged(file), _warnings_of_this_thread() as heard:
        foreign = _foreign(file)
        if foreign is not None:
            picture = _read_foreign(foreign, file, keep_16_bit, max_pixels)
        else:
            with _opened(file, max_pixels) as (image, bits):
                picture = _decode(image, bits, keep_16_bit, file)
                if all_frames and bits <= 8 and is_moving(image):
                    picture = replace(picture, notes=tuple(note for note in picture.notes if note != _FIRST_ONLY))
                    picture = read_frames(image, picture, max_pixels, file.path)
    words = tuple(f"while reading: {' '.join(warning.split()).rstrip('.')}" for warning in heard)
    return replace(picture, notes=picture.notes + tuple(dict.fromkeys(words)))


def image_size(
    path: str | os.PathLike[str], *, content: bytes | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Width and height by the header alone, as stored: the camera's orientation may swap them. `content`: see `read_image`.

    Raises:
        ImageError: as `read_image`, but for damaged pixels.
    """
    file = File(Path(path), content)
    foreign = _foreign(file)
    if foreign is not None:
        with failures(file):
            return _foreign_size(foreign, file.read(), file.path, max_pixels)
    with _warnings_of_this_thread(), _opened(file, max_pixels) as (image, _):
        return image.size


def _decode(image: Image.Image, bits: int, keep_16_bit: bool, file: File) -> Picture:
    path, notes = file.path, []
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a phone's JPEG with a preview
        notes.append(_FIRST_ONLY)
    icc = image.info.get("icc_profile") or None
    if bits > 8 and image.format == "TIFF" and image.tag_v2.get(_PLANAR) == 2:  # type: ignore[attr-defined]
        # Pillow reads some of these as noise
        raise ImageError(f"'{path}' is a {bits}-bit TIFF that stores its channels apart; convert it to PNG.")
    low = _low_bytes(image, file) if keep_16_bit and bits > 8 and image.mode in ("RGB", "RGBA") else None
    grey_alpha = low is not None and _is_grey_alpha(image)
    image.load()
    metadata, orientation = read_metadata(image, notes)
    turn = _TURN.get(orientation)  # after load(): Pillow turns a TIFF there itself

    def upright(one: Image.Image) -> Image.Image:
        return one if turn is None else one.transpose(turn)

    alpha, grey = None, False
    if image.mode == "CMYK":
        rgb, icc = _from_cmyk(upright(image), icc, notes), None
    elif image.mode[0] in "IF":
        grey = True
        rgb, alpha = _from_wide_grey(upright(image), image.info.get("transparency"), bits, path)
        if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0:  # type: ignore[attr-defined]
            rgb = 65_535 - rgb  # Pillow turns 8 bits a sample about, but not 16 bits and floats
    elif low is not None:
        grey = grey_alpha
        rgb, alpha = _from_16_bit(upright(image), upright(low), grey_alpha)
    else:
        grey = image.mode in ("1", "L", "LA", "La")
        rgb, alpha = _from_8_bit(upright(image), bits, path)
        if image.format == "AVIF" and bits > 8 and keep_16_bit:
            rgb, alpha = _from_deep_avif(image, upright, file, rgb, alpha)
    gamma = image.info.get("gamma")
    if icc is None and gamma and "srgb" not in image.info and abs(gamma - _SRGB_GAMMA) > 0.01:
        notes.append(f"its gamma of {gamma:.5g} is ignored, sRGB is assumed")
    picture = Picture(rgb, alpha, grey, icc, metadata)
    picture = picture if keep_16_bit else picture.in_8_bit()
    if bits > picture.depth:
        notes.append(f"{bits}-bit pixels reduced to {picture.depth} bit")
    return replace(picture, notes=tuple(notes))


@contextlib.contextmanager
def _warnings_of_this_thread() -> Iterator[list[str]]:
    """Collect what Pillow warns of in this thread; the warnings of other threads go where they went before."""
    here, heard = threading.get_ident(), []
    with warnings.catch_warnings():
        onward = warnings.showwarning

        def show(message: Warning | str, *rest: object, **more: object) -> None:
            if threading.get_ident() == here:
                heard.append(str(message))
            else:
                onward(message, *rest, **more)  # type: ignore[arg-type]

        warnings.filterwarnings("always", module=r"PIL\b")
        warnings.showwarning = show  # type: ignore[assignment]
        yield heard


@contextlib.contextmanager
def _opened(source: File, max_pixels: int) -> Iterator[tuple[Image.Image, int]]:
    """The image, its pixels not yet decoded, and its bits per sample. Every failure in the body becomes an ImageError."""
    with failures(source), source.open() as file:
        head = file.read(26)
        image = _identify(source.path, file, max_pixels)
        with image:
            if image.format == "AVIF":
                file.seek(0)
                yield image, avif_bits(file.read())
            else:
                yield image, _bits(image, head)


def _foreign(file: File) -> Foreign | None:
    """The format, if it is none of Pillow's."""
    with failures(file), file.open() as opened:
        return foreign_format(opened.read(64), file.path.suffix)


def _foreign_size(foreign: Foreign, content: bytes, path: Path, max_pixels: int) -> tuple[int, int]:
    """Width and height as stored; TooLargeError before anything is decoded."""
    load_package(foreign.package, foreign.extra, path)
    width, height = foreign.size(content)
    check_size(path, width, height, max_pixels)
    return width, height


def _read_foreign(foreign: Foreign, file: File, keep_16_bit: bool, max_pixels: int) -> Picture:
    with failures(file):
        content = file.read()
        _foreign_size(foreign, content, file.path, max_pixels)
        decoded = foreign.decode(content)
        if isinstance(decoded, bytes):  # a JPEG in a JPEG XL: the same pixels as from the JPEG
            return read_image(file.path, content=decoded, keep_16_bit=keep_16_bit, max_pixels=max_pixels)
        notes = list(decoded.notes)
        described = Image.new("L", (1, 1))  # what reads metadata takes an image of Pillow
        described.info = {"exif": decoded.exif or b"", "xmp": decoded.xmp}
        metadata, _ = read_metadata(described, notes)
        channels = decoded.samples.shape[2]
        alpha = np.ascontiguousarray(decoded.samples[..., -1]) if channels in (2, 4) else None
        colours = decoded.samples[..., :3] if channels > 2 else np.repeat(decoded.samples[..., :1], 3, axis=2)
        picture = Picture(np.ascontiguousarray(colours), alpha, channels < 3, decoded.icc, metadata)
        picture = picture if keep_16_bit else picture.in_8_bit()
        if decoded.bits > picture.depth:
            notes.append(f"{decoded.bits}-bit pixels reduced to {picture.depth} bit")
        return replace(picture, notes=tuple(notes))


def _identify(path: Path, file: BinaryIO, max_pixels: int) -> Image.Image:
    """Let Pillow read the header, and refuse sizes outside 1..max_pixels before anything is decoded."""
    file.seek(0)
    Image.init()
    known = [name for name in _DECODERS if name in Image.OPEN]  # not every Pillow has AVIF
    with _pillow_limit:  # Pillow's own limit is global; ours, an argument, takes its place for this one call
        saved, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=known)
        finally:
            Image.MAX_IMAGE_PIXELS = saved
    check_size(path, *image.size, max_pixels)
    return image


def _bits(image: Image.Image, head: bytes) -> int:
    """Bits per sample in the file; Pillow itself opens 16-bit RGB as 8 bit without a word."""
    if image.format == "PNG":
        return head[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]  # BitsPerSample
    if image.format == "PPM" and image.mode == "RGB":
        args = image.tile[0].args  # type: ignore[attr-defined]  # the raw mode, with the largest sample if not 255
        return 8 if isinstance(args, str) else max(8, args[1].bit_length())
    if image.mode[0] == "F":
        return 32
    return 16 if image.mode[0] == "I" else 8


def _low_bytes(image: Image.Image, source: File) -> Image.Image | None:
    """The same image, decoded to the low bytes of its 16-bit samples; None if Pillow cannot."""
    with source.open() as file, _identify(source.path, file, image.width * image.height) as second:
        if not _select_low_bytes(second):
            return None
        second.load()
        return second.copy()


def _is_grey_alpha(image: Image.Image) -> bool:
    """Whether an image, not yet loaded, is a PNG of 16-bit grey with alpha, which Pillow calls RGBA."""
    return _raw_modes(image) == {_GREY_ALPHA}


def _select_low_bytes(image: Image.Image) -> bool:
    """Make an image that is not yet loaded decode to the low bytes of its samples; False if that cannot be done.

    For `_is_grey_alpha` the channels become high and low byte of grey, high and low byte of alpha.
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


def _join(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """uint8 high and low bytes -> uint16."""
    return (high.astype(np.uint16) << 8) | low


def _from_16_bit(high: Image.Image, low: Image.Image, grey_alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """uint16 colour and alpha."""
    if grey_alpha:
        four = np.asarray(low)
        grey, alpha = _join(four[..., 0], four[..., 1]), _join(four[..., 2], four[..., 3])
        return np.dstack([grey] * 3), alpha
    samples = _join(np.asarray(high), np.asarray(low))
    if samples.shape[2] == 4:
        return np.ascontiguousarray(samples[..., :3]), np.ascontiguousarray(samples[..., 3])
    key = high.info.get("transparency")
    alpha = None if key is None else np.where((samples == np.array(key)).all(axis=2), 0, 65_535).astype(np.uint16)
    return samples, alpha


def _from_8_bit(image: Image.Image, bits: int, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 colour and alpha of a picture that Pillow holds in 8 bits or fewer a sample."""
    if image.mode not in _BYTE_MODES:
        raise ImageError(f"'{path}' has the colour mode {image.mode}, which is not supported; convert it to RGB.")
    if not image.has_transparency_data:
        return np.array(image.convert("RGB")), None
    key = image.info.get("transparency")
    if bits > 8 and isinstance(key, tuple):  # Pillow has cut the pixels to their high bytes, but not this colour
        image.info["transparency"] = tuple(value >> 8 for value in key)
    four = np.array(image.convert("RGBA"))
    return np.ascontiguousarray(four[..., :3]), np.ascontiguousarray(four[..., 3])


def _from_deep_avif(
    image: Image.Image,
    upright: Callable[[Image.Image], Image.Image],
    file: File,
    rgb: np.ndarray,
    alpha: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """uint16 colour, and alpha of 8 bits in 16; Pillow's 8 bits as they are where no other decoder has more."""
    deep = deep_pixels(file.read(), np.asarray(image.convert("RGB")))
    if deep is None:
        return rgb, alpha
    channels = [np.asarray(upright(Image.fromarray(deep[..., channel]))) for channel in range(3)]
    return np.dstack(channels), None if alpha is None else to_16_bit(alpha)


def _from_wide_grey(
    image: Image.Image, transparent: int | None, bits: int, path: Path
) -> tuple[np.ndarray, np.ndarray | None]:
    """uint16 colour and alpha of a greyscale picture of 12, 16 or 32 bits (Pillow modes I;16, I, F).

    Integers span 0..65535 (0..4095 when the file says 12 bits), floats 0..1; rounded to the nearest of 65536 levels.
    """
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 4095.0 if bits == 12 else 65535.0
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= top):  # also true for NaN
        span = f"from {lowest:g} to {highest:g}"
        raise ImageError(f"'{path}' has pixel values {span}, outside 0 to {top:g}; scale it or export it as 16 bit.")
    grey = np.floor(values * (65535.0 / top) + 0.5).astype(np.uint16)
    alpha = None if transparent is None else np.where(values == transparent, 0, 65_535).astype(np.uint16)
    return np.dstack([grey] * 3), alpha


def _from_cmyk(image: Image.Image, icc: bytes | None, notes: list[str]) -> np.ndarray:
    """CMYK to 8-bit sRGB, through the picture's own profile where it has a usable one."""
    if icc:
        from PIL import ImageCms

        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            out = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError) as error:
            notes.append(f"CMYK profile not usable ({reason(error)}), converted plainly")
        else:
            return np.array(out)
    else:
        notes.append("CMYK without a colour profile, converted plainly")
    return np.array(image.convert("RGB"))
