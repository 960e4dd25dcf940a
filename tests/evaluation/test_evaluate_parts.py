"""The parts of `samdiffsr evaluate`, each alone: which file belongs to which, model specifications, rendering."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samdiffsr import SamDiffSRError
from samdiffsr.evaluation import methods
from samdiffsr.evaluation.benchmark import Memory
from samdiffsr.evaluation.html import _busiest
from samdiffsr.evaluation.pairs import find_pairs, match, read_pair
from samdiffsr.evaluation.report import markdown_table
from support import save_image


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        save_image(folder / name, np.zeros((4, 4, 3), np.uint8))
    return folder


def test_usual_endings_match_and_the_longest_name_wins(tmp_path):
    names = ["baby", "baby_2", "img_1", "img_10", "x"]
    files = ["babyx4.png", "baby_2_x4_SwinIR.png", "img_1.png", "img_10-out.jpg", "x_SR.png", "xylophone.png"]
    found, others = match(touch(tmp_path, *files), names)
    assert {name: file.name for name, file in found.items()} == dict(zip(names, files, strict=False))
    assert [file.name for file in others] == ["xylophone.png"]


def test_two_files_for_one_name_and_none_for_another(tmp_path):
    touch(tmp_path, "baby.png", "baby_x4.png")
    with pytest.raises(SamDiffSRError, match=r"'baby\.png', 'baby_x4\.png'; keep one"):
        match(tmp_path, ["baby"])
    with pytest.raises(SamDiffSRError, match=r"no image for 'n0', .*'n4' and 3 more"):
        match(tmp_path, ["baby", *(f"n{number}" for number in range(8))])


def test_pairs(tmp_path):
    hr, lr = touch(tmp_path / "hr", "a_HR.png", "b.png"), touch(tmp_path / "lr", "a_LR.png", "b.png")
    assert [(pair.name, pair.lr.name) for pair in find_pairs(hr, lr)] == [("a", "a_LR.png"), ("b", "b.png")]
    touch(lr, "c.png")
    with pytest.raises(SamDiffSRError, match=r"No HR image in .* goes with 'c\.png'"):
        find_pairs(hr, lr)
    touch(hr, "b.jpg")
    with pytest.raises(SamDiffSRError, match="both the HR image 'b'"):
        find_pairs(hr, None)


def test_reading_tells_what_it_changed(tmp_path):
    Image.fromarray(np.zeros((9, 8, 4), np.uint8)).save(tmp_path / "a.png")
    images = read_pair(find_pairs(tmp_path, None)[0])
    assert images.hr.shape == (8, 8, 3) and images.lr.shape == (2, 2, 3)
    assert images.notes == ("'a.png': transparency is not compared", "'a.png': HR cut from 8x9 to 8x8, a multiple of 4")
    save_image(tmp_path / "a.png", np.zeros((3, 8, 3), np.uint8))
    with pytest.raises(SamDiffSRError, match="at least 4x4"):
        read_pair(find_pairs(tmp_path, None)[0])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("default", ("default", {})),
        ("runs/a@home", ("runs/a@home", {})),
        ("runs/a@home@steps=3", ("runs/a@home", {"steps": "3"})),
        ("m@scheduler=ddim,steps=2", ("m", {"scheduler": "ddim", "steps": "2"})),
        ("m@detail=0.5", ("m", {"detail": "0.5"})),
    ],
)
def test_model_specifications(spec, expected):
    assert methods._parse(spec) == expected


@pytest.mark.parametrize("spec", ["m@steps=", "m@steps=1,steps=2", "m@steps=1,", "m@seed=1"])
def test_wrong_model_specifications(spec):
    with pytest.raises(SamDiffSRError, match="after the @"):
        methods._parse(spec)


def test_a_scheduler_by_name_is_the_one_training_saves(tiny_pipe):
    from samdiffsr.sampling.schedulers import use_scheduler

    before = dict(tiny_pipe.scheduler.config)  # made by make_scheduler: DDIM, trailing
    use_scheduler(tiny_pipe, "lcm")
    assert tiny_pipe.scheduler.config["original_inference_steps"] == 100
    use_scheduler(tiny_pipe, "ddim")
    assert dict(tiny_pipe.scheduler.config) == before


def test_peak_memory_sees_an_allocation():
    memory = Memory("cpu")
    before = memory.peak()
    if before is None:
        pytest.skip("the peak of resident memory is known on Linux only")
    np.ones(100_000_000, np.uint8).sum()
    assert memory.peak() - before > 90_000_000
    assert Memory("cpu").peak() < before + 50_000_000


def test_markdown_keeps_file_names_literal():
    assert markdown_table((["a|b"], [["*c* <d>"]])).splitlines()[0] == r"| a\|b |"
    assert markdown_table((["a"], [["*c* <d>"]])).splitlines()[2] == r"| \*c\* \<d> |"


def test_a_crop_begins_where_there_is_detail():
    picture = np.full((96, 64, 3), 128, np.uint8)
    picture[64:96:2, 32:] = 255
    assert _busiest(picture) == (48, 80)


def test_infinite_deviation_is_none():
    from samdiffsr.evaluation.benchmark import mean_and_deviation

    assert mean_and_deviation([math.inf, math.inf]) == (math.inf, None)
    assert mean_and_deviation([1.0]) == (1.0, None)
    assert mean_and_deviation([1.0, 3.0]) == (2.0, math.sqrt(2))
