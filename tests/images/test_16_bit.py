"""16 bits a sample, in and out, against tifffile and PNGs made by hand."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from samdiffsr.errors import ImageError
from samdiffsr.images import Metadata, Picture, read_image, to_8_bit, to_16_bit, write_image
from support import SRGB, WIDE, png, png_chunk, scanlines

SMOOTH = (np.add.outer(np.arange(0, 9000, 30), np.arange(0, 8000, 25))[..., None] * [1, 2, 3, 3.5]).astype(np.uint16)
KINDS = {1: "grey", 2: "grey and alpha", 3: "rgb", 4: "rgba"}


def parts(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, C) -> rgb, alpha as `Picture` has them."""
    channels = samples.shape[2]
    rgb = np.dstack([samples[..., 0]] * 3) if channels < 3 else samples[..., :3]
    return rgb, samples[..., -1] if channels in (2, 4) else None


def assert_is(picture: Picture, samples: np.ndarray) -> None:
    rgb, alpha = parts(samples)
    assert picture.depth == 16 and picture.notes == () and picture.grey == (samples.shape[2] < 3)
    np.testing.assert_array_equal(picture.rgb, rgb)
    if alpha is None:
        assert picture.alpha is None
    else:
        np.testing.assert_array_equal(picture.alpha, alpha)


@pytest.mark.parametrize("channels", KINDS)
def test_png_is_read_exactly(tmp_path: Path, channels: int) -> None:
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    (tmp_path / "a.png").write_bytes(png(7, 5, 16, colour, scanlines(WIDE[..., :channels])))
    assert_is(read_image(tmp_path / "a.png", keep_16_bit=True), WIDE[..., :channels])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiff_is_read_exactly(
    tmp_path: Path, order: str, compression: str | None, tile: tuple[int, int] | None, channels: int
) -> None:
    samples = SMOOTH[:37, :41, :channels]
    tifffile.imwrite(
        tmp_path / "a.tif",
        samples.squeeze(),
        photometric="minisblack" if channels == 1 else "rgb",
        extrasamples=["unassalpha"] if channels == 4 else None,
        byteorder=order,
        compression=compression,
        tile=tile,
    )
    assert_is(read_image(tmp_path / "a.tif", keep_16_bit=True), samples)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_whose_zero_is_white_is_no_negative(tmp_path: Path, dtype: type, keep: bool) -> None:
    """Pillow turns only 8 bits a sample about."""
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    values = (np.array([[0, 0.25, 0.5, 1]]) * top).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    rgb = read_image(tmp_path / "a.tif", keep_16_bit=keep).rgb
    expected = np.array([1, 0.75, 0.5, 0]) * np.iinfo(rgb.dtype).max
    assert np.abs(rgb[0, :, 1] - expected).max() <= 1


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("most", "bits"), [(65535, 16), (1023, 10), (255, 8), (100, 8)])
@pytest.mark.parametrize("plain", [False, True])
def test_ppm_of_many_bits_is_noticed(tmp_path: Path, plain: bool, most: int, bits: int, keep: bool) -> None:
    """Pillow opens these as 8 bit without a word."""
    samples = [0, most // 2, most]
    head = f"P{3 if plain else 6}\n# {'made by hand ' * 9}\n1 1\n# 8 bit?\n{most}\n".encode()
    body = " ".join(map(str, samples)).encode() if plain else np.array(samples, ">u2" if bits > 8 else "u1").tobytes()
    (tmp_path / "a.ppm").write_bytes(head + body)
    picture = read_image(tmp_path / "a.ppm", keep_16_bit=keep)
    assert picture.notes == ((f"{bits}-bit pixels reduced to 8 bit",) if bits > 8 else ())
    assert np.abs(picture.rgb[0, 0] - [0, 127.5, 255]).max() <= 2


def test_channels_stored_apart_are_refused(tmp_path: Path) -> None:
    """Pillow 12 reads uncompressed ones as noise."""
    samples = np.ascontiguousarray(np.moveaxis(WIDE[..., :3], 2, 0))
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", planarconfig="separate")
    for keep in (False, True):
        with pytest.raises(ImageError, match="stores its channels apart; convert it to PNG"):
            read_image(tmp_path / "a.tif", keep_16_bit=keep)


def test_premultiplied_alpha_is_read_as_8_bit_and_said(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", WIDE, photometric="rgb", extrasamples=["assocalpha"])
    picture = read_image(tmp_path / "a.tif", keep_16_bit=True)
    assert picture.depth == 8 and picture.notes == ("16-bit pixels reduced to 8 bit",)


def test_transparent_colour_counts_all_16_bits(tmp_path: Path) -> None:
    pixels = WIDE[..., :3].copy()
    pixels[1, 1] = pixels[2, 2] ^ 1  # differs in the low bytes alone
    extra = png_chunk(b"tRNS", struct.pack(">3H", *(int(value) for value in pixels[2, 2])))
    (tmp_path / "a.png").write_bytes(png(7, 5, 16, 2, scanlines(pixels), extra))
    picture = read_image(tmp_path / "a.png", keep_16_bit=True)
    np.testing.assert_array_equal(picture.rgb, pixels)
    assert np.argwhere(picture.alpha == 0).tolist() == [[2, 2]]


def test_12_bits_and_floats_fill_16(tmp_path: Path) -> None:
    values = np.array([[0, 0.25, 1]], np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values)
    picture = read_image(tmp_path / "a.tif", keep_16_bit=True)
    assert picture.rgb[0, :, 0].tolist() == [0, 16384, 65535] and picture.notes == ("32-bit pixels reduced to 16 bit",)


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_orientation_turns_both_bytes(tmp_path: Path, extension: str) -> None:
    pixels = np.ascontiguousarray(WIDE[..., :3])
    write_image(Picture(pixels), tmp_path / f"a.{extension}")
    path = tmp_path / f"a.{extension}"
    if extension == "png":
        content, exif = path.read_bytes(), Image.Exif()
        exif[0x0112] = 6
        path.write_bytes(content[:33] + png_chunk(b"eXIf", exif.tobytes()[6:]) + content[33:])
    else:
        tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(read_image(path, keep_16_bit=True).rgb, np.rot90(pixels, -1))


def unfiltered(content: bytes) -> np.ndarray:
    """A plain decoder of the 16-bit PNGs that we write: chunks checked, every row with filter 4."""
    place, data, head = 8, b"", b""
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        body = content[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack_from(">I", content, place + 8 + length)[0]
        head, data = (body if kind == b"IHDR" else head), data + (body if kind == b"IDAT" else b"")
        place += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", head[:10])
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[colour]
    step, stride = 2 * channels, 2 * channels * width
    raw, rows = zlib.decompress(data), [bytes(stride)]
    for y in range(height):
        line, above, row = raw[y * (stride + 1) :][: stride + 1], rows[-1], bytearray()
        assert depth == 16 and line[0] == 4
        for x in range(stride):
            a, b, c = (row[x - step], above[x], above[x - step]) if x >= step else (0, above[x], 0)
            p = a + b - c
            best = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            row.append((line[x + 1] + best) & 255)
        rows.append(bytes(row))
    return np.frombuffer(b"".join(rows[1:]), ">u2").reshape(height, width, channels).astype(np.uint16)


@pytest.mark.parametrize("channels", KINDS)
@pytest.mark.parametrize("source", ["noise", "smooth"])
def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, source: str) -> None:
    monkeypatch.setattr("samdiffsr.images.encoders._BLOCK", 500)  # several blocks and strips
    samples = {"noise": WIDE, "smooth": SMOOTH[:30, :20]}[source][..., :channels]
    rgb, alpha = parts(samples)
    picture = Picture(rgb, alpha, channels < 3, SRGB, Metadata(dpi=(300, 150), xmp=b"<x:xmpmeta/>"))
    for name in ("a.png", "a.tif"):
        assert write_image(picture, tmp_path / name) == ()
        back = read_image(tmp_path / name, keep_16_bit=True)
        np.testing.assert_array_equal(back.rgb, rgb)
        np.testing.assert_array_equal(back.alpha, alpha)
        assert back.icc == SRGB and back.metadata.xmp == b"<x:xmpmeta/>"
        np.testing.assert_allclose(back.metadata.dpi, (300, 150), atol=0.02)  # PNG counts pixels a metre
    np.testing.assert_array_equal(unfiltered((tmp_path / "a.png").read_bytes()), samples)
    grey_alpha = channels == 2  # becomes RGBA in a TIFF: Pillow reads no grey with alpha of 16 bit there
    expected = np.dstack([rgb, alpha]) if grey_alpha else samples.squeeze()
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), expected)


def test_other_formats_hold_8_bits_and_say_so(tmp_path: Path) -> None:
    picture = Picture(np.full((4, 4, 3), 257 * 99 + 128, np.uint16))
    for extension in ("webp", "bmp"):
        (note,) = write_image(picture, tmp_path / f"a.{extension}")
        assert note == f"16-bit pixels reduced to the 8 bit that .{extension} holds"
        assert (read_image(tmp_path / f"a.{extension}").rgb == 99).all()


def test_depths_convert_by_rounding() -> None:
    every = np.arange(65_536).astype(np.uint16)
    np.testing.assert_array_equal(to_8_bit(every), np.round(every / 257.0))
    np.testing.assert_array_equal(to_8_bit(to_16_bit(np.arange(256, dtype=np.uint8))), np.arange(256))


def test_colours_become_grey_as_in_8_bit(tmp_path: Path) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    write_image(Picture(to_16_bit(rgb), grey=True), tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(rgb).convert("L"))
    assert np.abs(read_image(tmp_path / "a.png", keep_16_bit=True).rgb[..., 0] / 257.0 - expected).max() <= 0.51
