"""`samdiffsr masks` over folders: continued after any kill, shared by processes, bad files told and passed over."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from masks.tiny_sam import tiny_sam
from samdiffsr import SamDiffSRError
from samdiffsr.cli import main
from samdiffsr.cli.masks import _pace
from samdiffsr.images import read_image
from samdiffsr.masks.automatic import GeneratorOptions
from samdiffsr.masks.felzenszwalb import FelzenszwalbSegmenter
from samdiffsr.masks.folder import MaskJob, list_photographs, make_masks, mask_folder
from samdiffsr.masks.records import read_records
from samdiffsr.masks.sam import SamRecipe, SamSegmenter

RECIPE = FelzenszwalbSegmenter(min_size=20)


def photograph(number: int, size: tuple[int, int] = (48, 36)) -> Image.Image:
    """Patches of colour."""
    colours = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six photographs of as many kinds; width 48, height 36."""
    folder = tmp_path / "hr"
    folder.mkdir()
    photograph(0).save(folder / "a.png")
    photograph(1).convert("CMYK").save(folder / "b.jpg")
    photograph(2).quantize(8).save(folder / "c.gif")
    photograph(3).convert("RGBA").save(folder / "d.webp")
    Image.fromarray(np.asarray(photograph(4).convert("L")).astype(np.uint16) * 257).save(folder / "e.png")
    photograph(5).save(folder / "masks.tif")
    (folder / "notes.txt").write_text("no image")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the leftovers of killed processes, which may only be hidden temporary ones."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if not Path(name).name.startswith(".samdiffsr-")}


@pytest.fixture
def command(capfd):
    def run(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["masks", *map(str, arguments)])
        return (caught.value.code, *capfd.readouterr())

    return run


def test_every_kind_of_photograph(photos, tmp_path):
    report = mask_folder(photos, tmp_path / "m", RECIPE, preview=True)
    assert (report.made, report.kept, report.failed) == (6, 0, [])
    names = {"a", "b", "c", "d", "e", "masks"}
    expected = {f"{n}.json" for n in names} | {f"preview/{n}.png" for n in names} | {"masks.options", "contact.png"}
    assert set(contents(tmp_path / "m")) == expected
    for file in list_photographs(photos):
        rgb = read_image(file).rgb
        assert json.loads((tmp_path / f"m/{file.stem}.json").read_text()) == [r.record() for r in RECIPE(rgb)]
        records = read_records(tmp_path / f"m/{file.stem}.json", (36, 48))
        assert sum(coco.area(record["segmentation"]) for record in records) == 36 * 48
        assert Image.open(tmp_path / f"m/preview/{file.stem}.png").size == (48, 36)


def test_what_is_there_is_kept_and_what_is_lacking_made(photos, tmp_path):
    out = tmp_path / "m"
    mask_folder(photos, out, RECIPE)
    before = contents(out)
    kept = (out / "a.json").stat().st_mtime_ns
    (out / "b.json").unlink()
    (out / "c.json").write_bytes(b"")  # power was lost
    calls = []
    report = mask_folder(photos, out, RECIPE, progress=lambda done, total: calls.append((done, total)))
    assert (report.made, report.kept) == (2, 4)
    assert calls == [(0, 2), (1, 2), (2, 2)]
    assert contents(out) == before
    assert (out / "a.json").stat().st_mtime_ns == kept
    assert mask_folder(photos, out, RECIPE, preview=True).made == 6  # the pictures
    assert {name: data for name, data in contents(out).items() if ".png" not in name} == before
    assert (out / "a.json").stat().st_mtime_ns == kept


def test_shards_and_processes_give_the_same_bytes(photos, tmp_path):
    mask_folder(photos, tmp_path / "one", RECIPE, preview=True)
    reports = [mask_folder(photos, tmp_path / "m", RECIPE, preview=True, shard=(i, 3)) for i in (1, 2, 3)]
    assert sum(report.made for report in reports) == 6
    assert max(report.made for report in reports) < 6
    mask_folder(photos, tmp_path / "two", RECIPE, preview=True, workers=2)
    mask_folder(photos, tmp_path / "else", RECIPE, preview=True, run=lambda jobs: (make_masks(job) for job in jobs))
    assert contents(tmp_path / "m") == contents(tmp_path / "two") == contents(tmp_path / "one")
    assert contents(tmp_path / "else") == contents(tmp_path / "one")


def test_a_job_travels(photos, tmp_path):
    (tmp_path / "m").mkdir()
    job = pickle.loads(pickle.dumps(MaskJob(photos / "a.png", tmp_path / "m", RECIPE, preview=True)))
    assert not job.done
    assert make_masks(job) is None
    assert job.done


def test_with_a_real_sam(photos, tmp_path, command):
    tiny_sam("sam").save_pretrained(tmp_path / "sam")
    options = [f"--set={text}" for text in ("points_per_side=4", "pred_iou_thresh=-9", "stability_score_thresh=0.3")]
    out = tmp_path / "m"
    assert command("-i", photos, "-o", out, "--sam-model", tmp_path / "sam", "--device", "cpu", *options)[0] == 0
    recipe = SamRecipe(str(tmp_path / "sam"), GeneratorOptions(4, pred_iou_thresh=-9, stability_score_thresh=0.3))
    records = json.loads((out / "a.json").read_text())
    assert records == [region.record() for region in recipe.build()(read_image(photos / "a.png").rgb)]
    assert list(records[0]) == [
        *("segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box")
    ]
    assert coco.area(records[0]["segmentation"]) == records[0]["area"]
    (tmp_path / "sam/model.safetensors").unlink()  # not needed where nothing is to be done
    code, told, _ = command("-i", photos, "-o", out, "--sam-model", tmp_path / "sam", *options)
    assert code == 0 and "0 made, 6 there before" in told
    code, _, error = command("-i", photos, "-o", out, "--segmenter", "felzenszwalb")
    assert code == 2 and "'sam', not 'felzenszwalb'" in error


# --- killed ----------------------------------------------------------------------------------------------------------


def start(photos: Path, out: Path, *more: str) -> subprocess.Popen:
    arguments = [
        "masks",
        "-i",
        photos,
        "-o",
        out,
        "--segmenter",
        "felzenszwalb",
        "--set",
        "min_size=20",
        "--preview",
        *more,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "samdiffsr", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition, process: subprocess.Popen, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)


def test_killed_at_any_moment_and_continued(tmp_path):
    """SIGKILL after the options, in the middle of the masks and near the end; then two at once; the bytes are the same."""
    photos = tmp_path / "hr"
    photos.mkdir()
    for number in range(24):
        photograph(number, (96, 64)).save(photos / f"p{number:02}.png")
    mask_folder(photos, tmp_path / "whole", RECIPE, preview=True)
    out = tmp_path / "m"
    for least in (0, 5, 17):
        process = start(photos, out)
        wait_until(
            lambda least=least: (out / "masks.options").exists() and len([*out.glob("*.json")]) >= least, process
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
        for file in out.glob("*.json"):
            assert file.read_bytes() == (tmp_path / "whole" / file.name).read_bytes()
    assert 17 <= len([*out.glob("*.json")]) < 24
    both = [start(photos, out), start(photos, out)]
    for process in both:
        _, error = process.communicate(timeout=100)
        assert process.returncode == 0, error
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_workers_end_with_their_killed_parent(tmp_path):
    photos = tmp_path / "hr"
    photos.mkdir()
    for number in range(40):
        photograph(number, (300, 300)).save(photos / f"p{number:02}.png")
    process = start(photos, tmp_path / "m", "--workers", "2")
    wait_until(lambda: [*(tmp_path / "m").glob("*.json")], process)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_leftovers_are_removed_when_they_are_old(photos, tmp_path):
    out = tmp_path / "m"
    mask_folder(photos, out, RECIPE)
    old, fresh = (out / f".samdiffsr-{digit * 16}.tmp" for digit in "01")
    for file in (old, fresh):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    mask_folder(photos, out, RECIPE)
    assert not old.exists()
    assert fresh.exists()  # it may belong to a process at work


# --- bad input -------------------------------------------------------------------------------------------------------


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
        (("-i", "twice"), "x.json"),
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
