"""Further targets of the encoder in prepared folders: an upscaler's results beside the originals."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr import SamDiffSRError
from samdiffsr.cli import main
from samdiffsr.data.dataset import PreparedImages, PreparedPhotos
from support import prepare

SIZES = {"a": (48, 40), "b": (48, 64)}  # height and width of the photographs of the fixture, cut to multiples of 4


@pytest.fixture
def teachers(photos):
    """Two folders of results for the photographs; returns their names and folders."""
    rng = np.random.default_rng(1)
    folders = {name: photos / name for name in ("teacher", "another-1")}
    for folder in folders.values():
        folder.mkdir()
        for stem, (height, width) in SIZES.items():
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{stem}.png")
    return folders


def picture(folder, stem):
    return np.asarray(Image.open(folder / f"{stem}.png"))


def test_targets_are_kept_beside_hr(photos, teachers):
    prepare(photos, targets=teachers)
    manifest = json.loads((photos / "out/manifest.json").read_text())
    assert manifest["targets"] == ["another-1", "teacher"]
    for number, stem in enumerate("ab"):
        hr, _, _, teacher, another = PreparedImages(photos / "out", ("teacher", "another-1"))[number]
        assert np.array_equal(teacher, picture(teachers["teacher"], stem))
        assert np.array_equal(another, picture(teachers["another-1"], stem))
        assert not np.array_equal(hr, teacher)
    assert len(PreparedImages(photos / "out")[0]) == 3  # who does not ask reads none of it


@pytest.mark.parametrize("degrade", ["none", "real"])
def test_crops_of_targets_come_from_the_draw_of_hr(photos, teachers, degrade):
    """With the photographs themselves as targets each crop of them is the crop of HR; others change nothing else."""
    (photos / "same").mkdir()
    for stem, (height, width) in SIZES.items():
        Image.fromarray(picture(photos / "hr", stem)[:height, :width]).save(photos / f"same/{stem}.png")
    prepare(photos, targets=teachers | {"same": photos / "same"})
    options = {"crop_lr": 6, "candidates": 2, "flips": True, "degrade": degrade}
    batch = PreparedPhotos(photos / "out", **options, targets=("teacher", "same")).batch(0, 3, 16)
    plain = PreparedPhotos(photos / "out", **options).batch(0, 3, 16)
    assert list(batch.targets) == ["teacher", "same"] and plain.targets == {}
    assert torch.equal(batch.targets["same"], batch.hr)
    assert batch.targets["teacher"].shape == batch.hr.shape and not torch.equal(batch.targets["teacher"], batch.hr)
    for name in ("hr", "lr", "structure", "level"):
        assert torch.equal(getattr(batch, name), getattr(plain, name))
    crop = PreparedPhotos(photos / "out", **options, targets=("same",)).crop(0, 5)
    assert len(crop) == 4 and np.array_equal(crop[3], crop[0])


def test_bad_target_pictures_are_named(photos, teachers):
    (teachers["teacher"] / "a.png").unlink()
    Image.new("RGB", (64, 52)).save(teachers["another-1"] / "b.png")
    with pytest.raises(SamDiffSRError) as caught:
        prepare(photos, targets=teachers)
    message = str(caught.value)
    assert "2 files cannot be used" in message
    assert f"{teachers['teacher'] / 'a.png'} is missing" in message
    assert f"{teachers['another-1'] / 'b.png'} is 64x52 pixels, but must be 64x48" in message
    assert not (photos / "out/manifest.json").exists()


def test_a_changed_target_is_prepared_again_and_other_targets_are_other_data(photos, teachers):
    def written():
        return {path.name: path.stat().st_mtime_ns for path in (photos / "out").glob("*.tar")}

    prepare(photos, targets=teachers, images_per_shard=1)
    before = written()
    prepare(photos, targets=teachers, images_per_shard=1)
    assert written() == before
    Image.new("RGB", (40, 48), "red").save(teachers["teacher"] / "a.png")
    prepare(photos, targets=teachers, images_per_shard=1)
    assert sum(time != before[name] for name, time in written().items()) == 1
    assert PreparedImages(photos / "out", ("teacher",))[0][3][0, 0].tolist() == [255, 0, 0]
    for other in ({}, {"teacher": teachers["teacher"]}):
        with pytest.raises(SamDiffSRError, match="prepared with other options"):
            prepare(photos, targets=other)


def test_a_folder_without_targets_is_what_it_was(photos):
    prepare(photos)
    assert "targets" not in json.loads((photos / "out/manifest.json").read_text())
    with pytest.raises(SamDiffSRError, match=r"has no targets 'teacher' \(it has none\): .*--targets teacher=DIR"):
        PreparedPhotos(photos / "out", crop_lr=4, candidates=1, flips=True, targets=("teacher",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hr={}"], "cannot be named 'hr'"),
        (["my.model={}"], "cannot be named 'my.model'"),
        (["teacher"], "must have the form NAME=DIR"),
        (["teacher={}", "teacher={}"], "two folders of the name 'teacher'"),
        (["teacher=nowhere"], "folder nowhere with the targets does not exist"),
    ],
)
def test_bad_options_are_refused(photos, teachers, capsys, options, message):
    words = ["prepare", "-i", str(photos / "hr"), "--masks", str(photos / "masks"), "-o", str(photos / "out")]
    for option in options:
        words += ["--targets", option.format(teachers["teacher"])]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not (photos / "out").exists()


def test_the_command_keeps_targets(photos, teachers):
    words = ["prepare", "-i", str(photos / "hr"), "--masks", str(photos / "masks"), "-o", str(photos / "out")]
    with pytest.raises(SystemExit) as end:
        main([*words, *(word for name, folder in teachers.items() for word in ("--targets", f"{name}={folder}"))])
    assert end.value.code == 0
    assert json.loads((photos / "out/manifest.json").read_text())["targets"] == ["another-1", "teacher"]
