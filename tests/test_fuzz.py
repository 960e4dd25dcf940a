"""Broken input never becomes a traceback, a hang or an output; `make fuzz` tries 5,000 files instead of 300."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import cases, run, seeds
from samdiffsr.errors import ImageError, SamDiffSRError
from samdiffsr.images import ALPHA, SIXTEEN_BIT, WRITABLE, Picture, read_image, write_image
from samdiffsr.upscale.size import OutputSize

MAGIC = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"BM", b"GIF89a", b"RIFF"]
ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def test_300_damaged_files_and_some_of_10_bits() -> None:
    ends, faults = run([*cases(300), *cases(36, of="10bit")])
    assert not faults
    assert ends["refused"] > 100 and ends["upscaled"] > 30  # damage to pixels alone cannot be seen in most formats


def test_whole_files_are_fine(tmp_path: Path) -> None:
    """Otherwise their being refused when damaged would mean nothing."""
    for name, content in seeds().items():
        (tmp_path / name).write_bytes(content)
        height, width = read_image(tmp_path / name).rgb.shape[:2]
        assert f"{width}x{height}" in name or f"{height}x{width}" in name  # some are stored sideways


def test_the_files_of_10_bits_are_read_as_such() -> None:
    """Otherwise only their 8-bit half would be tried."""
    pytest.importorskip("av")
    found = {
        name: read_image(name, content=content, keep_16_bit=True)
        for name, content in seeds().items()
        if "10bit" in name
    }
    assert {name.rpartition(".")[2] for name in found} == {"avif", "heic"}
    for picture in found.values():
        assert picture.depth == 16 and (picture.rgb % 257).any() and picture.notes == ()


@given(st.binary(min_size=1, max_size=300), st.sampled_from(MAGIC))
@settings(ONE_FOLDER, max_examples=150)
def test_any_bytes_are_a_picture_or_an_image_error(tmp_path: Path, content: bytes, magic: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(magic + content)
    with contextlib.suppress(ImageError):
        assert read_image(path, keep_16_bit=True, max_pixels=100_000).rgb.size <= 300_000


@given(
    extension=st.sampled_from(sorted(WRITABLE)),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    grey=st.booleans(),
    alpha=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    seed=st.integers(0, 9),
)
@settings(ONE_FOLDER, max_examples=120)
def test_what_is_written_is_read_again(
    tmp_path: Path, extension: str, shape: tuple[int, int], grey: bool, alpha: bool, dtype: type, seed: int
) -> None:
    rng, top = np.random.default_rng(seed), np.iinfo(dtype).max
    rgb = rng.integers(0, top, (*shape, 1 if grey else 3), dtype=dtype, endpoint=True)
    layer = rng.integers(0, top - 1, shape, dtype=dtype) if alpha and extension in ALPHA else None
    picture = Picture(np.ascontiguousarray(np.broadcast_to(rgb, (*shape, 3))), layer, grey)
    write_image(picture, tmp_path / f"a{extension}")
    back = read_image(tmp_path / f"a{extension}", keep_16_bit=True)
    expected = picture if extension in SIXTEEN_BIT else picture.in_8_bit()
    assert back.depth == expected.depth and back.rgb.shape == expected.rgb.shape
    if WRITABLE[extension] not in ("JPEG", "AVIF"):
        np.testing.assert_array_equal(back.rgb, expected.rgb)
        np.testing.assert_array_equal(back.alpha, expected.alpha)


@given(st.text(alphabet="0123456789xX -.e", max_size=12), st.integers(1, 5000), st.integers(1, 5000))
@settings(max_examples=200, deadline=None)
def test_any_size_is_a_size_or_an_error_of_ours(text: str, height: int, width: int) -> None:
    with contextlib.suppress(SamDiffSRError):
        high, wide = OutputSize.parse(None, text).of(height, width)
        assert height <= high <= 16 * height and width <= wide <= 16 * width


@pytest.mark.parametrize("scale", [1, 1.0001, 1.5, 15.999, 16])
def test_any_factor_gives_at_least_the_input(scale: float) -> None:
    for height, width in ((1, 1), (3, 7), (1, 4000)):
        high, wide = OutputSize(scale=scale).of(height, width)
        assert height <= high <= 16 * height and width <= wide <= 16 * width
