"""Mask files, the parts of the mask generator, the Felzenszwalb segmenter and the previews."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco

from samdiffsr import SamDiffSRError
from samdiffsr.masks import automatic
from samdiffsr.masks.automatic import GeneratorOptions, generate_masks, suppress
from samdiffsr.masks.felzenszwalb import FelzenszwalbSegmenter
from samdiffsr.masks.preview import contact_sheet, overlay
from samdiffsr.masks.records import decode, read_records, write_records
from samdiffsr.masks.region import Region, box_of, xywh
from samdiffsr.masks.rle import decode_mask, encode_mask, encode_run_lengths, run_lengths

bitmaps = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
boxes = hnp.arrays(np.int64, st.tuples(st.integers(0, 30), st.just(4)), elements=st.integers(0, 20)).map(
    lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1)
)


def region_of(mask: np.ndarray, **scores) -> Region:
    height, width = mask.shape
    return Region(
        encode_mask(mask), (height, width), int(mask.sum()), xywh(box_of(mask)), (0, 0, width, height), **scores
    )


def lengths_of(mask: np.ndarray) -> list[int]:
    """Plain run lengths, pixel by pixel."""
    runs, now = [0], False
    for value in mask.T.ravel().tolist():
        if value != now:
            runs.append(0)
            now = value
        runs[-1] += 1
    return runs


# --- run lengths and files -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(bitmaps)
def test_run_lengths_round_trip(mask):
    counts = encode_mask(mask)
    assert np.array_equal(decode_mask(counts, mask.shape), mask)
    assert run_lengths(counts, mask.shape).tolist() == lengths_of(mask)
    assert encode_run_lengths(lengths_of(mask), mask.shape) == counts


def test_run_lengths_of_large_images():
    mask = np.zeros((6000, 9000), np.uint8)
    mask[5999, 8999] = 1
    counts = encode_mask(mask)
    assert run_lengths(counts, mask.shape).tolist() == [6000 * 9000 - 1, 1]


@settings(max_examples=200, deadline=None)
@given(bitmaps, st.data())
def test_damaged_counts_are_refused_or_fill_the_image(mask, data):
    """Whatever the characters are: an error of ours, or runs that pycocotools may safely decode."""
    counts = list(encode_mask(mask))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(counts)))
        counts[place : place + data.draw(st.integers(0, 1))] = data.draw(st.text("0123AOPo`m/p\x00é", max_size=2))
    try:
        runs = run_lengths("".join(counts), mask.shape)
    except SamDiffSRError:
        return
    assert runs.sum() == mask.size
    assert decode_mask("".join(counts), mask.shape).sum() == runs[1::2].sum()


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ("", "cut short"),
        ("P", "cut short"),
        ("5", "cover 5 pixels"),
        ("0p", "outside '0' to 'o'"),
        ("\ud800", "outside '0' to 'o'"),
        ("o" * 40 + "0", "large enough"),
        ("5KT1", "backwards"),
    ],
)
def test_counts_that_lie_are_told_with_their_file(tmp_path, counts, told):
    file = tmp_path / "m.json"
    file.write_text(json.dumps([{"segmentation": {"size": [4, 5], "counts": counts}}]))
    with pytest.raises(SamDiffSRError, match="record 0 of mask file") as caught:
        read_records(file, (4, 5))
    assert told in str(caught.value) and "m.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty (0 bytes)"),
        (b" \n", "empty (2 bytes)"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'[{"segmentation": {"size": [4, 5], "counts": "d0"}}', "cut short"),
        (b'[{"segmentation": {"size": [4, 5], "counts": [20]}}]', "run-length"),
        (b'[{"segmentation": {"size": [4.0, 5], "counts": "d0"}}]', "[4.0, 5]"),
        (b'[{"segmentation": {"size": [4.5, 5], "counts": "d0"}}]', "[4.5, 5]"),
    ],
)
def test_files_that_are_no_masks_are_one_sentence(tmp_path, content, told):
    file = tmp_path / "m.json"
    file.write_bytes(content)
    with pytest.raises(SamDiffSRError) as caught:
        read_records(file, (4, 5))
    assert told in str(caught.value) and "m.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_in_place_of_a_mask_file(tmp_path):
    with pytest.raises(SamDiffSRError, match="cannot be read"):
        read_records(tmp_path, (4, 5))


def test_overlapping_masks_are_fine(tmp_path):
    mask = np.ones((3, 4), bool)
    write_records(tmp_path / "m.json", [region_of(mask), region_of(mask)])
    assert np.stack(list(decode(read_records(tmp_path / "m.json", (3, 4))))).sum() == 24


def test_the_file_is_what_segment_anything_writes(tmp_path):
    """Keys, their order and types as amg.py --convert-to-rle writes; pycocotools reads it, and what it writes we read."""
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:6] = True
    write_records(tmp_path / "m.json", [region_of(mask, predicted_iou=0.9, point=(2.5, 1.5), stability_score=0.97)])
    assert (tmp_path / "m.json").read_text() == (
        '[{"segmentation": {"size": [5, 7], "counts": "<22N0d0"}, "area": 8, "bbox": [2, 1, 3, 1], '
        '"predicted_iou": 0.9, "point_coords": [[2.5, 1.5]], "stability_score": 0.97, "crop_box": [0, 0, 7, 5]}]'
    ).replace("<22N0d0", encode_mask(mask))
    (record,) = json.loads((tmp_path / "m.json").read_text())
    assert np.array_equal(coco.decode(record["segmentation"]), mask)
    assert coco.area(record["segmentation"]) == record["area"]
    theirs = coco.encode(np.asfortranarray(mask, np.uint8))
    theirs["counts"] = theirs["counts"].decode()
    (tmp_path / "t.json").write_text(json.dumps([{"segmentation": theirs}]))
    assert np.array_equal(next(decode(read_records(tmp_path / "t.json", (5, 7)))), mask)


# --- the generator's parts -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(bitmaps)
def test_boxes_contain_their_mask_and_are_tight(mask):
    x0, y0, x1, y1 = box_of(mask)
    assert mask[y0 : y1 + 1, x0 : x1 + 1].sum() == mask.sum()
    if mask.any():
        assert mask[y0].any() and mask[y1].any() and mask[:, x0].any() and mask[:, x1].any()
        ours, theirs = xywh(box_of(mask)), coco.toBbox(coco.encode(np.asfortranarray(mask, np.uint8))).tolist()
        assert [ours[0], ours[1], ours[2] + 1, ours[3] + 1] == theirs
    else:
        assert (x0, y0, x1, y1) == (0, 0, 0, 0)


@settings(max_examples=60, deadline=None)
@given(boxes, st.data())
def test_suppression_is_idempotent_and_leaves_no_pair(found, data):
    scores = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(found), max_size=len(found))), float)
    threshold = data.draw(st.sampled_from([0.0, 0.25, 0.75, 1.0]))
    kept = suppress(found, scores, threshold)
    assert suppress(found[kept], scores[kept], threshold).tolist() == list(range(len(kept)))
    assert sorted(kept, key=lambda i: (-scores[i], i)) == kept.tolist()
    for index in set(range(len(found))) - set(kept.tolist()):  # every box that went, went for a better one
        better = [k for k in kept if (-scores[k], k) < (-scores[index], index)]
        assert any(iou(found[k], found[index]) > threshold for k in better)
    for a in kept:
        assert all(iou(found[a], found[b]) <= threshold for b in kept if a != b)


def iou(a, b) -> float:
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def test_equal_scores_keep_their_order():
    apart = np.array([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]])
    assert suppress(apart, np.array([1.0, 1.0, 1.0]), 0.5).tolist() == [0, 1, 2]
    many = np.arange(400)[:, None] + np.array([0, 0, 1, 1])
    assert suppress(many, np.ones(400), 0.5).tolist() == list(range(400))
    same = np.array([[0, 0, 2, 2]] * 3)
    assert suppress(same, np.array([1.0, 2.0, 2.0]), 0.5).tolist() == [1]


@settings(max_examples=50, deadline=None)
@given(bitmaps, st.integers(1, 30))
def test_holes_and_islands(mask, least):
    """Against a flood fill written out: small parts change side, all others stay; of small parts only, one stays."""
    filled = automatic.without_holes(mask, least)
    parts = [part for part in flood(~mask) if len(part) < least]
    expected = mask.copy()
    for part in parts:
        expected[tuple(np.array(part).T)] = True
    assert np.array_equal(filled, expected)
    cleaned = automatic.without_islands(mask, least)
    large = [part for part in flood(mask) if len(part) >= least]
    if large or not mask.any():
        expected = np.zeros_like(mask)
        for part in large:
            expected[tuple(np.array(part).T)] = True
        assert np.array_equal(cleaned, expected)
    else:
        assert cleaned.sum() == max(map(len, flood(mask)))


def flood(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """The 8-connected parts of a mask."""
    left, parts = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        part, todo = [], [left.pop()]
        while todo:
            y, x = todo.pop()
            part.append((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        parts.append(part)
    return parts


class Discs:
    """A model that sees a disc of radius 12 around each point, with a hole and a speck, and two poorer answers."""

    def embed(self, crop):
        self.size = crop.shape[:2]
        return self

    def predict(self, points):
        import torch

        height, width = self.size
        y, x = np.mgrid[:height, :width] + 0.5
        away = np.stack([np.hypot(x - px, y - py) for px, py in points])
        best = 12.0 - away
        best[away < 1.5] = -9
        best[:, 0, 0] = 9
        logits = np.stack([best, best - 1, 0 * best - 5], axis=1)
        return torch.tensor(logits), torch.tensor([[0.9, 0.89, 0.2]] * len(points))

    def enlarge(self, logits):
        return logits


@pytest.mark.parametrize("least", [0, 30])
def test_small_regions_are_mended(least):
    options = GeneratorOptions(points_per_side=2, stability_score_thresh=0.5, min_mask_region_area=least)
    found = generate_masks(np.zeros((64, 64, 3), np.uint8), Discs(), options)
    masks = [decode_mask(region.counts, region.size) for region in found]
    assert len(masks) == 4
    for mask, region in zip(masks, found, strict=True):
        assert region.area == mask.sum() and region.bbox == xywh(box_of(mask))
        x, y = region.point
        assert mask[0, 0] == (least == 0)
        assert mask[int(y), int(x)] == (least > 0)


def test_batches_do_not_change_the_masks():
    image = np.zeros((64, 80, 3), np.uint8)
    results = [
        generate_masks(
            image, Discs(), GeneratorOptions(5, points_per_batch=n, stability_score_thresh=0.5, crop_n_layers=1)
        )
        for n in (1, 7, 64)
    ]
    assert results[0] == results[1] == results[2] != []


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 3))
def test_crops_cover_the_image(height, width, layers):
    for layer in range(layers + 1):
        seen = np.zeros((height, width), bool)
        crops = [box for box, level in automatic.crop_boxes((height, width), layers, 512 / 1500) if level == layer]
        assert 1 <= len(crops) <= 4**layer
        for x0, y0, x1, y1 in crops:
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
            seen[y0:y1, x0:x1] = True
        assert seen.all()


@pytest.mark.parametrize(
    "bad",
    [
        {"points_per_side": 0},
        {"points_per_batch": 0},
        {"crop_n_layers": -1},
        {"stability_score_offset": float("nan")},
        {"crop_overlap_ratio": 1.0},
        {"points_per_side": 4, "crop_n_layers": 3, "crop_n_points_downscale_factor": 2},
    ],
)
def test_options_that_cannot_work(bad):
    with pytest.raises(SamDiffSRError, match=next(iter(bad)).replace("points_per_side", "points.*side")):
        GeneratorOptions(**bad)


# --- felzenszwalb ----------------------------------------------------------------------------------------------------


def scene() -> np.ndarray:
    """Two flat fields and a disc with noise, uint8 (120, 160, 3)."""
    y, x = np.mgrid[:120, :160]
    image = np.where((x < 80)[..., None], (40, 60, 200), (200, 180, 40))
    image[np.hypot(y - 60, x - 80) < 30] = (30, 160, 60)
    return (image + np.random.default_rng(0).integers(-5, 6, image.shape)).astype(np.uint8)


@pytest.mark.parametrize("pixels", [10**6, 9000])
def test_felzenszwalb_regions_cover_the_image_once(pixels):
    segment = FelzenszwalbSegmenter(scale=300, min_size=500, pixels=pixels)
    found = segment(scene())
    masks = np.stack([decode_mask(region.counts, region.size) for region in found])
    assert (masks.sum(0) == 1).all()
    assert len(found) == 3
    assert [region.area for region in found] == sorted((mask.sum() for mask in masks), reverse=True)
    for region, mask in zip(found, masks, strict=True):
        assert region.counts == encode_mask(mask) and region.bbox == xywh(box_of(mask))
        assert region.crop_box == (0, 0, 160, 120)
    truth = np.hypot(*(np.mgrid[:120, :160] - np.array([60, 80])[:, None, None])) < 30
    disc = masks[:, 60, 80].argmax()
    assert (masks[disc] & truth).sum() / (masks[disc] | truth).sum() > 0.85
    assert segment(scene()) == found


@pytest.mark.parametrize(
    "bad",
    [{"scale": np.inf}, {"sigma": np.inf}, {"sigma": np.nan}, {"sigma": 1e30}, {"min_size": -1}, {"min_size": 2**31}],
)
def test_felzenszwalb_options_that_cannot_work(bad):
    ((name, value),) = bad.items()
    with pytest.raises(SamDiffSRError, match=f"{name} is {value}, but must be".replace("+", ".")):
        FelzenszwalbSegmenter(**bad)


def test_felzenszwalb_options_at_their_limits():
    assert len(FelzenszwalbSegmenter(scale=2**31 - 1, sigma=1000, min_size=2**31 - 1)(scene()[:9, :9])) == 1


def test_felzenszwalb_records_leave_out_what_was_not_estimated():
    (region,) = FelzenszwalbSegmenter()(np.zeros((1, 1, 3), np.uint8))
    assert list(region.record()) == ["segmentation", "area", "bbox", "crop_box"]


# --- previews --------------------------------------------------------------------------------------------------------


def test_overlay_colours_neighbours_apart_and_leaves_the_rest():
    photo = np.full((40, 60, 3), 100, np.uint8)
    masks = [np.zeros((40, 60), bool) for _ in range(3)]
    masks[0][5:35, 5:30], masks[1][5:35, 30:55], masks[2][15:20, 10:15] = True, True, True
    out = overlay(photo, [region_of(mask).record() for mask in masks]).astype(int)
    left, right, inner, outside = out[30, 10], out[30, 40], out[17, 12], out[1, 1]
    assert outside.tolist() == [100, 100, 100]
    for a, b in [(left, right), (left, inner), (inner, outside)]:
        assert abs(a - b).max() > 40
    assert (out[20, 29] == 255).all()  # the border between the two


def test_overlay_of_a_large_photograph_is_small():
    photo = np.zeros((30, 3000, 3), np.uint8)
    assert overlay(photo, [region_of(np.ones((30, 3000), bool)).record()]).shape == (10, 1024, 3)
    assert overlay(photo[:5, :5], []).shape == (5, 5, 3)


@pytest.mark.parametrize("count", [1, 5, 60])
def test_contact_sheet(tmp_path, count):
    for number in range(count):
        Image.new("RGB", (30 + number, 20), "teal").save(tmp_path / f"{number:02}.png")
    contact_sheet(sorted(tmp_path.iterdir()), tmp_path / "sheet.png")
    width, height = Image.open(tmp_path / "sheet.png").size
    shown = (width // 240) * (height // 258)
    assert min(count, 48) <= shown < min(count, 48) + width // 240
