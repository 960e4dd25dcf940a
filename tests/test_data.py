"""Masks on disk, preparation and aligned crops."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from samdiffsr import SamDiffSRError, imresize, structure_map
from samdiffsr.data.dataset import PreparedPhotos
from samdiffsr.data.prepare import prepare_folder
from samdiffsr.data.transforms import JointCrop
from samdiffsr.masks.store import decode, read_records


def write_masks(path, masks):
    """A mask file as segment-anything writes it."""
    records = []
    for mask in masks:
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        size, counts = [int(n) for n in rle["size"]], rle["counts"].decode()
        records.append({"segmentation": {"size": size, "counts": counts}, "area": int(mask.sum())})
    path.write_text(json.dumps(records))


@pytest.fixture
def photos(tmp_path):
    """Two photographs, 50x41 and 48x64 (height x width), each with two regions; returns the folder of images and masks."""
    (tmp_path / "hr").mkdir()
    (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    for stem, (height, width) in {"a": (50, 41), "b": (48, 64)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"hr/{stem}.png")
        left = np.zeros((height, width), bool)
        left[:, :17] = True
        write_masks(tmp_path / f"masks/{stem}.json", [left, ~left])
    return tmp_path


def prepare(folder, **options):
    return prepare_folder(folder / "hr", folder / "masks", folder / "out", **options)


def test_masks_round_trip(tmp_path):
    masks = np.random.default_rng(1).random((3, 7, 9)) < 0.5
    write_masks(tmp_path / "m.json", masks)
    assert np.array_equal(np.stack(list(decode(read_records(tmp_path / "m.json", (7, 9))))), masks)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "missing"),
        ("{", "cannot be read"),
        ("{}", "dict"),
        ("[3]", "record 0"),
        ('[{"segmentation": [[1, 2]]}]', "record 0"),
        ('[{"segmentation": {"size": [9, 7], "counts": "0"}}]', "[9, 7]"),
    ],
)
def test_bad_mask_files_are_named(tmp_path, content, told):
    file = tmp_path / "m.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SamDiffSRError) as caught:
        read_records(file, (7, 9))
    assert told in str(caught.value)
    assert "m.json" in str(caught.value)


def test_preparation(photos):
    assert prepare(photos) == 2
    hr = np.asarray(Image.open(photos / "hr/a.png"))
    cropped = np.load(photos / "out/a.hr.npy")
    assert np.array_equal(cropped, hr[:48, :40])
    assert np.array_equal(np.load(photos / "out/a.lr.npy"), imresize(hr[:48, :40], 1 / 4))
    left = np.zeros((50, 41), bool)
    left[:, :17] = True
    expected = structure_map(np.stack([left, ~left]))[:48, :40]
    np.testing.assert_allclose(np.load(photos / "out/a.structure.npy"), expected, atol=1e-3)
    assert json.loads((photos / "out/manifest.json").read_text())["images"] == ["a", "b"]


def test_preparation_continues_and_refuses_other_options(photos):
    prepare(photos)
    kept = (photos / "out/b.hr.npy").stat().st_mtime_ns
    (photos / "out/a.structure.npy").unlink()
    prepare(photos)
    assert (photos / "out/a.structure.npy").exists()
    assert (photos / "out/b.hr.npy").stat().st_mtime_ns == kept
    with pytest.raises(SamDiffSRError, match="other options"):
        prepare(photos, options={"encoding": "linear"})


def test_a_missing_mask_file_is_an_error(photos):
    (photos / "masks/b.json").unlink()
    with pytest.raises(SamDiffSRError, match=r"b\.json is missing"):
        prepare(photos)
    with pytest.raises(SamDiffSRError, match="unfinished"):
        PreparedPhotos(photos / "out", crop_lr=4, candidates=1, flips=True)


@pytest.mark.parametrize("option", ["encoding", "mean_over", "overlap"])
def test_unknown_structure_options_leave_no_folder(photos, option):
    with pytest.raises(SamDiffSRError, match=option):
        prepare(photos, options={option: "polar"})
    assert not (photos / "out").exists()


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "hr").mkdir()
    with pytest.raises(SamDiffSRError, match="no image"):
        prepare(tmp_path)


@pytest.mark.parametrize("orientation", range(8))
def test_one_marked_pixel_stays_in_one_place(orientation):
    """HR, LR and structure carry a mark at the same scene point; after crop, flip and rotation it is still the same."""
    lr, hr, structure = np.zeros((12, 15, 3)), np.zeros((48, 60, 3)), np.zeros((48, 60))
    lr[7, 9], hr[28:32, 36:40], structure[28:32, 36:40] = 1, 1, 1
    crop = JointCrop(top_lr=5, left_lr=6, crop_lr=6, orientation=orientation)
    small, large, e = crop.apply(lr, 1), crop.apply(hr, 4), crop.apply(structure, 4)
    assert small.shape == (6, 6, 3)
    assert small.sum() == 3
    (y, x, _), *_ = np.argwhere(small)
    for image in (large, e[..., None]):
        marked = np.argwhere(image[..., 0])
        assert marked.min(0).tolist() == [4 * y, 4 * x]
        assert marked.max(0).tolist() == [4 * y + 3, 4 * x + 3]


def test_the_eight_orientations_differ():
    image = np.arange(36).reshape(6, 6)
    seen = {JointCrop(0, 0, 6, orientation).apply(image, 1).tobytes() for orientation in range(8)}
    assert len(seen) == 8


def test_crops_are_repeatable_aligned_and_in_range(photos):
    prepare(photos)
    data = PreparedPhotos(photos / "out", crop_lr=8, candidates=2, flips=True)
    batch, again = data.batch(3, 10, 4), data.batch(3, 12, 2)
    assert batch.hr.shape == (4, 3, 32, 32)
    assert batch.lr.shape == (4, 3, 8, 8)
    assert batch.structure.shape == (4, 1, 32, 32)
    assert batch.hr[2:].equal(again.hr)
    assert not batch.hr.equal(data.batch(4, 10, 4).hr)
    assert -1 <= float(batch.hr.min()) < float(batch.hr.max()) <= 1
    # LR is the bicubic reduction of its own HR crop wherever the crop's border does not reach
    hr = np.round((batch.hr[0].permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
    inner = imresize(hr, 1 / 4)[3:-3, 3:-3]
    lr = np.round((batch.lr[0].permute(1, 2, 0).numpy() + 1) * 127.5)[3:-3, 3:-3]
    assert np.abs(inner.astype(int) - lr).max() <= 1


def test_texture_sampling_prefers_texture(photos):
    flat = np.asarray(Image.open(photos / "hr/b.png")).copy()
    flat[:, :48] = 128
    Image.fromarray(flat).save(photos / "hr/b.png")
    (photos / "hr/a.png").unlink()
    prepare(photos)
    spread = {}
    for candidates in (1, 8):
        data = PreparedPhotos(photos / "out", crop_lr=4, candidates=candidates, flips=False)
        spread[candidates] = np.mean([data.crop(0, index)[1].std() for index in range(40)])
    assert spread[8] > 1.5 * spread[1]


def test_images_too_small_for_a_crop_are_counted(photos):
    prepare(photos)
    assert PreparedPhotos(photos / "out", crop_lr=11, candidates=1, flips=False).left_out == 1
    with pytest.raises(SamDiffSRError, match="52x52"):
        PreparedPhotos(photos / "out", crop_lr=13, candidates=1, flips=False)
