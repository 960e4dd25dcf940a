"""The level of degradation that a result was made with: in the picture, its XMP and the report."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samdiffsr.images import Picture, read_image
from samdiffsr.images.picture import Animation
from samdiffsr.upscale.batch import Report, upscale_files
from samdiffsr.upscale.cluster import Work, upscale_on_cluster, upscale_work
from samdiffsr.upscale.enlarge import enlarge, with_settings
from samdiffsr.upscale.plan import plan
from samdiffsr.upscale.settings import FileSettings, Settings
from support import noise_image

RGB = np.random.default_rng(1).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def estimate(pipe: Any, rgb: np.ndarray) -> float:
    return pipe(rgb, num_inference_steps=1, output_type="uint8").levels[0]


def test_given_estimated_or_none(able_pipe: Any, tiny_pipe: Any) -> None:
    assert enlarge(able_pipe, Picture(RGB), Settings(clean=0.25)).level == 0.25
    assert enlarge(able_pipe, Picture(RGB)).level == estimate(able_pipe, RGB)
    assert enlarge(able_pipe, Picture(RGB), Settings(consistency=True)).level == 0
    assert enlarge(tiny_pipe, Picture(RGB), Settings(clean=0.0)).level is None


def test_of_two_enlargements_it_is_the_first_ones(able_pipe: Any) -> None:
    """The second one gets a clean picture."""
    assert enlarge(able_pipe, Picture(RGB), Settings(scale=5)).level == estimate(able_pipe, RGB) > 0.01


def test_the_xmp_has_the_level_that_was_used(able_pipe: Any, tiny_pipe: Any) -> None:
    result = enlarge(able_pipe, Picture(RGB))
    xmp = with_settings(result, able_pipe, Settings()).metadata.xmp
    assert result.level is not None and xmp is not None
    assert f'samdiffsr:clean="{round(result.level, 4):g}"'.encode() in xmp
    without = with_settings(enlarge(tiny_pipe, Picture(RGB)), tiny_pipe, Settings()).metadata.xmp
    assert without is not None and b"clean" not in without


def test_frames_of_a_moving_picture_have_the_level_of_the_first_that_is_not_plain(able_pipe: Any) -> None:
    """Else it would change from frame to frame, which flickers."""
    frames = [np.full_like(RGB, 3), RGB, RGB // 8]
    levels = [estimate(able_pipe, frame) for frame in frames]
    assert len({round(level, 3) for level in levels}) == 3
    later = tuple(map(Picture, frames[1:]))
    parts: list[float] = []
    moving = Picture(frames[0], animation=Animation(later, (40, 40, 40), 0))
    result = enlarge(able_pipe, moving, on_progress=parts.append)
    assert result.animation is not None and parts == sorted(parts) and parts[-1] == 1
    assert [result.level, *(frame.level for frame in result.animation.later)] == [levels[1]] * 3
    alone = enlarge(able_pipe, Picture(frames[2]), Settings(clean=levels[1]))
    np.testing.assert_array_equal(result.animation.later[1].rgb, alone.rgb)


def test_here_and_on_a_cluster_the_report_has_it_by_source(able_pipe: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    able_pipe.save_pretrained(tmp_path / "model")
    sources = [noise_image(tmp_path / "in" / name, size=size) for name, size in (("a.png", (9, 8)), ("b.png", (30, 9)))]

    def run(works: Iterable[Work]) -> Any:
        return (upscale_work(work) for work in works)

    def both(where: str, settings: Settings) -> list[Report]:
        jobs = [plan([tmp_path / "in"], tmp_path / f"{where}{place}") for place in range(2)]
        there = upscale_on_cluster(run, jobs[1], settings, model=str(tmp_path / "model"))
        return [upscale_files(lambda: able_pipe, jobs[0], settings), there]

    wanted = {str(source): estimate(able_pipe, read_image(source).rgb) for source in sources}
    assert len(set(wanted.values())) == 2
    for report in both("estimated", Settings()):
        assert report.failed == [] and report.levels == pytest.approx(wanted, abs=1e-6)
    for report in both("given", Settings(clean=0.5)):
        assert report.levels == dict.fromkeys(wanted, 0.5)


def test_of_several_seeds_it_is_the_first_ones(able_pipe: Any, tmp_path: Path) -> None:
    source = noise_image(tmp_path / "a.png")
    report = upscale_files(lambda: able_pipe, plan([source], tmp_path / "o"), files=FileSettings(uncertainty=True))
    assert report.levels == {str(source): estimate(able_pipe, read_image(source).rgb)}
