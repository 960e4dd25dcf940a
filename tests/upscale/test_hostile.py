"""Huge, many and hostile: nothing is lost, and each picture that cannot be done gets one sentence."""

import io
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from samdiffsr.errors import ImageError, TooLargeError
from samdiffsr.images import image_size, read_image
from samdiffsr.upscale.batch import upscale_files
from samdiffsr.upscale.plan import plan
from support import noise_image


def header_of_a_tiff(side: int) -> bytes:
    """A TIFF that says it is RGB of side x side pixels in one strip, and ends there."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
    tags = {256: side, 257: side, 258: (8, 8, 8), 259: 1, 262: 2, 273: 8, 277: 3, 278: side, 279: 3 * side * side}
    for tag, value in tags.items():
        directory[tag] = value
    file = io.BytesIO()
    directory.save(file)
    return file.getvalue()


def test_a_tiff_of_400_megapixels_is_refused_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "huge.tif"
    file.write_bytes(header_of_a_tiff(20_000))
    assert image_size(file, max_pixels=400_000_000) == (20_000, 20_000)
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match=r"has 20000x20000 = 400000000 pixels, above the limit of 64000000;"):
            read_image(file, keep_16_bit=True)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_of_a_tiff_of_100_pages_the_first_is_taken_with_a_warning(tiny_pipe: Any, tmp_path: Path) -> None:
    pages = [Image.new("RGB", (6, 5), (page, 90, 40)) for page in range(100)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    report = upscale_files(lambda: tiny_pipe, plan([tmp_path / "a.tif"], tmp_path / "o"))
    assert report.notes == [(str(tmp_path / "a.tif"), "several frames, only the first is used")]
    made = read_image(tmp_path / "o" / "a_x4.tif").rgb
    assert made.shape == (20, 24, 3) and abs(made[..., 0].mean()) < 3


def test_ten_thousand_files_of_which_one_is_a_picture(tiny_pipe: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(9_999):
        (folder / f"{number:05d}.png").touch()
    noise_image(folder / "photo.png")
    report = upscale_files(lambda: tiny_pipe, plan([folder], tmp_path / "o"))
    assert [os.path.basename(job.target) for job in report.done] == ["photo_x4.png"]
    assert len(report.failed) == 9_999
    assert all(sentence.endswith("is empty (0 bytes); copy or export it again.") for _, sentence in report.failed)
    assert os.listdir(tmp_path / "o") == ["photo_x4.png"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to")
def test_a_read_only_output(tiny_pipe: Any, tmp_path: Path) -> None:
    sources = [noise_image(tmp_path / "a.png"), noise_image(tmp_path / "b.png")]
    before = [file.read_bytes() for file in sources]
    report = upscale_files(lambda: tiny_pipe, plan(sources, "/proc/self"))
    assert [source for source, _ in report.failed] == [str(file) for file in sources] and report.done == []
    for _, sentence in report.failed:
        assert sentence.startswith("Cannot write '/proc/self/") and sentence.endswith("; choose another output.")
    assert [file.read_bytes() for file in sources] == before


def test_a_picture_that_changes_meanwhile_does_not_end_the_batch(
    tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving, still = noise_image(tmp_path / "a.png"), noise_image(tmp_path / "b.png")
    convert = Image.Image.convert

    def written_meanwhile(image: Image.Image, *rest: Any) -> Image.Image:
        if moving.stat().st_size < 10_000:
            moving.write_bytes(moving.read_bytes() + bytes(10_000))
        return convert(image, *rest)

    monkeypatch.setattr(Image.Image, "convert", written_meanwhile)
    report = upscale_files(lambda: tiny_pipe, plan([moving, still], tmp_path / "o"))
    assert [source for source, _ in report.failed] == [str(moving)]
    assert "changed while it was read; try again when nobody writes to it." in report.failed[0][1]
    assert os.listdir(tmp_path / "o") == ["b_x4.png"]


def test_a_picture_that_is_still_being_written_says_so(tiny_pipe: Any, tmp_path: Path) -> None:
    """Half of it is incomplete, not damaged; the rest makes it a picture."""
    file = noise_image(tmp_path / "a.png", size=(64, 48))
    whole = file.read_bytes()
    file.write_bytes(whole[:5000])
    report = upscale_files(lambda: tiny_pipe, plan([file], tmp_path / "o"))
    words = "is incomplete, for it ends before the picture in it does; wait until it is written, or copy it again."
    assert report.failed == [(str(file), f"'{file}' {words}")]
    file.write_bytes(whole)
    assert upscale_files(lambda: tiny_pipe, plan([file], tmp_path / "o")).failed == []


def test_an_incomplete_picture_that_grows_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = noise_image(tmp_path / "a.png", size=(64, 48))
    whole = file.read_bytes()
    file.write_bytes(whole[:5000])
    load = ImageFile.ImageFile.load

    def grown_meanwhile(image: ImageFile.ImageFile) -> Any:
        try:
            return load(image)
        finally:
            file.write_bytes(whole[:6000])

    monkeypatch.setattr(ImageFile.ImageFile, "load", grown_meanwhile)
    with pytest.raises(ImageError, match=r"a\.png' changed while it was read; try again when nobody writes to it\.$"):
        read_image(file)


SCRIPTS = (
    "фото",
    "写真 1",
    "사진",
    "صورة",
    "תמונה",
    "चित्र",
    "ภาพ",
    "εικόνα",
    "e\u0301te\u0301",
    "\u00e9t\u00e9",
    "🦊🏽",
    "-o",
)
"""From left and right, with marks of their own and composed ones; two of them are one file on macOS."""

SHELL = () if os.name == "nt" else ("[b](c)*?", "'a\"b`$x", "line\nbreak")
"""What a pattern or a shell would misread."""


def test_names_in_every_script(tiny_pipe: Any, tmp_path: Path) -> None:
    folder = tmp_path / "Φωτο 写真"
    for name in (*SCRIPTS, *SHELL):
        noise_image(folder / f"{name}.png")
    there = os.listdir(folder)
    report = upscale_files(lambda: tiny_pipe, plan([folder], tmp_path / "o"))
    assert (report.failed, report.notes) == ([], [])
    assert set(os.listdir(tmp_path / "o")) == {f"{name.removesuffix('.png')}_x4.png" for name in there}
    assert len(there) >= len(SCRIPTS) + len(SHELL) - 1
