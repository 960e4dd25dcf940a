"""Photographs, options and folders that `samdiffsr masks` refuses, and the sentences that it says."""

import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from samdiffsr import SamDiffSRError
from samdiffsr.cli.masks import _pace
from samdiffsr.masks.felzenszwalb import FelzenszwalbSegmenter
from samdiffsr.masks.folder import MaskJob, make_masks, mask_folder
from samdiffsr.masks.sam import SamSegmenter
from support import contents, photograph

RECIPE = FelzenszwalbSegmenter(min_size=20)


def test_bad_photographs_are_told_at_the_end_and_the_others_done(photos, tmp_path, command):
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:60])
    (photos / "zero.jpg").write_bytes(b"")
    Image.new("L", (3000, 3000)).save(photos / "huge.png")
    code, out, error = command(
        "-i", photos, "-o", tmp_path / "m", "--segmenter", "felzenszwalb", "--max-pixels", 1_000_000
    )
    assert code == 1
    assert "6 made, 0 there before, 3 failed" in out
    last = error.splitlines()[-3:]
    assert ["cut.png" in last[0], "huge.png" in last[1], "zero.jpg" in last[2]] == [True] * 3
    assert all(line.startswith("Error: ") for line in last)
    assert {name for name in contents(tmp_path / "m") if name.endswith(".json")} == {
        *("a.json", "b.json", "c.json", "d.json", "e.json", "masks.json")
    }


def test_a_preview_of_masks_that_do_not_fit_is_told(photos, tmp_path):
    out = tmp_path / "m"
    mask_folder(photos, out, RECIPE)
    (out / "a.json").write_text('[{"segmentation": {"size": [1, 1], "counts": "01"}}]')
    report = mask_folder(photos, out, RECIPE, preview=True)
    assert report.made == 5
    ((photo, why),) = report.failed
    assert photo.name == "a.png" and "a.json" in why and "[1, 1]" in why


@dataclass(frozen=True)
class Deadly:
    """A recipe that ends every process but the first, as a system short of memory does."""

    def build(self):
        if multiprocessing.parent_process():
            os._exit(9)
        return RECIPE

    def record(self):
        return {}


class Exhausted:
    """A model for which memory does not suffice, in the words of torch's CPU allocator."""

    def embed(self, _):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")


@dataclass(frozen=True)
class Exhausting:
    def build(self):
        return SamSegmenter(Exhausted())

    def record(self):
        return {}


def test_a_killed_worker_is_told(photos, tmp_path):
    with pytest.raises(SamDiffSRError, match="fewer --workers"):
        mask_folder(photos, tmp_path / "m", Deadly(), workers=2)


def test_too_little_memory_is_told_for_each_photograph(photos, tmp_path):
    report = mask_folder(photos, tmp_path / "m", Exhausting())
    assert len(report.failed) == 6
    assert all(str(photo) in why and "48x36" in why and "points_per_batch" in why for photo, why in report.failed)


def test_the_pace():
    assert _pace(5, 20, 10.0) == "0.50 images/s, 0:00:30 left"
    assert _pace(0, 20, 10.0) == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-i", "empty"), "no image"),
        (("-i", "nowhere"), "nowhere"),
        (("-i", "twice"), "have one name; rename one"),
        (("-o", "hr", "--preview", ""), "another folder for the masks"),
        (("--shard", "3"), "I/N"),
        (("--shard", "3/2"), "1/2 to 2/2"),
        (("--segmenter", "magic"), "'felzenszwalb'"),
        (
            ("--segmenter", "felzenszwalb", "--set", "points_per_side=3"),
            "the setting is 'points_per_side', but must be one of 'scale'",
        ),
        (("--segmenter", "sam", "--set", "scale=3"), "the setting is 'scale'"),
        (("--segmenter", "felzenszwalb", "--sam-model", "x"), "--sam-model"),
        (("--segmenter", "felzenszwalb", "--set", "sigma=inf"), "sigma"),
        (
            ("--segmenter", "felzenszwalb", "--device", "nonsense"),
            "--device is no option of the segmenter 'felzenszwalb'",
        ),
        (("--segmenter", "sam", "--set", "points_per_side=0"), "points_per_side"),
        (("--segmenter", "sam", "--set", "points_per_side"), "--set is 'points_per_side', but must be KEY=VALUE"),
        (("--sam-model", "./no-such-folder"), "no-such-folder"),
        (("-o", "hr/a.png/m", "--segmenter", "felzenszwalb"), "hr/a.png/m"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing(arguments, told, photos, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "twice"):
        Path(name).mkdir()
    for name in ("x.png", "x.jpg"):
        photograph(0).save(f"twice/{name}")
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    given = {"-i": "hr", "-o": "m"} | given
    code, _, error = command(*[word for pair in given.items() for word in pair if word])
    assert code == 2
    assert told in error and "Traceback" not in error
    if "twice" in arguments:
        assert "x.png" in error and "x.jpg" in error
    assert not Path("m").exists() and len(list(photos.iterdir())) == 7


def test_folders_made_otherwise_are_not_continued(photos, tmp_path):
    out = tmp_path / "m"
    mask_folder(photos, out, RECIPE)
    before = contents(out)
    with pytest.raises(SamDiffSRError, match=r"min_size 20, not 21"):
        mask_folder(photos, out, FelzenszwalbSegmenter(min_size=21))
    assert contents(out) == before
    (out / "masks.options").unlink()
    with pytest.raises(SamDiffSRError, match=r"\.json\), but no masks\.options"):
        mask_folder(photos, out, RECIPE)
    (out / "masks.options").write_text("{")
    with pytest.raises(SamDiffSRError, match=r"masks\.options cannot be read"):
        mask_folder(photos, out, RECIPE)


def test_a_run_without_a_mask_does_not_lock_the_folder(photos, tmp_path):
    """But what it has begun is not mixed into the masks of the next one."""
    other, out = FelzenszwalbSegmenter(min_size=21), tmp_path / "m"
    out.mkdir()
    (out / "masks.options").write_text(json.dumps(other.record()))
    assert mask_folder(photos, out, RECIPE).made == 6
    (out / "a.json").unlink()
    with pytest.raises(SamDiffSRError, match=r"min_size 20, not 21"):
        make_masks(MaskJob(photos / "a.png", out, other))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_stops_the_run(photos, tmp_path, command, monkeypatch):
    import samdiffsr.files

    def full(path, mode):
        return open("/dev/full", "wb")

    monkeypatch.setattr(samdiffsr.files, "open", full, raising=False)
    out = tmp_path / "m"
    out.mkdir()
    code, _, error = command("-i", photos, "-o", out, "--segmenter", "felzenszwalb")
    assert code == 2
    assert "No space left" in error and "free some space" in error
    assert contents(out) == {}


def test_auto_without_weights_says_what_it_takes(photos, tmp_path):
    """In a process of its own: the hub's cache and its being offline are read when it is imported."""
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-m", "samdiffsr", "masks", "-i", str(photos), "-o", str(tmp_path / "m")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0
    assert "Segmenter: felzenszwalb" in done.stderr and "facebook/sam-vit-huge, 2.6 GB" in done.stderr
    assert json.loads((tmp_path / "m/masks.options").read_text())["segmenter"] == "felzenszwalb"
    arguments[-1] = str(tmp_path / "n")
    done = subprocess.run(
        [*arguments, "--segmenter", "sam"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The SAM model 'facebook/sam-vit-huge' (2.6 GB)")
    assert "--sam-model DIR" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "n").exists()
