"""Moving pictures: frames, times and plays are kept, and equal frames stay equal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samdiffsr.errors import ImageError, TooLargeError
from samdiffsr.images import Picture, read_image
from samdiffsr.upscale.batch import upscale_files
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.plan import plan
from samdiffsr.upscale.settings import Settings

RNG = np.random.default_rng(6)
TIMES = (40, 200, 70)


def moving(path: Path, *, frames: list[np.ndarray] | None = None, loop: int | None = 0) -> Path:
    """Three frames of 7x6 pixels, of 16 even colours each, which a GIF holds exactly."""
    frames = frames or [(RNG.integers(1, 5, (6, 7, 3)) * 50).astype(np.uint8) for _ in TIMES]
    images = [Image.fromarray(frame) for frame in frames]
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    options |= {} if loop is None else {"loop": loop}
    images[0].save(path, save_all=True, append_images=images[1:], duration=list(TIMES), **options)
    return path


@pytest.mark.parametrize(("name", "target"), [("a.gif", "a_x4.png"), ("a.webp", "a_x4.webp"), ("a.png", "a_x4.png")])
@pytest.mark.parametrize("loop", [0, 3])
def test_frames_times_and_plays(tiny_pipe: Any, tmp_path: Path, name: str, target: str, loop: int) -> None:
    source = moving(tmp_path / name, loop=loop)
    before = read_image(source, all_frames=True)
    assert before.animation is not None and before.notes == () and len(before.animation.later) == 2
    report = upscale_files(lambda: tiny_pipe, plan([source], tmp_path / "o"), Settings(seed=3))
    assert (report.failed, report.notes) == ([], [])
    after = read_image(tmp_path / "o" / target, all_frames=True)
    assert after.animation is not None and after.animation.milliseconds == TIMES
    assert after.animation.plays == (loop and loop + (name == "a.gif"))  # a GIF says how often again
    for small, large in zip((before, *before.animation.later), (after, *after.animation.later), strict=True):
        alone = enlarge(tiny_pipe, Picture(small.rgb, small.alpha), Settings(seed=3))
        np.testing.assert_array_equal(large.rgb, alone.rgb)


def test_a_gif_without_a_loop_runs_once(tmp_path: Path) -> None:
    picture = read_image(moving(tmp_path / "a.gif", loop=None), all_frames=True)
    assert picture.animation is not None and picture.animation.plays == 1


def test_equal_frames_stay_equal(tiny_pipe: Any, tmp_path: Path) -> None:
    one, other = ((RNG.integers(1, 5, (6, 7, 3)) * 50).astype(np.uint8) for _ in range(2))
    picture = read_image(moving(tmp_path / "a.png", frames=[one, other, one]), all_frames=True)
    result = enlarge(tiny_pipe, picture)
    assert result.animation is not None
    np.testing.assert_array_equal(result.rgb, result.animation.later[1].rgb)
    assert (result.rgb != result.animation.later[0].rgb).any()


def test_what_holds_no_frames_gets_the_first_with_a_warning(tiny_pipe: Any, tmp_path: Path) -> None:
    source = moving(tmp_path / "a.gif")
    report = upscale_files(lambda: tiny_pipe, plan([source], tmp_path / "a.jpg"))
    assert report.notes == [(str(source), "several frames, only the first is used")]


def test_the_limit_counts_all_frames(tmp_path: Path) -> None:
    source = moving(tmp_path / "a.png")
    assert read_image(source, max_pixels=100).rgb.shape == (6, 7, 3)
    with pytest.raises(TooLargeError, match=r"has 3 frames of 7x6 pixels, above the limit of 100;"):
        read_image(source, all_frames=True, max_pixels=100)


@pytest.mark.parametrize("side", [200, 60_000])
def test_a_gif_whose_second_frame_outgrows_the_first(tmp_path: Path, side: int) -> None:
    content = bytearray(moving(tmp_path / "a.gif").read_bytes())
    second = content.index(b"\x2c", content.index(b"\x2c") + 1)  # an image descriptor: left, top, width, height
    while content[second + 1 : second + 9] != bytes([0, 0, 0, 0, 7, 0, 6, 0]):
        second = content.index(b"\x2c", second + 1)
    content[second + 5 : second + 9] = side.to_bytes(2, "little") * 2
    (tmp_path / "b.gif").write_bytes(content)
    with pytest.raises(ImageError, match=r"b\.gif' is damaged \(a frame outgrows the picture\)"):
        read_image(tmp_path / "b.gif", all_frames=True)
