"""The user's own LR images beside their photographs: partners, sizes, shifts, and what training sees of them."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr import SamDiffSRError, imresize
from samdiffsr.cli import main
from samdiffsr.data.dataset import PreparedImages, PreparedPhotos
from samdiffsr.data.example import PrepareOptions
from samdiffsr.data.pairs import phase_correlation, window_shifts
from support import prepare, write_masks


def texture(height, width, seed=0):
    """Smooth random colours whose pixels hang together, as those of a photograph: (height, width, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    fine = rng.integers(-20, 21, (height, width, 1))
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), int)
    return np.clip(large + fine, 0, 255).astype(np.uint8)


@pytest.fixture
def pairs(tmp_path):
    """Photographs a (200x240) and b (160x168) with masks, and LR images of other formats that are lighter, noisy and coded."""
    for folder in ("hr", "masks", "lr"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(1)
    for number, (stem, suffix, height, width) in enumerate((("a", "jpg", 200, 240), ("b", "png", 160, 168))):
        hr = texture(height + 3, width + 1, number)
        Image.fromarray(hr).save(tmp_path / f"hr/{stem}.png")
        lr = imresize(hr[:height, :width], 1 / 4) * 0.8 + 40 + rng.normal(0, 4, (height // 4, width // 4, 3))
        Image.fromarray(lr.clip(0, 255).astype(np.uint8)).save(tmp_path / f"lr/{stem}.{suffix}")
        left = np.zeros(hr.shape[:2], bool)
        left[:, :90] = True
        write_masks(tmp_path / f"masks/{stem}.json", [left])
    return tmp_path


def refused(folder, **options):
    with pytest.raises(SamDiffSRError) as caught:
        prepare(folder, lr=folder / "lr", **options)
    assert not (folder / "out/manifest.json").exists()
    return str(caught.value)


def test_a_folder_has_the_lr_images_as_they_are(pairs):
    made = prepare(pairs, lr=pairs / "lr")
    assert (made.images, made.unchecked, made.without_masks) == (2, 0, 0)
    assert json.loads((pairs / "out/manifest.json").read_text())["lr"] == "own"
    for number, name in enumerate(("a.jpg", "b.png")):
        hr, lr, structure = PreparedImages(pairs / "out")[number]
        assert np.array_equal(lr, np.asarray(Image.open(pairs / "lr" / name)))
        assert hr.shape[:2] == structure.shape == (4 * lr.shape[0], 4 * lr.shape[1])


def test_partners_that_are_missing_are_named(pairs):
    (pairs / "lr/a.jpg").rename(pairs / "lr/c.jpg")
    words = refused(pairs)
    assert f"photograph {pairs / 'hr/a.png'} has no LR image: {pairs / 'lr/a'} of any format does not exist" in words
    assert f"LR image {pairs / 'lr/c.jpg'} has no photograph: {pairs / 'hr/c'} of any format does not exist" in words
    (pairs / "lr/c.jpg").rename(pairs / "lr/b.jpg")
    assert "have one name; rename one" in refused(pairs)


def test_another_ratio_names_both_files(pairs):
    Image.fromarray(texture(80, 84)).save(pairs / "lr/b.png")
    words = refused(pairs)
    assert f"{pairs / 'lr/b.png'} is 84x80 pixels, but must be 42x40" in words and str(pairs / "hr/b.png") in words


@pytest.mark.parametrize(("pixels", "is_refused"), [(0, False), (-2, True), (3, True), (30, True)])
def test_a_shift_is_refused_with_both_names(pairs, pixels, is_refused):
    """Moved by HR pixels, of which one is a quarter of an LR pixel: below, above, and far above the limit."""
    hr = np.asarray(Image.open(pairs / "hr/a.png"))
    Image.fromarray(imresize(np.roll(hr, pixels, axis=1)[:200, :240], 1 / 4)).save(pairs / "lr/a.jpg", quality=95)
    if not is_refused:
        prepare(pairs, lr=pairs / "lr")
        return
    words = refused(pairs)
    assert f"{pairs / 'lr/a.jpg'} is shifted against photograph {pairs / 'hr/a.png'}" in words
    found = float(words.partition(" by ")[2].split()[0])
    assert abs(found - pixels / 4) <= 0.1 and "more than 0.25" in words
    assert prepare(pairs, lr=pairs / "lr", options=PrepareOptions(max_shift=math.inf)).images == 2


def test_another_picture_is_refused(pairs):
    Image.fromarray(texture(40, 42, 9)).save(pairs / "lr/b.png")
    words = refused(pairs)
    assert f"{pairs / 'lr/b.png'} does not show the same picture as photograph {pairs / 'hr/b.png'}" in words


def test_a_zoom_is_found_in_the_corners(pairs):
    """The middle lies where it should; 2 % more zoom moves the corners by a whole LR pixel and more."""
    hr = texture(800, 1600, 4)
    Image.fromarray(hr).save(pairs / "hr/a.png")
    small = Image.fromarray(imresize(hr, 1 / 4))
    zoomed = small.resize((400, 200), Image.Resampling.BICUBIC, box=(4.0, 2.0, 396.0, 198.0))
    zoomed.save(pairs / "lr/a.jpg", quality=95)
    shifts = window_shifts(*(np.asarray(image).mean(axis=2) for image in (small, zoomed)))
    assert len(shifts) == 3 and min(shift.size for shift in shifts) < 0.1
    assert "is shifted" in refused(pairs, options=PrepareOptions(resize_masks=True))


@pytest.mark.parametrize("side", [32, 64, 257])
def test_phase_correlation_finds_fractions(side):
    hr = texture(4 * side, 4 * side)
    one = imresize(hr, 1 / 4).mean(axis=2)
    other = imresize(np.roll(hr, (-3, 2), axis=(0, 1)), 1 / 4).mean(axis=2)
    found = phase_correlation(one, other)
    assert abs(found.down + 0.75) <= 0.1 and abs(found.right - 0.5) <= 0.1 and found.agreement > 0.5
    same = phase_correlation(one, one)
    assert (same.down, same.right) == (0, 0) and same.agreement == pytest.approx(1)


def test_small_and_plain_pictures_are_counted(photos):
    """The photographs of the fixture are 50x41 and 48x64 pixels."""
    (photos / "lr").mkdir()
    for stem, size in {"a": (10, 12), "b": (16, 12)}.items():
        Image.new("RGB", size, "teal").save(photos / f"lr/{stem}.png")
    assert prepare(photos, lr=photos / "lr").unchecked == 2


def test_a_changed_lr_image_or_limit_looks_again(pairs):
    def written():
        return {path.name: path.stat().st_mtime_ns for path in (pairs / "out").glob("*.tar")}

    prepare(pairs, lr=pairs / "lr", images_per_shard=1)
    before = written()
    prepare(pairs, lr=pairs / "lr", images_per_shard=1)
    assert written() == before
    light = np.asarray(Image.open(pairs / "lr/b.png")) // 2
    Image.fromarray(light).save(pairs / "lr/b.png")
    prepare(pairs, lr=pairs / "lr", images_per_shard=1)
    assert sum(time != before[name] for name, time in written().items()) == 1
    assert np.array_equal(PreparedImages(pairs / "out")[1][1], light)
    with pytest.raises(SamDiffSRError, match="prepared with other options"):
        prepare(pairs)


def test_masks_can_be_left_out_and_that_is_said(pairs, capsys):
    words = ["prepare", "-i", str(pairs / "hr"), "--lr", str(pairs / "lr"), "-o", str(pairs / "out")]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and "--missing-masks zero" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*words, "--missing-masks", "zero"])
    assert end.value.code == 0
    err = capsys.readouterr().err
    assert err.count("the structure map of 2 photographs is zero (--missing-masks zero)") == 1
    assert not PreparedImages(pairs / "out")[0][2].any()


def test_batches_have_own_and_synthetic_inputs(pairs):
    """Own LR crops have no known level; of synthetic ones it is that of the degradation, 0 for the exact reduction."""
    prepare(pairs, lr=pairs / "lr")
    options = {"crop_lr": 12, "candidates": 1, "flips": True}
    own, mixed, made, degraded = (
        PreparedPhotos(pairs / "out", **options, synthetic=share, degrade=degrade).batch(0, 0, 24)
        for share, degrade in ((0.0, "none"), (0.5, "none"), (1.0, "none"), (1.0, "real"))
    )
    assert own.level.isnan().all() and (made.level == 0).all()
    assert not degraded.level.isnan().any() and 4 < (degraded.level == 0).sum() < 14
    assert 6 < mixed.level.isnan().sum() < 18
    for number in range(24):
        assert torch.equal(own.hr[number], made.hr[number])
        source = own if mixed.level[number].isnan() else made
        assert torch.equal(mixed.lr[number], source.lr[number])
        assert not torch.equal(own.lr[number], made.lr[number])
    with pytest.raises(SamDiffSRError, match="max_shift is -1"):
        PrepareOptions(max_shift=-1)


def test_synthetic_inputs_equal_those_of_a_folder_without_own_images(pairs):
    prepare(pairs, lr=pairs / "lr")
    (pairs / "out").rename(pairs / "own")
    prepare(pairs)
    options = {"crop_lr": 12, "candidates": 1, "flips": True, "degrade": "real"}
    own = PreparedPhotos(pairs / "own", **options, synthetic=1.0).batch(0, 5, 12)
    plain = PreparedPhotos(pairs / "out", **options).batch(0, 5, 12)
    for name in ("hr", "lr", "structure", "level"):
        assert torch.equal(getattr(own, name), getattr(plain, name))
