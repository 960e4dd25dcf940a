"""Every kind of file in, every kind of file out, and one clear sentence for each file that is no good."""

import errno
import os
import re
import struct
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, features

from samdiffsr.errors import ImageError
from samdiffsr.images import MAX_PIXELS, read_image
from support import ALPHA, GREY, RGB, SRGB, WIDE, png, png_chunk, posix, scanlines

RNG = np.random.default_rng(7)


def refused(path: Path, words: str, **options: int) -> str:
    """The message of the ImageError: one sentence, naming the file, and the same before decoding where possible."""
    with pytest.raises(ImageError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert re.search(words, message), message
    assert f"'{path}'" in message and message.endswith(".") and "\n" not in message
    assert not re.search(r"\.\s+[A-Z]", message), f"more than one sentence: {message}"
    return message


# --- what comes in ---------------------------------------------------------------------------------------------------


def test_rgb_is_read_exactly(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert (picture.alpha, picture.grey, picture.icc, picture.notes) == (None, False, None, ())


def test_rgba_keeps_colour_and_alpha_apart(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([RGB, ALPHA])).save(tmp_path / "a.png")
    picture = read_image(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(picture.rgb, RGB)
    np.testing.assert_array_equal(picture.alpha, ALPHA)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_modes(tmp_path: Path, mode: str) -> None:
    pixels = np.where(GREY > 127, 255, 0).astype(np.uint8) if mode == "1" else GREY
    image = Image.fromarray(pixels)
    if mode == "LA":
        image.putalpha(Image.fromarray(ALPHA))
    image.convert(mode).save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png")
    assert picture.grey
    np.testing.assert_array_equal(picture.rgb, np.dstack([pixels] * 3))
    assert (picture.alpha is not None) == (mode == "LA")
    if picture.alpha is not None:
        np.testing.assert_array_equal(picture.alpha, ALPHA)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(tmp_path: Path, transparent: bool) -> None:
    index = RNG.integers(0, 3, (5, 7), dtype=np.uint8)
    colours = np.array([[9, 8, 7], [200, 100, 50], [0, 0, 255]], dtype=np.uint8)
    opacity = np.array([0, 128, 255], dtype=np.uint8)
    image = Image.fromarray(index, mode="P")
    image.putpalette(colours.tobytes())
    options: dict[str, Any] = {"transparency": opacity.tobytes()} if transparent else {}
    image.save(tmp_path / "a.png", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.rgb, colours[index])
    assert not picture.grey and picture.notes == ()
    if transparent:
        np.testing.assert_array_equal(picture.alpha, opacity[index])
    else:
        assert picture.alpha is None


def test_transparent_colour_of_a_grey_png_becomes_alpha(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png", transparency=int(GREY[2, 3]))
    picture = read_image(tmp_path / "a.png")
    assert picture.grey
    np.testing.assert_array_equal(picture.rgb[..., 1], GREY)
    np.testing.assert_array_equal(picture.alpha, np.where(GREY[2, 3] == GREY, 0, 255))


def test_cmyk_without_profile_is_converted_plainly(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("CMYK")
    image.save(tmp_path / "a.tif")
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.rgb, np.array(image.convert("RGB")))
    assert picture.icc is None and picture.notes == ("CMYK without a colour profile, converted plainly",)


def cmyk_profile() -> bytes:
    """A small but valid output profile (ICC v2, one lut8): no ink is white, black ink black, any other a strong green."""
    ramp = bytes(range(256))
    white, black, green = [255, 128, 128], [0, 128, 128], [128, 60, 190]  # 8-bit Lab
    corners = b"".join(bytes(white if i == 0 else black if i % 2 else green) for i in range(16))  # K varies fastest
    identity = b"".join(struct.pack(">i", int(65536 * (i % 4 == 0))) for i in range(9))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + corners + ramp * 3
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78
    point = b"XYZ \0\0\0\0" + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    body, table = b"", b""
    for name, content in ((b"desc", text), (b"A2B0", lut), (b"wtpt", point)):
        table += name + struct.pack(">II", 128 + 4 + 36 + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    size = struct.pack(">I", 128 + 4 + len(table) + len(body))
    head = size + b"\0\0\0\0\x02\x20\0\0prtrCMYKLab " + b"\0" * 12 + b"acsp" + b"\0" * 28
    head += struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + struct.pack(">I", 3) + table + body


def test_cmyk_goes_through_its_own_profile(tmp_path: Path) -> None:
    inks = np.zeros((4, 6, 4), dtype=np.uint8)
    inks[:, 3:, 0] = 255  # right half: full cyan, which this profile calls green
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.tif", icc_profile=cmyk_profile())
    picture = read_image(tmp_path / "a.tif")
    assert picture.notes == ()
    assert picture.rgb[:, :3].min() >= 250  # paper stays white
    red, green, blue = picture.rgb[0, 5].astype(int)
    assert green > 100 and red < 60 and blue < 60  # plain conversion would give (0, 255, 255)
    assert picture.icc is None  # it described the inks


def test_cmyk_with_a_broken_profile_says_so(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.tif", icc_profile=b"nonsense" * 30)
    picture = read_image(tmp_path / "a.tif")
    assert any("profile" in note for note in picture.notes) and picture.icc is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "webp", "tif"])
def test_orientation_is_applied(tmp_path: Path, orientation: int, extension: str) -> None:
    # EXIF: which side of the upright picture the stored row 0 and column 0 are, in the words of the standard
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, 1),  # row 0 is the right side: turning it clockwise makes it upright
        7: RGB[::-1, ::-1].transpose(1, 0, 2),  # row 0 is the right side, column 0 the bottom
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{extension}", exif=exif, lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{extension}").rgb, RGB)


def test_alpha_turns_with_its_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.ascontiguousarray(np.rot90(np.dstack([RGB, ALPHA])))
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").alpha, ALPHA)


@pytest.mark.parametrize("kind", ["png", "big-endian tif", "little-endian tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "png":
        path.write_bytes(png(7, 5, 16, 0, scanlines(WIDE[..., 0])))
    else:
        tifffile.imwrite(path, WIDE[..., 0], byteorder=">" if kind.startswith("big") else "<")
    picture = read_image(path)
    assert picture.grey and picture.notes == ("16-bit pixels reduced to 8 bit",)
    np.testing.assert_array_equal(picture.rgb[..., 2], np.round(WIDE[..., 0] / 257.0))


@pytest.mark.parametrize(("channels", "colour"), [(3, 2), (4, 6), (2, 4)])
def test_16_bit_colour_png_is_noticed(tmp_path: Path, channels: int, colour: int) -> None:
    """Pillow opens these as 8 bit without a word."""
    path = tmp_path / "a.png"
    path.write_bytes(png(7, 5, 16, colour, scanlines(WIDE[..., :channels])))
    picture = read_image(path)
    assert picture.notes == ("16-bit pixels reduced to 8 bit",)
    assert np.abs(picture.rgb[..., 0] - WIDE[..., 0] / 257.0).max() <= 1
    if channels == 3:
        assert picture.alpha is None
    else:
        assert picture.alpha is not None
        assert np.abs(picture.alpha - WIDE[..., channels - 1] / 257.0).max() <= 1


def test_16_bit_colour_tiff_is_noticed(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", WIDE[..., :3], photometric="rgb")
    picture = read_image(tmp_path / "a.tif")
    assert picture.notes == ("16-bit pixels reduced to 8 bit",)
    assert np.abs(picture.rgb - WIDE[..., :3] / 257.0).max() <= 1


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_transparent_colour_of_a_16_bit_png(tmp_path: Path, colour: int, channels: int) -> None:
    key = [int(value) for value in WIDE[3, 4, :channels]]
    extra = png_chunk(b"tRNS", struct.pack(f">{channels}H", *key))
    (tmp_path / "a.png").write_bytes(png(7, 5, 16, colour, scanlines(WIDE[..., :channels]), extra))
    alpha = read_image(tmp_path / "a.png").alpha
    expected = np.full((5, 7), 255)
    expected[3, 4] = 0
    np.testing.assert_array_equal(alpha, expected)


def test_float_pixels_between_0_and_1(tmp_path: Path) -> None:
    values = RNG.integers(0, 4096, (5, 7)) / 4096.0  # exact in float32, and no 255 * value is half way
    tifffile.imwrite(tmp_path / "a.tif", values.astype(np.float32))
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.rgb[..., 0], np.round(values * 255))
    assert picture.notes == ("32-bit pixels reduced to 8 bit",)


@pytest.mark.parametrize("worst", [1.5, -0.1, np.nan])
def test_float_pixels_outside_are_not_guessed(tmp_path: Path, worst: float) -> None:
    values = np.zeros((5, 7), dtype=np.float32)
    values[2, 2] = worst
    tifffile.imwrite(tmp_path / "a.tif", values)
    refused(tmp_path / "a.tif", "outside 0 to 1")


def test_profile_is_kept(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", icc_profile=SRGB)
    assert read_image(tmp_path / "a.jpg").icc == SRGB


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tif"])
def test_first_frame_of_an_animation(tmp_path: Path, extension: str) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime")]
    options: dict[str, Any] = {"lossless": True} if extension == "webp" else {}
    frames[0].save(tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:], **options)
    picture = read_image(tmp_path / f"a.{extension}")
    assert picture.notes == ("several frames, only the first is used",)
    assert (picture.rgb == (255, 0, 0)).all()


def test_smallest_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").rgb.tolist() == [[[1, 2, 3]]]


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg").rgb, RGB)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "a.png", "does not exist")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "a.png", "does not exist")


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    refused(tmp_path / "a.png", "is a folder")


def test_device(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("/dev/zero")
    refused(tmp_path / "a.png", "not a regular file")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    refused(tmp_path / "a.png", r"is empty \(0 bytes\); copy")


@pytest.mark.parametrize("content", [b"Dear diary,\n" * 50, b"x", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PN"])
def test_text_renamed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", "not an image")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif", "bmp", "gif"])
def test_truncated(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(
        path, "is incomplete, for it ends before the picture in it does; wait until it is written, or copy it again"
    )


def test_corrupt_png(tmp_path: Path) -> None:
    content = bytearray(png(7, 5, 8, 2, scanlines(RGB)))
    content[60] ^= 255
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", r"is damaged \(.*\); copy or export it again")


def test_damaged_jpeg2000_is_not_even_tried(tmp_path: Path) -> None:
    """openjpeg ends the process on some of these, so the format must stay out of the list."""
    Image.fromarray(RGB).save(tmp_path / "a.jp2")
    refused(tmp_path / "a.jp2", "not an image")


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    refused(tmp_path / "a.png", "Permission denied")


def test_permission_denied_as_seen_by_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    refused(tmp_path / "a.png", "Cannot read .*Permission denied; check")


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_zero_size(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(png(*size, 8, 2, b""))
    refused(tmp_path / "a.png", "nothing in it|header is damaged")


def test_unsupported_colour_mode(tmp_path: Path) -> None:
    Image.fromarray(RGB, mode="LAB").save(tmp_path / "a.tif")
    refused(tmp_path / "a.tif", "colour mode LAB")


@pytest.mark.parametrize("side", [9_000, 50_000, 2_000_000])  # below, between and above Pillow's own two limits
def test_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png(side, side, 8, 2, b""))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's bomb warning must not come out
        message = refused(tmp_path / "a.png", "--max-pixels")
    assert f"{side}x{side} = {side * side} pixels" in message and str(MAX_PIXELS) in message


def test_limit_is_an_argument(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=35).rgb.shape == (5, 7, 3)
    refused(tmp_path / "a.png", "limit of 34", max_pixels=34)


def test_pillows_own_limit_yields_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow alone would refuse 35 pixels
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").rgb.shape == (5, 7, 3)
        (tmp_path / "b.png").write_bytes(b"no image")
        refused(tmp_path / "b.png", "not an image")
    assert Image.MAX_IMAGE_PIXELS == 10


def test_pillows_warnings_become_notes(tmp_path: Path) -> None:
    exif = b"II*\0\x08\0\0\0\xff\xff"  # promises 65535 entries
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = read_image(tmp_path / "a.jpg")
    assert any("EXIF" in note for note in picture.notes)


def test_warnings_of_other_threads_are_not_this_pictures() -> None:
    from samdiffsr.images.reading import _warnings_of_this_thread

    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with _warnings_of_this_thread() as heard:
            other = threading.Thread(target=warnings.warn, args=("theirs",))
            other.start()
            other.join()
            warnings.warn("mine", stacklevel=1)
    assert heard == ["mine"] and [str(warning.message) for warning in others] == ["theirs"]


def test_a_pillow_without_avif_reads_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").rgb, RGB)
    (tmp_path / "b.png").write_text("no image")
    refused(tmp_path / "b.png", "not an image")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), (10, 200, 30)).save(tmp_path / "a.avif", quality=100)
    picture = read_image(tmp_path / "a.avif")
    assert picture.rgb.shape == (6, 8, 3) and np.abs(picture.rgb.astype(int) - (10, 200, 30)).max() <= 4
