"""Preparation: what is written, how it goes on after a kill, and what becomes of bad files and full disks."""

import dataclasses
import hashlib
import inspect
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from functools import partial

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from samdiffsr import SamDiffSRError, imresize, structure_map
from samdiffsr.cli import main
from samdiffsr.cli import prepare as cli
from samdiffsr.data.dataset import PreparedImages, PreparedPhotos
from samdiffsr.data.example import PrepareOptions
from samdiffsr.data.prepare import IMAGES_PER_SHARD, cut, plan_shards, prepare_shard
from samdiffsr.data.shards import key_of, stem_of
from samdiffsr.masks.rle import region_pixels
from samdiffsr.workers import in_processes
from support import prepare, write_masks

OPTIONS = PrepareOptions()


def contents(folder):
    """Every file of a folder, hidden ones too, by name and digest."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def left_half(height, width):
    mask = np.zeros((height, width), bool)
    mask[:, :17] = True
    return mask


def refused(folder, **options):
    """The message of a preparation that must fail, after which neither manifest nor half a file may be there."""
    with pytest.raises(SamDiffSRError) as caught:
        prepare(folder, **options)
    if (folder / "out").exists():
        names = {path.name for path in (folder / "out").iterdir()}
        assert not any(name.startswith(".") or name == "manifest.json" for name in names), names
        assert {name.partition(".")[0] + ".json" for name in names if name.endswith(".tar")} <= names
    return str(caught.value)


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
    assert (made.images, made.shards, made.bytes, made.strangers) == (2, 1, entry["bytes"], 0)
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
    assert (made.images, made.strangers) == (1, 1)
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


def jpeg(folder, name="hr/b.jpg", **options):
    """Replace photograph b by a JPEG."""
    (folder / "hr/b.png").rename(folder / "b.png")
    Image.open(folder / "b.png").save(folder / name, **options)
    return folder / name


def test_a_corrupt_photograph_is_named_and_the_others_are_done(photos):
    file = jpeg(photos)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    told = refused(photos, images_per_shard=1)
    assert "b.jpg" in told and "damaged" in told and told.count(".\n") == 0
    assert len(list((photos / "out").glob("*.tar"))) == 1
    file.write_bytes(whole)
    assert prepare(photos, images_per_shard=1).images == 2


def test_every_bad_file_is_told_in_one_run(photos):
    for stem in "ab":
        (photos / f"hr/{stem}.png").write_bytes(b"")
    (photos / "masks/a.json").unlink()
    told = refused(photos).splitlines()
    assert told[0].startswith("2 files")
    assert ["a.png" in line or "b.png" in line for line in told] == [False, True, True]


def bad_photo(content):
    return lambda folder: (folder / "hr/b.png").write_bytes(content)


def huge_png():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def transparent(folder):
    image = Image.open(folder / "hr/b.png").convert("RGBA")
    image.putpixel((3, 3), (1, 2, 3, 100))
    image.save(folder / "hr/b.png")


def rle(counts, size=(48, 64)):
    return json.dumps([{"segmentation": {"size": list(size), "counts": counts}}])


def mask_file(content):
    return lambda folder: (folder / "masks/b.json").write_text(content)


@pytest.mark.parametrize(
    ("spoil", "file", "told"),
    [
        (bad_photo(b""), "b.png", "empty"),
        (bad_photo(b"not a picture"), "b.png", "not an image"),
        (bad_photo(huge_png()), "b.png", "100000x100000"),
        (transparent, "b.png", "transparent"),
        (lambda folder: Image.new("RGB", (3, 9)).save(folder / "hr/b.png"), "b.png", "3x9"),
        (lambda folder: (folder / "masks/b.json").unlink(), "b.json", "missing"),
        (mask_file(""), "b.json", ""),
        (mask_file("[]"), "b.json", "no region"),
        (mask_file("[{"), "b.json", ""),
        (mask_file(rle("")), "b.json", "record 0"),
        (mask_file(rle("P1")), "b.json", "record 0"),
        (mask_file(rle("Pd")), "b.json", "record 0"),
        (mask_file(rle("é")), "b.json", "record 0"),
        (mask_file(rle("\ud800")), "b.json", "record 0"),
        (mask_file(rle("oooooooooooooooo0")), "b.json", "record 0"),
        (mask_file(rle("0", (64, 48))), "b.json", "[64, 48]"),
    ],
)
def test_bad_files_are_named(photos, spoil, file, told):
    spoil(photos)
    message = refused(photos)
    assert file in message
    assert told in message
    assert "\n" not in message


def test_overlapping_masks_are_no_error(photos):
    masks = [left_half(48, 64), np.ones((48, 64), bool)]
    write_masks(photos / "masks/b.json", masks)
    prepare(photos, options=PrepareOptions(encoding="cosine", mean_over="image", overlap="last"))
    expected = structure_map(np.stack(masks), encoding="cosine", mean_over="image", overlap="last")
    assert np.array_equal(PreparedImages(photos / "out")[1][2], expected.astype(np.float16))


@pytest.mark.parametrize("kind", ["L", "P", "CMYK", "I;16", "opaque"])
def test_pictures_of_every_kind_become_8_bit_rgb(photos, kind):
    (photos / "hr/b.png").unlink()
    grey = np.random.default_rng(2).integers(0, 65536, (48, 64), dtype=np.uint16)
    bytes_ = (grey >> 8).astype(np.uint8)
    if kind == "I;16":
        Image.fromarray(grey).save(photos / "hr/b.png")
        expected = np.repeat(np.round(grey / 257).astype(np.uint8)[..., None], 3, axis=2)
    else:
        image = Image.fromarray(bytes_)
        image = image.convert("RGBA") if kind == "opaque" else image.convert("RGB").convert(kind)
        image.save(photos / "hr/b.tif")
        expected = np.asarray(image.convert("RGB"))
    prepare(photos)
    assert np.array_equal(PreparedImages(photos / "out")[1][0], expected)


def test_missing_masks_can_be_accepted_and_are_counted(photos):
    (photos / "masks/a.json").unlink()
    (photos / "masks/b.json").write_text("[]")
    refused(photos)
    made = prepare(photos, options=PrepareOptions(missing_masks="zero"))
    assert made.without_masks == 2
    assert json.loads((photos / "out/manifest.json").read_text())["without_masks"] == 2
    assert not PreparedImages(photos / "out")[0][2].any()
    with pytest.raises(SamDiffSRError, match=r"a\.json is missing"):
        prepare(photos)  # what was accepted then is not accepted now
    (photos / "masks/a.json").write_text("[")
    with pytest.raises(SamDiffSRError, match=r"a\.json"):
        prepare(photos, options=PrepareOptions(missing_masks="zero"))


def test_masks_of_another_size_can_be_resized(photos):
    small = np.random.default_rng(3).random((2, 24, 32)) < 0.5
    write_masks(photos / "masks/b.json", small)
    assert "[24, 32]" in refused(photos)
    assert prepare(photos, options=PrepareOptions(resize_masks=True)).resized_masks == 1
    expected = structure_map(small.repeat(2, axis=1).repeat(2, axis=2))
    assert np.array_equal(PreparedImages(photos / "out")[1][2], expected.astype(np.float16))
    with pytest.raises(SamDiffSRError, match="24, 32"):
        prepare(photos)


@pytest.mark.parametrize("size", [[48], [48, 0], [-48, -64], [48.0, 64], ["48", 64], [48, 65]])
def test_masks_without_a_size_cannot_be_resized(photos, size):
    counts = coco.encode(np.asfortranarray(np.ones((48, 64), np.uint8)))["counts"].decode()
    (photos / "masks/b.json").write_text(json.dumps([{"segmentation": {"size": size, "counts": counts}}]))
    assert "record 0 of mask file" in refused(photos, options=PrepareOptions(resize_masks=True))


def test_the_command_line_has_the_defaults_of_the_library():
    command = inspect.signature(cli.prepare).parameters
    for field in dataclasses.fields(PrepareOptions):
        assert command[field.name].default == field.default
    assert command["images_per_shard"].default == IMAGES_PER_SHARD


def test_every_option_of_the_command_line_arrives(photos, capsys):
    write_masks(photos / "masks/b.json", [left_half(24, 32), np.ones((24, 32), bool)])
    (photos / "masks/a.json").unlink()
    folders = ["-i", photos / "hr", "-o", photos / "out"]
    encoding = ["--encoding", "sincos", "--mean-over", "image", "--overlap", "last", "--images-per-shard", "1"]
    accepting = ["--missing-masks", "zero", "--resize-masks", "--workers", "2", "--max-pixels", "3072"]
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in ["prepare", *folders, "--masks", photos / "masks", *encoding, *accepting]])
    assert end.value.code == 0
    assert "2 photographs in 2 shards" in (told := capsys.readouterr().out)
    assert "1 without masks, 1 with masks of another size" in told
    masks = np.stack([left_half(24, 32), np.ones((24, 32), bool)]).repeat(2, axis=1).repeat(2, axis=2)
    expected = structure_map(masks, encoding="sincos", mean_over="image", overlap="last")
    assert np.array_equal(PreparedImages(photos / "out")[1][2], expected.astype(np.float16))
    for wrong, told in ((["--masks", photos, "--structure", photos], "one folder"), ([], "one folder")):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in ["prepare", *folders, *wrong]])
        assert end.value.code == 2
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(
            [
                str(w)
                for w in ["prepare", *folders[:3], photos / "new", "--masks", photos / "masks", "--max-pixels", "9"]
            ]
        )
    assert end.value.code == 2
    assert "--max-pixels" in capsys.readouterr().err


def test_ready_structure_maps(photos):
    maps = photos / "masks"
    ready = np.random.default_rng(4).random((50, 41)).astype(np.float32)
    np.save(maps / "a.npy", ready)
    np.save(maps / "b.npy", np.array(None, dtype=object), allow_pickle=True)
    assert "b.npy holds no region" in refused(photos, kind="structure")
    zero = PrepareOptions(missing_masks="zero")
    assert prepare(photos, kind="structure", options=zero).without_masks == 1
    found = PreparedImages(photos / "out")
    assert np.array_equal(found[0][2], ready[:48, :40].astype(np.float16))
    assert not found[1][2].any()
    with pytest.raises(SamDiffSRError, match="other options"):
        prepare(photos)


class Trap:
    """Unpickling it would end the test."""

    def __reduce__(self):
        return os._exit, (3,)


def npy(header):
    """Writes a .npy of this header and no numbers."""
    return lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())


@pytest.mark.parametrize(
    ("save", "told"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "cannot be read"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x07\x00" + bytes(99)), "cannot be read"),
        (npy("{'descr': '<f8', 'shape': (48,"), "header is damaged"),
        (npy(" " * 20_000), "cannot be read"),
        (npy("  {'descr': '<f8'\n 1"), "header is damaged"),
        (npy("{'descr': '<f8', 1: 2}"), "header is damaged"),
        (npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**30},)}}"), "header is damaged"),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000, 10000000)}"), "larger than memory"),
        (lambda path: np.save(path, np.array([Trap()], dtype=object), allow_pickle=True), "cannot be read"),
        (lambda path: np.save(path, np.zeros((48, 64), np.int32)), "int32"),
        (lambda path: np.save(path, np.full((48, 64), np.nan)), "within 65504"),
        (lambda path: np.save(path, np.full((48, 64), -7e4)), "within 65504"),
        (lambda path: np.save(path, np.zeros((48, 64, 1))), "(48, 64, 1)"),
        (lambda path: np.save(path, np.zeros((64, 48))), "48x64"),
    ],
)
def test_bad_structure_maps_are_named(photos, save, told):
    np.save(photos / "masks/a.npy", np.zeros((50, 41)))
    save(photos / "masks/b.npy")
    message = refused(photos, kind="structure")
    assert "b.npy" in message
    assert told in message and "\n" not in message


def test_a_structure_map_can_be_resized(photos):
    small = np.random.default_rng(5).random((24, 32))
    np.save(photos / "masks/a.npy", np.zeros((50, 41)))
    np.save(photos / "masks/b.npy", small)
    prepare(photos, kind="structure", options=PrepareOptions(resize_masks=True))
    expected = small.repeat(2, axis=0).repeat(2, axis=1).astype(np.float16)
    assert np.array_equal(PreparedImages(photos / "out")[1][2], expected)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(photos):
    """The system refuses to let a file grow, as a full disk does; Python gets the same kind of error."""
    code = "from samdiffsr.cli import main; main()"
    arguments = ["prepare", "-i", photos / "hr", "--masks", photos / "masks", "-o", photos / "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert done.returncode == 2
    assert "File too large; choose another output." in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((photos / "out").iterdir())
    assert prepare(photos).images == 2


def test_a_worker_that_dies_is_one_sentence(photos):
    with pytest.raises(SamDiffSRError, match="fewer --workers"):
        prepare(photos, run=lambda _, plans: in_processes(die, plans, workers=2))


def die(plan):
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_output_that_is_a_file_is_refused(photos):
    (photos / "out").write_text("")
    with pytest.raises(SamDiffSRError, match="out cannot be made"):
        prepare(photos)


def test_two_photographs_of_one_name_are_refused(photos):
    shutil.copy(photos / "hr/a.png", photos / "hr/a.bmp")
    assert "'a'" in refused(photos)


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "hr").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "hr/.hidden.png").write_text("")
    assert "no image" in refused(tmp_path)


@pytest.mark.parametrize("option", ["encoding", "mean_over", "overlap", "missing_masks"])
def test_unknown_options_are_refused(option):
    with pytest.raises(SamDiffSRError, match=option):
        dataclasses.replace(OPTIONS, **{option: "polar"})


@pytest.mark.parametrize("stem", ["a", "a.b", "%2E", "..%", "a%2Eb.c", "%25"])
def test_keys_have_no_dot_and_give_the_stem_back(stem):
    assert "." not in key_of(stem)
    assert stem_of(key_of(stem)) == stem


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_region_pixels_are_those_pycocotools_decodes(density):
    rng = np.random.default_rng(7)
    for height, width in ((1, 1), (7, 5), (90, 70), (1, 3000)):
        mask = rng.random((height, width)) < density
        mask[: height // 2] = rng.random() < 0.5  # long runs too
        counts = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert np.array_equal(region_pixels(counts, (height, width)), np.flatnonzero(mask.T))
