"""Preparation: what is written, how it goes on after a kill, and what becomes of bad files and full disks."""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from samdiffsr import SamDiffSRError, imresize, structure_map
from samdiffsr.data.dataset import PreparedImages, PreparedPhotos
from samdiffsr.data.example import PrepareOptions
from samdiffsr.data.prepare import cut, plan_shards, prepare_shard
from samdiffsr.workers import in_processes
from support import contents, left_half, posix, prepare, write_masks

OPTIONS = PrepareOptions()


def test_members(photos):
    assert prepare(photos) == prepare(photos)
    hr = np.asarray(Image.open(photos / "hr/a.png"))
    (shard,) = (photos / "out").glob("*.tar")
    with tarfile.open(shard) as tar:
        found = {member.name: np.load(io.BytesIO(tar.extractfile(member).read())) for member in tar}
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "", 0o644)}
    assert list(found) == [f"{stem}.{part}.npy" for stem in "ab" for part in ("hr", "lr", "structure")]
    assert np.array_equal(found["a.hr.npy"], hr[:48, :40])
    assert np.array_equal(found["a.lr.npy"], imresize(hr[:48, :40], 1 / 4))
    expected = structure_map(np.stack([left_half(50, 41), ~left_half(50, 41)]))[:48, :40]
    assert np.array_equal(found["a.structure.npy"], expected.astype(np.float16))
    for member, array in zip(list(found.values())[:3], PreparedImages(photos / "out")[0], strict=True):
        assert member.dtype == array.dtype
        assert np.array_equal(member, array)


def test_manifest(photos):
    made = prepare(photos)
    manifest = json.loads((photos / "out/manifest.json").read_text())
    assert (manifest["schema"], manifest["scale"], manifest["images"], manifest["without_masks"]) == (2, 4, 2, 0)
    assert manifest["structure"] == {"encoding": "rope", "mean_over": "region", "overlap": "sum"}
    assert manifest["tools"][0]["numpy"] == np.__version__
    (entry,) = manifest["shards"]
    assert (made.images, made.shards, made.bytes, made.leftovers) == (2, 1, entry["bytes"], 0)
    index = (photos / f"out/{entry['name']}.json").read_bytes()
    assert entry["index_sha256"] == hashlib.sha256(index).hexdigest()
    for image, stem in zip(json.loads(index)["images"], "ab", strict=True):
        for part, file in {"photo": f"hr/{stem}.png", "regions": f"masks/{stem}.json"}.items():
            assert image[part]["sha256"] == hashlib.sha256((photos / file).read_bytes()).hexdigest()


def test_bytes_depend_on_neither_workers_nor_machine(photos, tmp_path_factory):
    prepare(photos, images_per_shard=1)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for part in ("hr", "masks"):
        shutil.copytree(photos / part, elsewhere / part)
    assert prepare(elsewhere, images_per_shard=1, run=partial(in_processes, workers=2)).shards == 2
    assert contents(elsewhere / "out") == contents(photos / "out")


def test_a_folder_of_links_is_the_folder_itself(photos):
    """How docs/data.md makes one set of two folders."""
    prepare(photos)
    before = contents(photos / "out")
    for part in ("hr", "masks"):
        (photos / part).rename(photos / f"real-{part}")
        (photos / part).mkdir()
        for file in (photos / f"real-{part}").iterdir():
            (photos / part / file.name).symlink_to(file)
    shutil.rmtree(photos / "out")
    prepare(photos)
    assert contents(photos / "out") == before


def test_a_run_in_any_order_gives_the_same_manifest(photos, tmp_path):
    prepare(photos, images_per_shard=1)
    before = contents(photos / "out")
    shutil.rmtree(photos / "out")
    prepare(photos, images_per_shard=1, run=lambda function, plans: map(function, reversed(plans)))
    assert contents(photos / "out") == before


def test_a_plan_crosses_processes(photos):
    folders = (photos / "hr", photos / "masks", photos)
    (plan,) = plan_shards(*folders, kind="masks", options=OPTIONS, images_per_shard=9)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        report = pool.apply(prepare_shard, (plan,))
    assert report == prepare_shard(plan)
    assert report.entry["images"] == 2


def test_a_name_more_or_less_moves_few_cuts():
    names = [f"photo-{number:05}.jpg" for number in range(5000)]
    pieces = list(cut(names, 64))
    assert [name for piece in pieces for name in piece] == names
    assert max(map(len, pieces)) <= 64
    assert min(map(len, pieces[:-1])) >= 16
    for gone in (0, 700, 2222, 4999):
        changed = set(cut(names[:gone] + names[gone + 1 :], 64)) - set(pieces)
        assert len(changed) <= 8
    assert list(cut("abc", 1)) == [("a",), ("b",), ("c",)]
    assert list(cut("", 4)) == []


def test_only_what_has_changed_is_made_again(photos):
    prepare(photos, images_per_shard=1)
    before, first = {path: path.stat().st_mtime_ns for path in (photos / "out").glob("*.tar")}, contents(photos / "out")
    write_masks(photos / "masks/b.json", [left_half(48, 64)])
    prepare(photos, images_per_shard=1)
    after = {path: path.stat().st_mtime_ns for path in (photos / "out").glob("*.tar")}
    assert sum(after[path] != before[path] for path in before) == 1
    assert contents(photos / "out") != first
    structure = PreparedImages(photos / "out")[1][2]
    assert np.array_equal(structure, structure_map(left_half(48, 64)[None]).astype(np.float16))


def test_a_change_that_keeps_the_size_of_a_file_is_seen(photos):
    prepare(photos)
    file = photos / "masks/b.json"
    file.write_text(file.read_text().replace('"area"', '"Area"'))
    prepare(photos)
    (index,) = (photos / "out").glob("shard-*.json")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in index.read_text()


def tars(folder):
    """Number and time of each shard's file."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder / "out").glob("*.tar")}


@pytest.mark.parametrize("name", ["hr/b.bmp", "masks/b.json", "masks/b.npy"])
def test_an_older_file_of_the_same_size_in_place_of_another_is_seen(photos, name):
    kind = "structure" if name.endswith("npy") else "masks"
    (photos / "hr/b.png").unlink()
    for folder, shade in ((photos, 10), (photos / "older", 20)):
        for part in ("hr", "masks"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (shade, 0, 0)).save(folder / "hr/b.bmp")
        write_masks(folder / "masks/b.json", [left_half(48, 64) == (shade > 10)])
        for stem, shape in (("a", (50, 41)), ("b", (48, 64))):
            np.save(folder / f"masks/{stem}.npy", np.full(shape, shade / 20))
    prepare(photos, kind=kind)
    before = contents(photos / "out")
    assert (photos / "older" / name).stat().st_size == (photos / name).stat().st_size
    os.utime(photos / "older" / name, (10**9, 10**9))
    os.replace(photos / "older" / name, photos / name)
    prepare(photos, kind=kind)
    found = contents(photos / "out")
    assert found.keys() == before.keys() and not set(found.values()) & set(before.values())
    kept = tars(photos)
    prepare(photos, kind=kind)
    assert tars(photos) == kept


def test_a_file_that_was_only_touched_is_no_change(photos):
    prepare(photos, images_per_shard=1)
    kept = tars(photos)
    os.utime(photos / "hr/a.png")
    (photos / "masks/b.json").chmod(0o600)
    prepare(photos, images_per_shard=1)
    assert tars(photos) == kept


@pytest.mark.parametrize("damaged", [{}, [], None, {"images": []}, {"tools": None}, {"images": [{}, {}]}])
def test_a_damaged_index_is_written_again(photos, damaged):
    prepare(photos)
    before = contents(photos / "out")
    (index,) = (photos / "out").glob("shard-*.json")
    whole = json.loads(index.read_text())
    index.write_text(json.dumps(whole | damaged if damaged else damaged))
    prepare(photos)
    assert contents(photos / "out") == before


def test_a_shard_without_its_index_or_cut_short_is_made_again(photos):
    prepare(photos, images_per_shard=1)
    before = contents(photos / "out")
    one, two = (photos / "out").glob("*.tar")
    one.with_suffix(".json").unlink()
    two.write_bytes(two.read_bytes()[:-512])
    prepare(photos, images_per_shard=1)
    assert contents(photos / "out") == before


def test_other_options_need_another_folder(photos):
    prepare(photos)
    before = contents(photos / "out")
    with pytest.raises(SamDiffSRError, match="other options"):
        prepare(photos, options=PrepareOptions(encoding="linear"))
    assert contents(photos / "out") == before


def test_shards_of_earlier_runs_are_counted_and_kept(photos):
    prepare(photos)
    (photos / "hr/a.png").unlink()
    made = prepare(photos)
    assert (made.images, made.leftovers) == (1, 1)
    assert PreparedImages(photos / "out").stems == ["b"]


KILLED = """
import sys
from functools import partial
from pathlib import Path
from samdiffsr.data.prepare import prepare_folder
from samdiffsr.workers import in_processes
folder = Path(sys.argv[1])
prepare_folder(folder / "hr", folder / "masks", folder / "out", images_per_shard=2,
    run=partial(in_processes, workers=int(sys.argv[2])))
"""


@posix
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path, workers):
    (tmp_path / "hr").mkdir()
    (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(tmp_path / f"hr/{number}.png")
        write_masks(tmp_path / f"masks/{number}.json", [rng.random((300, 400)) < 0.5])
    stopped = []
    for shards in (1, 3):  # killed as soon as so many shards are there, most likely within the next one
        run = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path, workers], start_new_session=True)
        while run.poll() is None and len(list((tmp_path / "out").glob("*.json"))) < shards:
            time.sleep(0.002)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        stopped.append({path.name for path in (tmp_path / "out").iterdir()})
        assert "manifest.json" not in stopped[-1]
        with pytest.raises(SamDiffSRError, match="not finished"):
            PreparedPhotos(tmp_path / "out", crop_lr=4, candidates=1, flips=True)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.json")}
    (tmp_path / "out/.samdiffsr-0123456789abcdef.tmp").write_text("half")  # if no kill met a file half written
    subprocess.run([sys.executable, "-c", KILLED, tmp_path, workers], check=True)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    found = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    prepare(tmp_path, images_per_shard=2)
    assert found == contents(tmp_path / "out")
