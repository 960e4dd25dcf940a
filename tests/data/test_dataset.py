"""Masks on disk and aligned crops of a prepared folder."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr import SamDiffSRError, imresize
from samdiffsr.data.dataset import JointCrop, PreparedImages, PreparedPhotos
from samdiffsr.data.example import PrepareOptions
from samdiffsr.data.prepare import prepare_folder
from samdiffsr.masks.records import decode, read_records
from support import prepare, write_masks


def test_masks_round_trip(tmp_path):
    masks = np.random.default_rng(1).random((3, 7, 9)) < 0.5
    write_masks(tmp_path / "m.json", masks)
    assert np.array_equal(np.stack(list(decode(read_records(tmp_path / "m.json", (7, 9))))), masks)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "missing"),
        ("{", "cannot be read"),
        ("{}", "dict"),
        ("[3]", "record 0"),
        ('[{"segmentation": [[1, 2]]}]', "record 0"),
        ('[{"segmentation": {"size": [9, 7], "counts": "0"}}]', "[9, 7]"),
    ],
)
def test_bad_mask_files_are_named(tmp_path, content, reason):
    file = tmp_path / "m.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SamDiffSRError) as caught:
        read_records(file, (7, 9))
    assert reason in str(caught.value)
    assert "m.json" in str(caught.value)


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


def test_a_mark_stays_in_one_place_from_file_to_batch(tmp_path):
    """One photograph black but for a white square, which also is its only region: after preparation, shard, crop, flip
    and rotation, HR, LR and structure have it at the same place, by its centre of mass."""
    (tmp_path / "hr").mkdir()
    (tmp_path / "masks").mkdir()
    mark = np.zeros((90, 121), bool)
    mark[44:48, 60:64] = True  # the HR pixels of LR pixel (11, 15)
    Image.fromarray(np.repeat(mark[..., None] * np.uint8(255), 3, axis=2)).save(tmp_path / "hr/a.png")
    write_masks(tmp_path / "masks/a.json", [mark])
    prepare(tmp_path)
    data = PreparedPhotos(tmp_path / "out", crop_lr=17, candidates=1, flips=True)

    def centre(image):
        weight = image / image.sum()
        y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
        return np.array([(weight * y).sum(), (weight * x).sum()])

    seen = set()
    for index in range(200):
        batch = data.batch(0, index, 1)
        hr, lr, structure = batch.hr[0], batch.lr[0], batch.structure[0]
        here = centre((hr.numpy()[0] + 1) / 2)
        if here.min() < 16 or here.max() > 52:  # the border cuts the blurred mark of the LR image off
            continue
        np.testing.assert_allclose(centre(structure.numpy()[0]), here, atol=1e-3)
        np.testing.assert_allclose(4 * centre((lr.numpy()[0] + 1) / 2), here, atol=0.05)
        seen.add(tuple(here.round().tolist()))
    assert len(seen) > 20


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


def test_the_global_batch_does_not_depend_on_its_division(photos):
    """Processes and accumulation cut one batch into runs of examples."""
    prepare(photos, images_per_shard=1)
    data = PreparedPhotos(photos / "out", crop_lr=8, candidates=3, flips=True, crops_per_image=3)
    whole = data.batch(7, 60, 12)
    for size in (1, 2, 3, 4):
        parts = [data.batch(7, first, size) for first in range(60, 72, size)]
        assert torch.cat([part.hr for part in parts]).equal(whole.hr)
        assert torch.cat([part.structure for part in parts]).equal(whole.structure)
    one = torch.from_numpy(data.crop(7, 65)[0].transpose(2, 0, 1).copy())
    assert torch.allclose(one / 127.5 - 1, whole.hr[5], atol=1e-6)
    assert (one == 255).equal(whole.hr[5] == 1)
    assert (one == 0).equal(whole.hr[5] == -1)


def test_images_are_drawn_by_the_root_of_their_area_and_in_runs(photos):
    prepare(photos)
    data = PreparedPhotos(photos / "out", crop_lr=4, candidates=1, flips=True)
    share = np.mean([data.stem(0, index) == "a" for index in range(4000)])
    expected = np.sqrt(12 * 10) / (np.sqrt(12 * 10) + np.sqrt(12 * 16))
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)
    runs = PreparedPhotos(photos / "out", crop_lr=4, candidates=1, flips=True, crops_per_image=5)
    stems = [runs.stem(0, index) for index in range(200)]
    assert all(len(set(stems[first : first + 5])) == 1 for first in range(0, 200, 5))
    assert len(set(stems)) == 2


def test_places_and_orientations_are_uniform(photos):
    prepare(photos)
    data = PreparedPhotos(photos / "out", crop_lr=9, candidates=1, flips=True)
    drawn = [crop for crop, (_, lr, _) in data._drawn(0, 0, 4000) if lr.shape[:2] == (12, 16)]
    for values, choices in (
        ([crop.top_lr for crop in drawn], 4),
        ([crop.left_lr for crop in drawn], 8),
        ([crop.orientation for crop in drawn], 8),
    ):
        share = np.bincount(values, minlength=choices) / len(drawn)
        assert len(share) == choices
        assert np.abs(share - 1 / choices).max() < 5 * np.sqrt(1 / choices / len(drawn))


def test_a_prepared_folder_goes_to_another_process(photos):
    prepare(photos)
    data = PreparedPhotos(photos / "out", crop_lr=8, candidates=1, flips=True)
    batch = data.batch(0, 0, 4)
    content = pickle.dumps(data)
    assert len(content) < 5000
    assert pickle.loads(content).batch(0, 0, 4).hr.equal(batch.hr)


def test_a_folder_that_is_not_what_its_manifest_says_is_refused(photos):
    prepare(photos)
    (index,) = (photos / "out").glob("shard-*.json")
    good = index.read_text()
    index.write_text(good.replace('"height_lr": 12', '"height_lr": 11'))
    with pytest.raises(SamDiffSRError, match="not the one in the manifest"):
        PreparedImages(photos / "out")
    index.write_text(good)
    (shard,) = (photos / "out").glob("shard-*.tar")
    shard.unlink()
    with pytest.raises(SamDiffSRError, match=r"shard-\w+\.tar cannot be read"):
        PreparedImages(photos / "out")
    (photos / "out/manifest.json").write_text('{"schema": 1, "images": ["a", "b"]}')
    with pytest.raises(SamDiffSRError, match="another version"):
        PreparedImages(photos / "out")


def test_degraded_inputs(photos):
    """HR and structure stay; LR is the degraded crop with its level, clean ones bit for bit; each by its own index."""
    prepare(photos)
    options = {"crop_lr": 8, "candidates": 2, "flips": True}
    plain = PreparedPhotos(photos / "out", **options).batch(3, 0, 60)
    real = PreparedPhotos(photos / "out", **options, degrade="real")
    batch, later = real.batch(3, 0, 60), real.batch(3, 40, 20)
    assert batch.hr.equal(plain.hr) and batch.structure.equal(plain.structure)
    assert (plain.level == 0).all()
    assert all(getattr(batch, name)[40:].equal(getattr(later, name)) for name in ("hr", "lr", "structure", "level"))
    clean = batch.level == 0
    assert 10 < clean.sum() < 30
    assert batch.lr[clean].equal(plain.lr[clean])
    assert ((batch.lr - plain.lr).abs().amax(dim=(1, 2, 3)) > 0)[~clean].all()
    assert batch.lr.abs().max() <= 1
    single = real.crop(3, int(torch.argmax(batch.level)))
    there = batch.lr[torch.argmax(batch.level)].permute(1, 2, 0)
    assert np.array_equal(((there.numpy() + 1) * 127.5).round().astype(np.uint8), single[1])
    for share in (0.0, 1.0):
        chosen = PreparedPhotos(photos / "out", **options, degrade="real", clean_share=share).batch(3, 0, 20)
        assert ((chosen.level == 0) == (share == 1)).all()
    with pytest.raises(SamDiffSRError, match="one of 'none', 'real'"):
        PreparedPhotos(photos / "out", **options, degrade="heavy")


def test_degraded_inputs_lie_where_the_clean_ones_do(photos):
    """In every orientation, also at the image's border: a light degradation is closer to its own place than to any other."""
    smooth = imresize(np.random.default_rng(0).uniform(0, 255, (6, 8, 3)), size=(48, 64)).clip(0, 255).astype(np.uint8)
    Image.fromarray(smooth).save(photos / "hr/b.png")
    (photos / "hr/a.png").unlink()
    prepare(photos)
    options = {"crop_lr": 12, "candidates": 1, "flips": True}
    plain = PreparedPhotos(photos / "out", **options).batch(0, 0, 200).lr
    batch = PreparedPhotos(photos / "out", **options, degrade="real").batch(0, 0, 200)
    light = [number for number in range(200) if 0 < batch.level[number] < 0.2]
    assert len(light) > 30
    for number in light:
        lr, wanted = batch.lr[number], plain[number]
        own = (lr - wanted).square().mean()
        assert own < min((lr - wanted.flip(axes)).square().mean() for axes in ((1,), (2,), (1, 2)))
        assert own < (lr - wanted.transpose(1, 2)).square().mean()
        assert own < min((lr - wanted.roll(shift, axis)).square().mean() for shift in (-1, 1) for axis in (1, 2))


@pytest.mark.parametrize(("top", "left"), [(0, 0), (3, 5), (1, 9), (4, 10)])
def test_a_margin_is_the_image_itself_and_mirrored_beyond_it(top, left):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    wide = np.pad(image, ((32, 32), (32, 32), (0, 0)), "symmetric")
    found = JointCrop(top, left, 6).with_margin(image, 3)
    assert np.array_equal(found, wide[32 + 4 * top - 12 : 32 + 4 * top + 36, 32 + 4 * left - 12 : 32 + 4 * left + 36])


@pytest.mark.parametrize("encoding", ["cosine", "sincos", "linear"])
def test_maps_of_an_encoding_whose_formula_changed_are_refused(photos, encoding):
    """A folder from before the released formulas says nothing of them. Nothing reads it, and nothing is added to it."""
    options = PrepareOptions(encoding=encoding)
    prepare_folder(photos / "hr", photos / "masks", photos / "out", options=options)
    assert PreparedImages(photos / "out").structure["encoding"] == encoding
    file = photos / "out/manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["structure"]["formulas"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(SamDiffSRError, match=f"encoding '{encoding}' when that was another formula; prepare it again"):
        PreparedImages(photos / "out")
    with pytest.raises(SamDiffSRError, match="another formula"):
        prepare_folder(photos / "hr", photos / "masks", photos / "out", options=options)


def test_older_maps_of_rope_are_still_read(photos):
    prepare(photos)
    assert json.loads((photos / "out/manifest.json").read_text())["structure"] == {
        "encoding": "rope",
        "mean_over": "region",
        "overlap": "sum",
    }
    assert PreparedImages(photos / "out").structure["encoding"] == "rope"
