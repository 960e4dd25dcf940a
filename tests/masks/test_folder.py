"""`samdiffsr masks` over folders: every kind of photograph, shared by processes, continued after any kill."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from pycocotools import mask as coco

from masks.tiny_sam import tiny_sam
from samdiffsr.images import list_images, read_image
from samdiffsr.masks.automatic import GeneratorOptions
from samdiffsr.masks.felzenszwalb import FelzenszwalbSegmenter
from samdiffsr.masks.folder import MaskJob, make_masks, mask_folder
from samdiffsr.masks.records import read_records
from samdiffsr.masks.sam import SamRecipe
from support import contents, photograph

RECIPE = FelzenszwalbSegmenter(min_size=20)


def test_every_kind_of_photograph(photos, tmp_path):
    report = mask_folder(photos, tmp_path / "m", RECIPE, preview=True)
    assert (report.made, report.kept, report.failed) == (6, 0, [])
    names = {"a", "b", "c", "d", "e", "masks"}
    expected = {f"{n}.json" for n in names} | {f"preview/{n}.png" for n in names} | {"masks.options", "contact.png"}
    assert set(contents(tmp_path / "m")) == expected
    for file in list_images(photos):
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
        process.kill()
        process.wait()
        for file in out.glob("*.json"):
            assert file.read_bytes() == (tmp_path / "whole" / file.name).read_bytes()
    assert 17 <= len([*out.glob("*.json")]) < 24
    both = [start(photos, out), start(photos, out)]
    for process in both:
        _, error = process.communicate(timeout=100)
        assert process.returncode == 0, error
    found = {name: data for name, data in contents(out).items() if ".samdiffsr-" not in name}  # leftovers of the killed
    assert found == contents(tmp_path / "whole")


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
