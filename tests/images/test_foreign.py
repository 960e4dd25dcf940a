"""HEIC, JPEG XL, camera raw and AVIF: what is kept, and the sentences."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from samdiffsr.errors import ImageError, TooLargeError
from samdiffsr.images import Metadata, Picture, image_size, read_image, to_8_bit, write_image
from samdiffsr.images.avif import deep_pixels
from support import HEIC, SRGB, dng

HEIGHT, WIDTH = 24, 36
Y, X = np.mgrid[:HEIGHT, :WIDTH]
RAMPS = np.stack([X * 7, Y * 10, 255 - (X + Y) * 4], axis=-1)
"""The pixels of the HEIC files, see tests/fixtures/README.md."""


def test_heic_is_turned_once_and_keeps_exif_xmp_and_profile() -> None:
    picture = read_image(HEIC / "orientation.heic", keep_16_bit=True)
    assert np.abs(picture.rgb - np.rot90(RAMPS, -1)).mean() < 1 and picture.rgb.dtype == np.uint8
    assert picture.icc is not None and "sRGB" in ImageCms.getProfileDescription(
        ImageCms.ImageCmsProfile(io.BytesIO(picture.icc))
    )
    exif = Image.Exif()
    exif.load(picture.metadata.exif)
    assert exif[0x010F] == "Maker" and 0x0112 not in exif
    assert picture.metadata.xmp is not None and b"image/heic" in picture.metadata.xmp


def test_heic_of_10_bits() -> None:
    deep = np.stack([X * 1800, Y * 2700, 65_535 - (X + Y) * 1000], axis=-1)
    picture = read_image(HEIC / "10bit.heic", keep_16_bit=True)
    assert np.abs(picture.rgb.astype(int) - deep).max() <= 65_535 / 1023  # the encoder cut 16 bits to 10
    assert picture.rgb.max() == 65_535 and (picture.rgb % 257).any()  # no 8 bits in disguise
    flat = read_image(HEIC / "10bit.heic")
    assert flat.rgb.dtype == np.uint8 and flat.notes == ("10-bit pixels reduced to 8 bit",)


def test_heic_with_transparency() -> None:
    picture = read_image(HEIC / "alpha.heic")
    assert picture.alpha is not None and np.abs(picture.alpha.astype(int) - X * 7).max() <= 3


def test_raw_has_16_bits_the_cameras_white_and_its_orientation(tmp_path: Path) -> None:
    file = tmp_path / "a.DNG"
    file.write_bytes(dng(orientation=6))
    assert image_size(file) == (64, 48)
    picture = read_image(file, keep_16_bit=True)
    assert picture.rgb.shape == (64, 48, 3) and picture.rgb.dtype == np.uint16
    inside = picture.rgb[4:-4, 4:-4].astype(int)
    assert np.abs(inside - inside[..., 1:2]).max() < 100  # the camera's red is half of its green, its white is grey
    assert (np.diff(inside[:, 20, 1]) > 0).all() and len(
        np.unique(inside)
    ) > 50  # brighter to the right became downwards
    exif = Image.Exif()
    exif.load(picture.metadata.exif)
    assert exif[0x0110] == "Test Camera"


@pytest.mark.parametrize("extension", ["jxl", "avif"])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
def test_written_and_read(tmp_path: Path, extension: str, grey: bool, transparent: bool) -> None:
    rgb = RAMPS.astype(np.uint8)
    rgb = np.dstack([rgb[..., 0]] * 3) if grey else rgb
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    metadata = Metadata(exif.tobytes(), b"<rdf:RDF></rdf:RDF>", (300, 300))
    alpha = (Y * 10).astype(np.uint8) if transparent else None
    file = tmp_path / f"a.{extension}"
    assert write_image(Picture(rgb, alpha, grey, SRGB, metadata), file) == ()
    back = read_image(file)
    assert np.abs(back.rgb.astype(int) - rgb).max() <= (0 if extension == "jxl" else 6)
    assert back.grey == (grey and extension == "jxl")
    assert (back.alpha is None) == (alpha is None)
    if alpha is not None:
        assert np.abs(back.alpha.astype(int) - alpha).max() <= (0 if extension == "jxl" else 6)
    assert back.icc is not None and back.metadata.xmp == metadata.xmp and back.metadata.dpi == (300, 300)
    found = Image.Exif()
    found.load(back.metadata.exif)
    assert found[0x010F] == "Maker"


def test_avif_keeps_any_profile_and_jxl_converts_it(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    swapped = _swapped_primaries()
    assert write_image(Picture(RAMPS.astype(np.uint8), icc=lab), tmp_path / "a.avif") == ()
    assert read_image(tmp_path / "a.avif").icc == lab
    notes = write_image(Picture(RAMPS.astype(np.uint8), icc=swapped), tmp_path / "a.jxl")
    assert notes == ("a JPEG XL is written as sRGB, so the colours are converted from their profile",)
    back = read_image(tmp_path / "a.jxl").rgb
    assert np.abs(back.astype(int) - RAMPS[..., [1, 0, 2]]).mean() < 2


def _swapped_primaries() -> bytes:
    """sRGB whose red and green are exchanged: the tags of the two colorants point to each other's place."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (256, 256), (255, 300), (640, 480), (10, 1000), (513, 8193), (12, 9)])
def test_the_size_of_a_jxl_is_known_from_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    write_image(Picture(np.zeros((size[1], size[0], 3), np.uint8)), tmp_path / "a.jxl")
    head = (tmp_path / "a.jxl").read_bytes()[:60]
    assert image_size(tmp_path / "a.jxl", content=head) == size


def test_a_jxl_made_from_a_jpeg_is_that_jpeg() -> None:
    import pillow_jxl

    jpeg = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMPS.astype(np.uint8)).save(jpeg, "JPEG", exif=exif.tobytes())
    encoder = pillow_jxl.Encoder(
        "RGB",
        lossless=True,
        quality=100,
        decoding_speed=0,
        effort=3,
        use_container=True,
        use_original_profile=True,
        num_threads=0,
    )
    packed = encoder(jpeg.getvalue(), WIDTH, HEIGHT, jpeg_encode=True)
    back = read_image("a.jxl", content=packed)
    np.testing.assert_array_equal(back.rgb, read_image("a.jpg", content=jpeg.getvalue()).rgb)
    assert back.rgb.shape == (WIDTH, HEIGHT, 3)


def deep_avif(file: Path, *, kind: str = "yuv420p10le") -> np.ndarray:
    """Ramps of 16 bits as an AVIF; FFmpeg writes what Pillow cannot. Returns uint16 (24, 36, 3), which the file has nearly."""
    av = pytest.importorskip("av")
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this PyAV has no encoder of AV1")
    pixels = np.stack([(X + Y) * 1000, (X + Y) * 900, 60_000 - (X + Y) * 800], axis=-1).astype(np.uint16)
    pixels = np.kron(pixels, np.ones((4, 4, 1), np.uint16))  # the encoder wants at least 64 pixels a side
    with av.open(str(file), "w", format="avif") as out:
        stream = out.add_stream("libsvtav1", rate=1, options={"crf": "2"})
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], kind
        stream.codec_context.color_range, stream.codec_context.colorspace = 2, 5
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb48le")
        frame = frame.reformat(format=kind, dst_colorspace=5, src_color_range=2, dst_color_range=2)
        frame.pts = 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    if hasattr(os, "sched_setscheduler"):  # run by root, this encoder gives its caller real-time priority, and keeps it
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return pixels


def test_avif_of_10_bits_keeps_them(tmp_path: Path) -> None:
    wanted = deep_avif(tmp_path / "a.avif")
    picture = read_image(tmp_path / "a.avif", keep_16_bit=True)
    assert picture.rgb.dtype == np.uint16 and picture.notes == () and picture.alpha is None
    assert np.abs(picture.rgb.astype(int) - wanted).mean() < 257
    assert len(np.unique(picture.rgb[..., 1])) > 256  # no 8 bits in disguise
    flat = read_image(tmp_path / "a.avif")
    assert flat.rgb.dtype == np.uint8 and flat.notes == ("10-bit pixels reduced to 8 bit",)
    assert np.abs(flat.rgb.astype(int) - to_8_bit(picture.rgb)).mean() < 1.5


def test_avif_of_8_bits_stays_as_pillow_reads_it(tmp_path: Path) -> None:
    deep_avif(tmp_path / "a.avif", kind="yuv420p")
    picture = read_image(tmp_path / "a.avif", keep_16_bit=True)
    assert picture.rgb.dtype == np.uint8 and picture.notes == ()


def test_avif_of_10_bits_is_turned_as_the_file_says(tmp_path: Path) -> None:
    """By an `irot` box, which Pillow reports and FFmpeg does not heed here."""
    deep_avif(tmp_path / "a.avif")
    plain = read_image(tmp_path / "a.avif", keep_16_bit=True)
    (tmp_path / "b.avif").write_bytes(turned((tmp_path / "a.avif").read_bytes()))
    picture = read_image(tmp_path / "b.avif", keep_16_bit=True)
    assert picture.rgb.dtype == np.uint16
    np.testing.assert_array_equal(picture.rgb, np.rot90(plain.rgb))


def turned(content: bytes) -> bytes:
    """The same AVIF with a property that turns it by 90 degrees against the clock."""
    found = bytearray(content)
    place = found.index(b"ipco") - 4
    end = place + int.from_bytes(found[place : place + 4])
    count, walk = 0, place + 8
    while walk < end:
        count, walk = count + 1, walk + int.from_bytes(found[walk : walk + 4])
    property_ = (9).to_bytes(4) + b"irot" + b"\x01"
    found[end:end] = property_
    ipma = found.index(b"ipma") - 4
    length = int.from_bytes(found[ipma : ipma + 4])
    # version and flags 4, count of entries 4, item 2, count of its properties 1
    found[ipma + 18] += 1
    found[ipma + length : ipma + length] = bytes([0x80 | (count + 1)])
    added = len(property_) + 1
    for name, more in ((b"ipma", 1), (b"ipco", len(property_)), (b"iprp", added), (b"meta", added)):
        head = found.index(name) - 4
        found[head : head + 4] = (int.from_bytes(found[head : head + 4]) + more).to_bytes(4)
    iloc = found.index(b"iloc")  # version 0: flags 3, sizes 2, count 2, item 2, reference 2, extents 2, then the offset
    start = iloc + 4 + 4 + 2 + 2 + 2 + 2 + 2
    found[start : start + 4] = (int.from_bytes(found[start : start + 4]) + added).to_bytes(4)
    return bytes(found)


def test_avif_of_10_bits_without_pyav_is_8_bits_with_a_note(tmp_path: Path, monkeypatch) -> None:
    deep_avif(tmp_path / "a.avif")
    monkeypatch.setitem(sys.modules, "av", None)
    picture = read_image(tmp_path / "a.avif", keep_16_bit=True)
    assert picture.rgb.dtype == np.uint8 and picture.notes == ("10-bit pixels reduced to 8 bit",)


def test_what_two_decoders_show_differently_is_pillows(tmp_path: Path) -> None:
    wanted = deep_avif(tmp_path / "a.avif")
    content = (tmp_path / "a.avif").read_bytes()
    like = read_image(tmp_path / "a.avif").rgb
    assert deep_pixels(content, like) is not None
    assert deep_pixels(content, 255 - like) is None  # another picture
    assert deep_pixels(content, like[:-1]) is None  # another size
    assert deep_pixels(content[: len(content) // 2], like) is None and wanted.shape == like.shape


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {"heic": HEIC / "orientation.heic", "jxl": tmp_path / "a.jxl", "dng": tmp_path / "a.dng"}
    write_image(Picture(RAMPS.astype(np.uint8)), found["jxl"])
    found["dng"].write_bytes(dng())
    return found


@pytest.mark.parametrize("kind", ["heic", "jxl", "dng"])
def test_too_many_pixels_and_a_file_cut_short(files: dict[str, Path], kind: str, tmp_path: Path) -> None:
    with pytest.raises(TooLargeError, match="above the limit of 100;"):
        read_image(files[kind], max_pixels=100)
    cut = tmp_path / f"cut.{kind}"
    for part in (0.5, 0.9):
        cut.write_bytes(files[kind].read_bytes()[: int(part * files[kind].stat().st_size)])
        with pytest.raises(ImageError, match=r"cut\.\w+' is incomplete, for it ends before .*, or copy it again\.$"):
            read_image(cut)


@pytest.mark.parametrize(
    ("kind", "package", "extra"), [("heic", "pi_heif", "heif"), ("jxl", "pillow_jxl", "jxl"), ("dng", "rawpy", "raw")]
)
def test_without_the_extra(files, kind: str, package: str, extra: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"^Cannot read '.*': {package} is not installed; run pip install \"samdiffsr\[{extra}\]\"\.$"
    with pytest.raises(ImageError, match=words):
        read_image(files[kind])
    if kind == "jxl":
        with pytest.raises(ImageError, match=r"^Cannot write '.*b\.jxl': pillow_jxl is not installed"):
            write_image(Picture(RAMPS.astype(np.uint8)), tmp_path / "b.jxl")


def test_a_jpeg_named_like_raw_is_a_jpeg(tmp_path: Path) -> None:
    Image.fromarray(RAMPS.astype(np.uint8)).save(tmp_path / "a.dng", format="JPEG")
    assert read_image(tmp_path / "a.dng").rgb.shape == (HEIGHT, WIDTH, 3)


def test_a_picture_that_changes_while_it_is_read(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(RAMPS.astype(np.uint8)).save(file)
    load = Image.Image.transpose

    def written_meanwhile(image: Image.Image, method: Image.Transpose) -> Image.Image:
        file.write_bytes(file.read_bytes() + b"more")
        return load(image, method)

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMPS.astype(np.uint8)).save(file, exif=exif.tobytes())
    monkeypatch.setattr(Image.Image, "transpose", written_meanwhile)
    with pytest.raises(ImageError, match=r"a\.png' changed while it was read; try again when nobody writes to it\.$"):
        read_image(file)
