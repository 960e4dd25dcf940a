"""EXIF, XMP, resolution and colour profile survive, and tell the truth about the new picture."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from samdiffsr.errors import ImageError
from samdiffsr.images import Metadata, Picture, read_image, write_image
from support import SRGB

RGB = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description tiff:Orientation="6" tiff:ImageWidth="6" exif:PixelXDimension="6" dc:title="\xc3\xa9t\xc3\xa9">'
    b"<exif:PixelYDimension>8</exif:PixelYDimension>"
    b"<xmp:Thumbnails><rdf:Alt>base64</rdf:Alt></xmp:Thumbnails></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def camera_exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = orientation, "Maker", "someone"
    exif[0x8769] = {0xA002: 6, 0xA003: 8, 0x829A: IFDRational(1, 250), 0x9003: "2026:11:23 09:00:00", 0x927C: b"notes"}
    exif[0x8825] = {1: "N", 2: (IFDRational(52), IFDRational(31), IFDRational(12))}
    return loaded(exif)


def loaded(exif: Image.Exif) -> Image.Exif:
    """As if read from a file; only then Pillow knows the blocks within."""
    fresh = Image.Exif()
    fresh.load(exif.tobytes())
    return fresh


def camera_file(path: Path, **more: Any) -> Path:
    """A picture as a camera writes it: stored sideways (8 high, 6 wide), described in full."""
    options: dict[str, Any] = {"exif": camera_exif(), "dpi": (300, 300), "icc_profile": SRGB, "xmp": XMP} | more
    if path.suffix == ".webp":
        options["lossless"] = True
        if options["exif"]:  # a WebP says its resolution there
            for tag, value in ((282, 300), (283, 300), (296, 2)):
                options["exif"][tag] = value
            options["exif"] = loaded(options["exif"])
    Image.fromarray(np.ascontiguousarray(np.rot90(RGB))).save(path, **options)
    return path


def values(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        exif, info = image.getexif(), dict(image.info)
        inner, place = dict(exif.get_ifd(0x8769)), dict(exif.get_ifd(0x8825))
        return {
            "exif": dict(exif),
            "inner": inner,
            "gps": place,
            "info": info,
            "xmp": info.get("xmp"),
            "size": image.size,
        }


@pytest.mark.parametrize("source", ["jpg", "webp", "tif"])
@pytest.mark.parametrize("target", ["jpg", "webp", "png", "tif"])
@pytest.mark.parametrize("depth", [8, 16])
def test_what_a_camera_wrote_survives(tmp_path: Path, source: str, target: str, depth: int) -> None:
    if depth == 16 and target not in ("png", "tif"):
        pytest.skip("no 16 bit there")
    xmp: dict[str, Any] = {"exif": _with_xmp(camera_exif())} if source == "tif" else {}
    picture = read_image(camera_file(tmp_path / f"in.{source}", **xmp))
    assert picture.rgb.shape == RGB.shape and picture.notes == ()
    larger = np.zeros((24, 32, 3), np.uint8 if depth == 8 else np.uint16)
    out = tmp_path / f"out.{target}"
    assert write_image(Picture(larger, icc=picture.icc, metadata=picture.metadata), out) == ()

    found = values(out)
    assert found["size"] == (32, 24) and found["exif"].get(0x0112, 1) == 1
    assert found["exif"][0x010F] == "Maker" and found["exif"][0x8298] == "someone"
    assert found["inner"][0x829A] == IFDRational(1, 250) and found["inner"][0x9003] == "2026:11:23 09:00:00"
    assert (found["inner"][0xA002], found["inner"][0xA003]) == (32, 24) and found["inner"][0x927C] == b"notes"
    assert found["gps"][1] == "N" and [float(value) for value in found["gps"][2]] == [52, 31, 12]
    assert found["info"]["icc_profile"] == SRGB
    resolution = found["info"].get("dpi") or (found["exif"][282], found["exif"][283])
    np.testing.assert_allclose([float(value) for value in resolution], 300, atol=0.02)
    told = found["xmp"]
    assert b'tiff:Orientation="6"' not in told and b"Thumbnails" not in told and b"\xc3\xa9t\xc3\xa9" in told
    assert b'tiff:ImageWidth="32"' in told and b'exif:PixelXDimension="32"' in told
    assert b"<exif:PixelYDimension>24<" in told
    assert read_image(out).rgb.shape == (24, 32, 3)  # and nothing turns it again


def _with_xmp(exif: Image.Exif) -> Image.Exif:
    exif[700] = XMP
    return exif


def test_orientation_told_by_xmp_alone_is_applied_and_reset(tmp_path: Path) -> None:
    picture = read_image(camera_file(tmp_path / "a.webp", exif=b""))
    np.testing.assert_array_equal(picture.rgb, RGB)
    write_image(picture, tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").rgb, RGB)


def test_a_thumbnail_is_dropped(tmp_path: Path) -> None:
    small = io.BytesIO()
    Image.new("RGB", (4, 3)).save(small, "JPEG")
    block = bytearray(camera_exif().tobytes())
    # append IFD 1 by hand: JPEGInterchangeFormat and its length, after the block, and link it from IFD 0
    entries = int.from_bytes(block[14:16], "little") if block[6:8] == b"II" else int.from_bytes(block[14:16])
    order = "little" if block[6:8] == b"II" else "big"
    link, offset = 16 + 12 * entries, len(block) - 6
    block[link : link + 4] = offset.to_bytes(4, order)
    data = offset + 2 + 2 * 12 + 4
    block += (2).to_bytes(2, order)
    for tag, value in ((0x0201, data), (0x0202, len(small.getvalue()))):
        block += tag.to_bytes(2, order) + (4).to_bytes(2, order) + (1).to_bytes(4, order) + value.to_bytes(4, order)
    block += bytes(4) + small.getvalue()
    path = camera_file(tmp_path / "a.jpg", exif=bytes(block))
    with Image.open(path) as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(small.getvalue())
    exif = read_image(path).metadata.exif
    assert exif is not None and small.getvalue()[-50:] not in exif and b"Maker" in exif


def test_damaged_exif_costs_no_picture(tmp_path: Path) -> None:
    path = camera_file(tmp_path / "a.jpg", exif=b"Exif\0\0nonsense")
    picture = read_image(path)
    assert picture.metadata.exif is None and any(note.startswith("damaged EXIF left out") for note in picture.notes)


def test_a_jpeg_leaves_out_what_is_too_long_and_says_so(tmp_path: Path) -> None:
    exif = camera_exif(1)
    exif[0x8769] = exif.get_ifd(0x8769) | {0x927C: bytes(70_000)}
    exif = loaded(exif)
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    picture = read_image(tmp_path / "a.png")
    assert write_image(picture, tmp_path / "b.jpg") == ("EXIF is too long for a JPEG, the maker's notes are left out",)
    assert values(tmp_path / "b.jpg")["exif"][0x010F] == "Maker"
    exif[0x010F] = "M" * 70_000
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    picture = read_image(tmp_path / "a.png")
    picture = Picture(picture.rgb, metadata=Metadata(picture.metadata.exif, b" " * 70_000 + XMP))
    notes = write_image(picture, tmp_path / "b.jpg")
    assert notes == ("EXIF is too long for a JPEG and left out", "XMP is too long for a JPEG and left out")


@pytest.mark.parametrize("dpi", [(0, 0), (float("nan"), 72), (1e9, 1e9)])
def test_impossible_resolutions_are_none(tmp_path: Path, dpi: tuple[float, float]) -> None:
    path = tmp_path / "a.bmp"
    Image.fromarray(RGB).save(path)
    picture = read_image(path)
    assert picture.metadata.dpi is None or picture.metadata.dpi[0] >= 1
    from samdiffsr.images.metadata import _dpi

    image = Image.fromarray(RGB)
    image.info["dpi"] = dpi
    assert _dpi(image, Image.Exif()) is None


def test_what_a_bmp_does_not_hold_is_said(tmp_path: Path) -> None:
    picture = Picture(RGB, icc=SRGB, metadata=Metadata(dpi=(300, 300), xmp=XMP))
    assert write_image(picture, tmp_path / "a.bmp") == (
        "a BMP holds neither EXIF nor XMP, so they are left out",
        "a BMP holds no colour profile, so it is left out",
    )
    np.testing.assert_allclose(read_image(tmp_path / "a.bmp").metadata.dpi, 300, atol=0.02)


def test_another_gamma_is_said(tmp_path: Path) -> None:
    from support import png, png_chunk, scanlines

    for gamma, notes in ((45455, ()), (100_000, ("its gamma of 1 is ignored, sRGB is assumed",))):
        extra = png_chunk(b"gAMA", gamma.to_bytes(4))
        (tmp_path / "a.png").write_bytes(png(8, 6, 8, 2, scanlines(RGB), extra))
        assert read_image(tmp_path / "a.png").notes == notes


def test_exif_that_is_none_is_refused_on_writing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"Metadata\.exif is no EXIF block"):
        write_image(Picture(RGB, metadata=Metadata(exif=b"nonsense")), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
