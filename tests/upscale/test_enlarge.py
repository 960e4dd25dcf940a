"""One picture larger: any size, transparency without fringes, colours that do not shift, consistency with the input."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.images import Picture, read_image, to_8_bit, to_16_bit
from samdiffsr.load import load_model
from samdiffsr.resize import imresize
from samdiffsr.upscale.enlarge import bleed, check_size, consistent, enlarge, with_mean_of
from samdiffsr.upscale.settings import Settings
from samdiffsr.upscale.size import OutputSize, passes
from support import EXAMPLES

RNG = np.random.default_rng(11)


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The embedded model."""
    return load_model("default", "cpu")


def window(name: str, height: int = 24, width: int = 32) -> np.ndarray:
    return read_image(EXAMPLES / f"{name}.png").rgb[40 : 40 + height, 30 : 30 + width]


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "size", "suffix", "expected"),
    [
        (None, None, "_x4", (400, 600)),
        (2.5, None, "_x2.5", (250, 375)),
        (1.017, None, "_x1.017", (102, 153)),  # 101.7, 152.55
        (16, None, "_x16", (1600, 2400)),
        (None, "600x400", "_600x400", (400, 600)),
        (None, "601x400", "_601x400", (400, 601)),  # within rounding
        (None, "1000x", "_1000x", (667, 1000)),
        (None, " X250 ", "_x250", (250, 375)),
    ],
)
def test_output_sizes(scale: float | None, size: str | None, suffix: str, expected: tuple[int, int]) -> None:
    wanted = OutputSize.parse(scale, size)
    assert (wanted.suffix, wanted.of(100, 150)) == (suffix, expected)


@pytest.mark.parametrize(
    ("scale", "size", "words"),
    [
        (0.9, None, "must be from 1 to 16"),
        (16.1, None, "16.1"),
        (float("nan"), None, "nan"),
        (2, "9x9", "contradict"),
        (None, "9", "1920x1080"),
        (None, "x", "1920x1080"),
        (None, "-4x5", "1920x1080"),
        (None, "0x5", "at least 1 pixel"),
    ],
)
def test_output_sizes_that_are_none(scale: float | None, size: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OutputSize.parse(scale, size)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("149x", "would shrink"),
        ("x99", "would shrink"),
        ("2401x", "more than 16 times"),
        ("300x300", "distort"),
    ],
)
def test_sizes_that_do_not_suit_a_picture(size: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        OutputSize.parse(None, size).of(100, 150)


def test_the_own_size_is_a_size() -> None:
    for wanted in (OutputSize.parse(1, None), OutputSize.parse(None, "150x")):
        assert wanted.of(100, 150) == (100, 150) and passes(100, 150, (100, 150)) == 1
    assert OutputSize.parse(1, None).suffix == "_x1"


def test_a_picture_at_its_own_size_is_the_reduced_result(tiny_pipe) -> None:
    rgb = np.random.default_rng(2).integers(60, 190, (12, 17, 3), dtype=np.uint8)
    large = tiny_pipe(rgb, generator=torch.Generator().manual_seed(5), output_type="uint16").images[0]
    expected = to_8_bit(with_mean_of(rgb, imresize(large, size=(12, 17))))
    result = enlarge(tiny_pipe, Picture(rgb), Settings(scale=1, seed=5, precision="float32"))
    np.testing.assert_array_equal(result.rgb, expected)
    assert (result.rgb != rgb).any()
    with pytest.raises(ConfigError, match="consistency at scale 1 would give the input back"):
        Settings(scale=1, consistency=True)


def test_the_network_runs_as_often_as_it_must() -> None:
    assert [passes(10, 10, (side, side)) for side in (11, 40, 41, 160)] == [1, 1, 2, 2]


def test_the_limit_holds_for_what_is_made_on_the_way() -> None:
    assert check_size(10, 10, OutputSize(scale=4), max_pixels=100) == (40, 40)
    with pytest.raises(
        ImageError, match=r"10x10 pixels to 41x41 goes through 160x160, above 16 times the limit of 100"
    ):
        check_size(10, 10, OutputSize(scale=4.1), max_pixels=100)


@pytest.mark.parametrize("scale", [1.3, 2.0, 3.7, 4.0, 5.0])
def test_other_factors_are_bicubic_reductions_of_repeated_fours(tiny_pipe: Any, scale: float) -> None:
    lr = RNG.integers(100, 130, (5, 7, 3), dtype=np.uint8)
    seen: list[float] = []
    result = enlarge(tiny_pipe, Picture(lr), Settings(scale=scale, seed=3), on_progress=seen.append).rgb
    assert result.shape == (int(5 * scale + 0.5), int(7 * scale + 0.5), 3)
    assert seen == sorted(seen) and seen[-1] == 1 and len(seen) == (6 if scale > 4 else 3)  # encoder, two steps
    first = to_16_bit(enlarge(tiny_pipe, Picture(to_16_bit(lr)), Settings(seed=3)).rgb)
    if scale > 4:
        first = to_16_bit(enlarge(tiny_pipe, Picture(first), Settings(seed=3)).rgb)
    expected = imresize(first, size=result.shape[:2])
    shift = (result - expected / 257.0).mean((0, 1))  # each step has the mean of its own input
    assert np.abs(result - expected / 257.0 - shift).max() < (1.5 if scale <= 4 else 4)


# --- colour ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut", "cat", "coffee"])
@pytest.mark.parametrize("scale", [2, 4])
def test_the_mean_colour_stays(pipe: Any, tiny_pipe: Any, name: str, scale: float) -> None:
    """Of the embedded model, and of random weights, whose own mean is far off."""
    lr = window(name)
    for one in (pipe, tiny_pipe):
        sr = enlarge(one, Picture(lr), Settings(scale=scale)).rgb
        assert np.abs(sr.mean((0, 1)) - lr.mean((0, 1))).max() < 0.2


def test_the_mean_is_met_even_where_white_and_black_are_in_the_way() -> None:
    lr = np.zeros((4, 4, 3), np.uint8)
    lr[:2] = 100
    sr = np.zeros((16, 16, 3), np.uint16)
    sr[:8] = 257 * 120  # 20 levels too bright in one half; the other half cannot get darker
    fixed = with_mean_of(lr, sr) / 257.0
    assert np.abs(fixed.mean((0, 1)) - 50).max() < 0.01
    np.testing.assert_allclose(fixed[:8], 100, atol=0.01)


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_stay(tiny_pipe: Any, value: int) -> None:
    sr = enlarge(tiny_pipe, Picture(np.full((4, 5, 3), value, np.uint8))).rgb
    assert abs(sr.mean() - value) < 0.01


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_pictures_keep_their_mean_when_written_as_grey(pipe: Any, tmp_path: Path, depth: int) -> None:
    from samdiffsr.images import write_image

    grey = np.asarray(Image.fromarray(window("cat")).convert("L"))
    lr = np.dstack([grey] * 3)
    sr = enlarge(pipe, Picture(lr if depth == 8 else to_16_bit(lr), grey=True))
    write_image(sr, tmp_path / "a.png")
    back = read_image(tmp_path / "a.png", keep_16_bit=True)
    assert back.grey and back.depth == depth
    assert abs(back.rgb.mean() / (1 if depth == 8 else 257) - grey.mean()) < 0.2


# --- consistency -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 4, 5.5])
@pytest.mark.parametrize("depth", [8, 16])
def test_consistency_gives_the_input_back(pipe: Any, scale: float, depth: int) -> None:
    """The window is itself a bicubic reduction, so that a picture that reduces to it exists."""
    lr = window("coffee", 16, 20)
    picture = Picture(lr if depth == 8 else to_16_bit(lr))
    plain, sr = (enlarge(pipe, picture, Settings(scale=scale, steps=1, consistency=on)) for on in (False, True))

    def error(result: Picture) -> float:
        levels = result.rgb / (1.0 if depth == 8 else 257.0)
        return np.abs(imresize(levels, size=lr.shape[:2]) - lr).max()

    assert error(plain) > 1
    assert error(sr) < (0.5 if depth == 8 else 0.15)
    if depth == 8:
        assert np.abs(imresize(sr.rgb, size=lr.shape[:2]).astype(int) - lr).max() <= 1
    assert sr.rgb.dtype == picture.rgb.dtype


def test_consistency_with_noise_stays_a_picture() -> None:
    """No picture reduces to it: the result must still be near, and finite."""
    lr = RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    start = to_16_bit(imresize(lr, 4))
    before = np.abs(imresize(start / 257.0, 1 / 4) - lr).mean()
    after = np.abs(imresize(consistent(lr, start.copy()) / 257.0, 1 / 4) - lr).mean()
    assert after < 0.4 * before


@pytest.mark.parametrize("size", [(600, 36), (375, 23), (150, 9)])
def test_consistency_in_strips_gives_the_bits_of_the_whole(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On noise, where every strip takes all rounds; factors 4, 2.5 and 1."""
    lr = RNG.integers(0, 256, (150, 9, 3), dtype=np.uint8)
    start = to_16_bit(imresize(lr, size=size))
    start += RNG.integers(0, 3000, start.shape, dtype=np.uint16) * (start < 60000)
    whole = consistent(lr, start.copy())  # one strip
    assert np.abs(whole.astype(int) - start).max() > 300
    monkeypatch.setattr("samdiffsr.upscale.enlarge._STRIP", 1)  # of 24 rows of the input, the fewest
    assert np.array_equal(consistent(lr, start.copy()), whole)


@pytest.mark.parametrize("size", [(600, 36), (375, 23)])
def test_a_strip_gets_only_the_rounds_that_it_needs(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    lr = imresize(RNG.integers(0, 256, (30, 3, 3), dtype=np.uint8), size=(150, 9))
    start = to_16_bit(imresize(lr, size=size))
    start += RNG.integers(0, 3000, start.shape, dtype=np.uint16) * (start < 60000)
    whole = consistent(lr, start.copy())
    monkeypatch.setattr("samdiffsr.upscale.enlarge._STRIP", 1)
    found = consistent(lr, start.copy())
    assert np.abs(found.astype(int) - whole).max() < 128  # of 65535: half a grey level of 255
    assert np.abs(imresize(found / 257.0, size=lr.shape[:2]) - lr).max() < 0.25


@pytest.mark.parametrize("scale", [4, 2.5])
def test_consistency_takes_memory_for_a_strip(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times the height takes hardly more, at a factor that is no whole number too."""
    monkeypatch.setattr("samdiffsr.upscale.enlarge._STRIP", 1)

    def taken(height: int) -> int:
        lr = imresize(RNG.integers(0, 256, (height // 4, 50, 3), dtype=np.uint8), size=(height, 200))
        sr = to_16_bit(imresize(lr, scale))
        tracemalloc.start()
        consistent(lr, sr)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert taken(360) < 1.3 * taken(120)


# --- transparency ----------------------------------------------------------------------------------------------------


def logo(hidden: np.ndarray) -> Picture:
    """A hard-edged red disc with a blue half; what its transparent surroundings hide is arbitrary."""
    y, x = np.mgrid[:24, :24] - 11.5
    inside = y**2 + x**2 < 80
    rgb = hidden.copy()
    rgb[inside] = (220, 30, 40)
    rgb[inside & (x > 0)] = (30, 60, 200)
    return Picture(rgb, np.where(inside, 255, 0).astype(np.uint8))


HIDDEN = {
    "black": np.zeros((24, 24, 3), np.uint8),
    "white": np.full((24, 24, 3), 255, np.uint8),
    "garbage": RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8),
}


@pytest.mark.parametrize("hidden", HIDDEN)
def test_no_fringe_around_a_logo(pipe: Any, hidden: str) -> None:
    """Whatever shows has the colours of the logo, up to the network's own ringing on an opaque one."""
    result = enlarge(pipe, logo(HIDDEN[hidden]))
    assert result.alpha is not None
    y, x = np.mgrid[:96, :96] - 47.5
    seen = (result.alpha > 12) & (np.abs(x) > 12)  # away from the line between the colours
    colour = np.where((x > 0)[..., None], (30, 60, 200), (220, 30, 40))
    shown = np.abs(result.rgb.astype(float) - colour)[seen] * (result.alpha[seen] / 255.0)[:, None]
    assert shown.max() < 16
    assert set(np.unique(result.alpha[(y**2 + x**2 < 30**2) | (y**2 + x**2 > 42**2)])) == {0, 255}


def test_hidden_colours_change_nothing(tiny_pipe: Any) -> None:
    one, two = (enlarge(tiny_pipe, logo(HIDDEN[name])).rgb for name in ("white", "garbage"))
    np.testing.assert_array_equal(one, two)


def test_bleeding_takes_the_nearest_visible_colour() -> None:
    rgb = HIDDEN["garbage"][:5, :7]
    alpha = np.zeros((5, 7), np.uint8)
    alpha[0, 0], alpha[4, 6] = 255, 3
    rgb[0, 0], rgb[4, 6] = (10, 20, 30), (200, 100, 0)
    filled = bleed(rgb, alpha)
    assert filled[1, 1].tolist() == [10, 20, 30] and filled[4, 5].tolist() == [200, 100, 0]
    # the largest block has both, weighted by alpha: (255 (10, 20, 30) + 3 (200, 100, 0)) / 258
    assert filled[0, 6].tolist() == [12, 21, 30]
    np.testing.assert_array_equal(bleed(rgb, np.zeros_like(alpha)), rgb)
    opaque = np.full_like(alpha, 1)
    np.testing.assert_array_equal(bleed(rgb, opaque), rgb)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_has_the_depth_and_size_of_its_picture(tiny_pipe: Any, dtype: type) -> None:
    top = np.iinfo(dtype).max
    rgb = RNG.integers(0, top, (5, 7, 3), dtype=dtype)
    alpha = RNG.integers(0, top, (5, 7), dtype=dtype)
    result = enlarge(tiny_pipe, Picture(rgb, alpha), Settings(scale=3))
    assert result.rgb.dtype == result.alpha.dtype == dtype
    np.testing.assert_array_equal(result.alpha, imresize(alpha, size=(15, 21)))
