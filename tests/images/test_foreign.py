"""HEIC, JPEG XL, camera raw and AVIF: what is kept, and the sentences."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from samdiffsr.errors import ImageError, TooLargeError
from samdiffsr.images import Metadata, Picture, image_size, read_image, write_image
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
        with pytest.raises(ImageError, match=r"cut\.\w+' is damaged or cut short \(.*\); copy or export it again\.$"):
            read_image(cut)


@pytest.mark.parametrize(
    ("kind", "package", "extra"), [("heic", "pi_heif", "heif"), ("jxl", "pillow_jxl", "jxl"), ("dng", "rawpy", "raw")]
)
def test_without_the_extra(files, kind: str, package: str, extra: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"^Cannot read '.*': {package} is not installed; run pip install 'samdiffsr\[{extra}\]'\.$"
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
