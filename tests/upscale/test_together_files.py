"""Small files of one size are enlarged together: what lies in the folder afterwards is as if each had been alone."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samdiffsr.images import Picture, read_image, write_image
from samdiffsr.upscale.batch import Progress
from samdiffsr.upscale.overlap import AHEAD, Reader, Ready
from samdiffsr.upscale.plan import Job
from support import noise_image, upscale_with


@pytest.fixture
def passes(able_pipe: Any) -> list[int]:
    """The number of images in each pass of the encoder."""
    seen: list[int] = []
    encode = able_pipe.encoder.encode
    able_pipe.encoder.encode = lambda lr, *rest, **named: (seen.append(len(lr)), encode(lr, *rest, **named))[1]
    return seen


def small_files(folder: Path) -> list[Path]:
    """Of one size but for the last: three, one that is no picture, one with alpha, two of 16 bits, a large one."""
    sources = [noise_image(folder / f"{name}.png", size=(9, 8)) for name in "abc"]
    (folder / "d.png").write_text("no picture")
    sources.append(noise_image(folder / "e.png", "RGBA", size=(9, 8)))
    sources.append(noise_image(folder / "f.png", size=(9, 8)))
    for name in "gh":
        deep = np.random.default_rng(ord(name)).integers(0, 65536, (8, 9, 3)).astype(np.uint16)
        write_image(Picture(deep), folder / f"{name}.png")
        sources.append(folder / f"{name}.png")
    sources.append(noise_image(folder / "i.png", size=(40, 30)))
    return sources


def test_each_file_is_as_if_it_were_alone(able_pipe: Any, passes: list[int], tmp_path: Path) -> None:
    sources = small_files(tmp_path / "in")
    options = {"save_structure": True, "precision": "float32"}
    report = upscale_with(able_pipe, [tmp_path / "in"], tmp_path / "all", **options)
    assert passes == [3, 2, 2, 1]
    assert [Path(job.source) for job in report.done] == sources
    assert [Path(source).name for source, _ in report.failed] == ["d.png"]
    for source in sources:
        single = upscale_with(able_pipe, [source], tmp_path / "one", **options)
        assert report.levels[str(source)] == pytest.approx(single.levels[str(source)], abs=1e-6)
        for suffix in ("_x4.png", "_x4_structure.png"):
            first, second = (
                read_image(tmp_path / where / f"{source.stem}{suffix}", keep_16_bit=True) for where in ("all", "one")
            )
            assert first.rgb.dtype == second.rgb.dtype
            step = 257 if first.depth == 16 else 1
            most = 4 if suffix.endswith("structure.png") else step  # a step of that map is several of its colours'
            assert np.abs(first.rgb.astype(int) - second.rgb).max() <= most
            assert (first.alpha is None) == (second.alpha is None)
    assert len({round(level, 4) for level in report.levels.values()}) > 1


def test_progress_is_that_of_one_after_the_other(able_pipe: Any, tmp_path: Path) -> None:
    small_files(tmp_path / "in")
    told: list[Progress] = []
    upscale_with(able_pipe, [tmp_path / "in"], tmp_path / "o", on_progress=told.append)
    assert [now.number for now in told] == sorted(now.number for now in told)
    for number in range(1, 10):
        parts = [now.part for now in told if now.number == number]
        assert parts == sorted(parts) and parts[0] == 0 and parts[-1] == 1
    assert {now.total for now in told} == {9}
    megapixels = [now.megapixels for now in told]
    assert megapixels == sorted(megapixels) and megapixels[-1] == pytest.approx(16 * (7 * 72 + 1200) / 1e6)


def test_a_group_that_cannot_be_enlarged_fails_each_by_its_name(able_pipe: Any, tmp_path: Path) -> None:
    for name in "ab":
        noise_image(tmp_path / "in" / f"{name}.png", size=(9, 8))

    def fail(lr: Any, *rest: Any, **named: Any) -> Any:
        raise MemoryError

    able_pipe.encoder.encode = fail
    report = upscale_with(able_pipe, [tmp_path / "in"], tmp_path / "o")
    assert not report.done and not list(tmp_path.glob("o/*"))
    assert [(Path(source).name, source in why) for source, why in report.failed] == [("a.png", True), ("b.png", True)]


def test_uncertainty_is_of_each_alone(able_pipe: Any, passes: list[int], tmp_path: Path) -> None:
    for name in "ab":
        noise_image(tmp_path / "in" / f"{name}.png", size=(9, 8))
    report = upscale_with(able_pipe, [tmp_path / "in"], tmp_path / "o", uncertainty=True)
    assert len(report.done) == 2 and set(passes) == {1}


# --- reading ahead ----------------------------------------------------------------------------------------------------


def read_while_nobody_asks(sizes: list[int]) -> int:
    """How many pictures, of so many pixels each, are read while the first is worked on."""
    jobs = [Job(str(number), str(number)) for number in range(len(sizes))]
    begun, quiet = [], threading.Event()

    def read(job: Job) -> Ready:
        begun.append(job)
        return Ready(job, Picture(np.zeros((1, sizes[int(job.source)], 3), np.uint8)), 1)

    with Reader(read, jobs) as reader:
        readings = iter(reader)
        next(readings)[1].result()
        quiet.wait(0.2)  # nothing tells that no more is to come
        found = len(begun)
        assert [job for job, _ in readings] == jobs[1:]
    return found - 1


def test_small_ones_are_read_ahead_and_one_large_one() -> None:
    assert read_while_nobody_asks([10] * 20) == 19
    assert read_while_nobody_asks([10] * 80) in (31, 32)
    assert read_while_nobody_asks([2 * AHEAD] * 5) == 1
    assert read_while_nobody_asks([10, 10, 2 * AHEAD, 10, 10]) == 2
