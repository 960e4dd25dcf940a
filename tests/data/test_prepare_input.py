"""Photographs, masks and options that `samdiffsr prepare` refuses, converts or accepts on request."""

import dataclasses
import inspect
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from samdiffsr import SamDiffSRError, structure_map
from samdiffsr.cli import main
from samdiffsr.cli import prepare as cli
from samdiffsr.data.dataset import PreparedImages
from samdiffsr.data.example import PrepareOptions
from samdiffsr.data.prepare import IMAGES_PER_SHARD
from samdiffsr.data.shards import key_of, stem_of
from samdiffsr.masks.rle import region_pixels
from samdiffsr.workers import in_processes
from support import left_half, posix, prepare, write_masks

OPTIONS = PrepareOptions()


def refused(folder, **options):
    """The message of a preparation that must fail, after which neither manifest nor half a file may be there."""
    with pytest.raises(SamDiffSRError) as caught:
        prepare(folder, **options)
    if (folder / "out").exists():
        names = {path.name for path in (folder / "out").iterdir()}
        assert not any(name.startswith(".") or name == "manifest.json" for name in names), names
        assert {name.partition(".")[0] + ".json" for name in names if name.endswith(".tar")} <= names
    return str(caught.value)


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
    assert "b.jpg" in told and "incomplete" in told and told.count(".\n") == 0
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
    for wrong, told in ((["--masks", photos, "--structure", photos], "one folder"), ([], "give a folder of regions")):
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


@posix
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(photos):
    """The system refuses to let a file grow, as a full disk does; Python gets the same kind of error."""
    import resource

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


@posix
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
    assert "have one name; rename one" in refused(photos)


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "hr").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "hr/.hidden.png").write_text("")
    assert "no image" in refused(tmp_path)


@pytest.mark.parametrize("option", ["encoding", "mean_over", "overlap", "normalise", "missing_masks"])
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
