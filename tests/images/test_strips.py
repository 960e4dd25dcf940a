"""PNG and JPEG are written in strips: the pixels are those of the picture written at once, in little memory."""

import io
import os
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from samdiffsr.images import Metadata, Picture, encode_image, read_image
from support import SRGB

DESCRIBED = Metadata(xmp=b"<x:xmpmeta/>", dpi=(300, 300))
SIZES = [(1, 1), (1, 9), (7, 5), (63, 20), (64, 20), (65, 30), (128, 33), (150, 17), (515, 40)]  # height, width


@pytest.fixture(autouse=True)
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG a few rows at once, JPEG 64, the fewest there can be."""
    monkeypatch.setattr("samdiffsr.images.encoders._BLOCK", 600)


def made(height: int, width: int, *, grey: bool, alpha: bool = False, dtype: type = np.uint8) -> Picture:
    """Half smooth, half noise, and every third row noise alone: every filter of PNG is chosen somewhere."""
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 4))
    smooth = (np.arange(height)[:, None, None] * 3 + np.arange(width)[:, None] * 2 + np.arange(4)) % 256
    calm = (np.arange(width)[:, None] < width // 2) & (np.arange(height)[:, None, None] % 3 > 0)
    samples = np.where(calm, smooth, noise).astype(np.uint8)
    if dtype == np.uint16:
        samples = samples.astype(np.uint16) * 256 + samples[::-1]
    rgb = np.repeat(samples[..., :1], 3, axis=2) if grey else samples[..., :3].copy()
    return Picture(rgb, samples[..., 3].copy() if alpha else None, grey, SRGB, DESCRIBED)


def encoded(picture: Picture, name: str, quality: int | None = None) -> bytes:
    content, notes = encode_image(picture, name, quality=quality)
    assert notes == ()
    with Image.open(io.BytesIO(content)) as image:
        image.verify()
    return bytes(content)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_png(size: tuple[int, int], dtype: type, grey: bool, alpha: bool) -> None:
    picture = made(*size, grey=grey, alpha=alpha, dtype=dtype)
    content = encoded(picture, "a.png")
    back = read_image("a.png", content=content, keep_16_bit=True)
    assert back.grey == grey and back.icc == SRGB and back.metadata.xmp == DESCRIBED.xmp
    np.testing.assert_array_equal(back.rgb, picture.rgb)
    np.testing.assert_array_equal(back.alpha, picture.alpha)
    if dtype == np.uint8:
        whole = io.BytesIO()
        with Image.open(io.BytesIO(content)) as image:
            image.save(whole, format="PNG")
        assert filtered(content) == filtered(whole.getvalue())  # also where a strip starts


def filtered(png: bytes) -> bytes:
    data, place = b"", 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4])
        data += png[place + 8 : place + 8 + length] if png[place + 4 : place + 8] == b"IDAT" else b""
        place += 12 + length
    return zlib.decompress(data)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("quality", [None, 10, 100])
def test_jpeg(size: tuple[int, int], grey: bool, quality: int | None) -> None:
    picture = made(*size, grey=grey)
    content = encoded(picture, "a.jpg", quality)
    whole = io.BytesIO()
    image = Image.fromarray(picture.rgb[..., 0] if grey else picture.rgb)
    image.save(whole, format="JPEG", quality=quality or 95, subsampling=0, icc_profile=SRGB)
    with Image.open(io.BytesIO(content)) as ours, Image.open(whole) as theirs:
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
        assert ours.info["dpi"] == (300, 300) and ours.info["xmp"] == DESCRIBED.xmp and ours.info["icc_profile"] == SRGB
    assert (b"\xff\xdd" in content) == (size[0] > 64)  # restart markers where there are strips
    np.testing.assert_array_equal(by_ffmpeg(content), by_ffmpeg(whole.getvalue()))


def by_ffmpeg(jpeg: bytes) -> np.ndarray:
    with av.open(io.BytesIO(jpeg), "r") as file:
        return next(file.decode(file.streams.video[0])).to_ndarray()


def test_the_16_bits_of_a_strip_become_8() -> None:
    deep = made(130, 12, grey=False, dtype=np.uint16)
    shallow = deep.in_8_bit()
    assert bytes(encode_image(deep, "a.jpg")[0]) == bytes(encode_image(shallow, "a.jpg")[0])


@pytest.mark.skipif(sys.platform != "linux", reason="the system's count of resident pages")
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_the_picture_does_not_set_the_memory(tmp_path: Path, name: str) -> None:
    """16 megapixels that take no memory themselves: less than 2 bytes a pixel, where Pillow alone has 4."""
    script = f"""
        import numpy as np
        from samdiffsr.images import Picture, write_image
        def peak():
            return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
        def write(height):
            row = np.random.default_rng(0).integers(0, 256, (1, 2_000, 3), dtype=np.uint8)
            write_image(Picture(np.broadcast_to(row, (height, 2_000, 3))), {str(tmp_path / name)!r})
        write(1_100)  # the imports, and more than a strip
        before = peak()
        write(8_000)
        print(peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 16
    assert os.listdir(tmp_path) == [name]
