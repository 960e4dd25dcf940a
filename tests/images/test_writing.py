"""Every kind of file out, whole or not at all."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.images import WRITABLE, Picture, check_target, read_image, write_image
from support import ALPHA, GREY, RGB, SRGB, posix


@pytest.mark.parametrize("extension", [*WRITABLE, ".PNG"])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_round_trip(tmp_path: Path, extension: str, grey: bool, alpha: bool) -> None:
    path = tmp_path / f"a{extension}"
    smooth = np.linspace(40, 200, 35).round().astype(np.uint8).reshape(5, 7)
    rgb = np.dstack([smooth] * 3) if grey else np.dstack([smooth, smooth[::-1], 240 - smooth])
    picture = Picture(rgb, ALPHA if alpha else None, grey, SRGB)
    if alpha and extension.lower() in (".jpg", ".jpeg", ".bmp"):
        with pytest.raises(ImageError, match=rf"a{extension}'.*transparency.*\.png\.$"):
            write_image(picture, path)
        assert os.listdir(tmp_path) == []
        return
    write_image(picture, path)
    assert os.listdir(tmp_path) == [path.name]
    back = read_image(path)
    assert np.abs(back.rgb.astype(int) - rgb).max() <= (6 if extension in (".jpg", ".jpeg", ".avif") else 0)
    assert back.grey == (grey and extension not in (".webp", ".avif"))  # they have no grey
    if extension == ".jxl":  # says sRGB in its own words
        assert back.icc is not None
    else:
        assert back.icc == (None if extension == ".bmp" else SRGB)  # as Pillow writes them, BMPs have no profile
    if alpha:
        assert back.alpha is not None
        assert np.abs(back.alpha.astype(int) - ALPHA).max() <= (6 if extension == ".avif" else 0)
    else:
        assert back.alpha is None


def test_jpeg_is_444_at_quality_95(tmp_path: Path) -> None:
    write_image(Picture(RGB), tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
        assert max(image.quantization[0]) == 12  # type: ignore[attr-defined]  # libjpeg's luminance table at 95


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_quality_is_obeyed(tmp_path: Path, extension: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sizes = []
    for quality in (20, 60, 100):
        write_image(Picture(noise), tmp_path / f"a.{extension}", quality=quality)
        sizes.append((tmp_path / f"a.{extension}").stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]
    with pytest.raises(ConfigError, match="quality is 101"):
        write_image(Picture(noise), tmp_path / f"a.{extension}", quality=101)


def test_grey_profile_stays_out_of_webp(tmp_path: Path) -> None:
    grey_profile = SRGB[:16] + b"GRAY" + SRGB[20:]
    picture = Picture(np.dstack([GREY] * 3), None, True, grey_profile)
    write_image(picture, tmp_path / "a.webp")
    write_image(picture, tmp_path / "a.png")
    assert read_image(tmp_path / "a.webp").icc is None
    assert read_image(tmp_path / "a.png").icc == grey_profile


def test_colour_under_alpha_zero_survives(tmp_path: Path) -> None:
    for extension in ("png", "webp", "tif"):
        write_image(Picture(RGB, np.zeros_like(ALPHA)), tmp_path / f"a.{extension}")
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{extension}").rgb, RGB)


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.gif", "a.png.txt"])
def test_unknown_extension(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match=r"must be one of \.png"):
        write_image(Picture(RGB), tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_sides_that_a_format_cannot_hold() -> None:
    assert check_target("a.webp", height=16_383, width=1, alpha=False) == "WEBP"
    with pytest.raises(ImageError, match=r"1x16384 .*16383"):
        check_target("a.webp", height=16_384, width=1, alpha=False)
    with pytest.raises(ImageError, match="65500"):
        check_target("a.jpg", height=1, width=65_501, alpha=False)
    assert check_target("a.png", height=1, width=70_000, alpha=True) == "PNG"


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist; make it first"):
        write_image(Picture(RGB), tmp_path / "no" / "a.png")


def test_folder_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ImageError, match="Not a directory"):
        write_image(Picture(RGB), tmp_path / "file" / "a.png")
    assert (tmp_path / "file").read_bytes() == b"x"


def test_target_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ImageError, match="directory"):
        write_image(Picture(RGB), tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["a.png"]


def test_longest_possible_name(tmp_path: Path) -> None:
    name = "a" * 251 + ".png"
    write_image(Picture(RGB), tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(ImageError, match="too long"):
        write_image(Picture(RGB), tmp_path / f"a{name}")
    assert os.listdir(tmp_path) == [name]


@posix
def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    """A real failure of the operating system: the process may not write files beyond 4096 bytes."""
    write_image(Picture(RGB), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    script = f"""
        import resource, numpy as np
        from samdiffsr.errors import ImageError
        from samdiffsr.images import Picture, write_image
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)
        try:
            write_image(Picture(noise), {str(tmp_path / "a.png")!r})
        except ImageError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == f"Cannot write '{tmp_path / 'a.png'}': File too large; choose another output.\n"
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_disk_full_or_ctrl_c_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    seen = []

    def replace(source: Path, target: Path) -> None:
        seen.append((os.listdir(tmp_path), target))
        raise failure

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises((ImageError, KeyboardInterrupt)) as caught:
        write_image(Picture(RGB), tmp_path / "a.png")
    (names, target), *_ = seen
    assert len(names) == 1 and names[0].endswith(".tmp") and target == tmp_path / "a.png"
    assert os.listdir(tmp_path) == []
    if isinstance(failure, OSError):
        assert str(caught.value).endswith("No space left on device; free some space.")


@posix
def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_image(Picture(RGB), tmp_path / "a.png")
    finally:
        os.umask(old)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "wrong",
    [
        {"rgb": RGB.astype(np.float32)},
        {"rgb": RGB.astype(np.int16)},
        {"rgb": RGB.astype(np.uint16), "alpha": ALPHA},
        {"rgb": RGB[..., :2]},
        {"rgb": RGB[:0]},
        {"rgb": GREY},
        {"rgb": RGB, "alpha": ALPHA[1:]},
        {"rgb": RGB, "alpha": ALPHA.astype(np.uint16)},
    ],
)
def test_picture_checks_itself(wrong: dict) -> None:
    with pytest.raises(ImageError, match=r"uint8"):
        Picture(**wrong)


def test_a_pillow_without_avif_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.setattr(Image, "SAVE", {name: save for name, save in Image.SAVE.items() if name != "AVIF"})
    with pytest.raises(ImageError, match=r"a\.avif': this Pillow has no AVIF; install Pillow 11\.3"):
        write_image(Picture(RGB), tmp_path / "a.avif")
