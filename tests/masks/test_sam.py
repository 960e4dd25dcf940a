"""The mask generator over SAM, SAM-HQ and SAM 2: real tiny networks against calling them directly, point by point."""

import sys
import types

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from pycocotools import mask as coco
from torch.nn import functional as F

from masks.tiny_sam import tiny_sam
from samdiffsr import SamDiffSRError
from samdiffsr.masks.automatic import GeneratorOptions, generate_masks
from samdiffsr.masks.sam import SamPointModel, SamRecipe, load_sam

KINDS = ("sam", "sam_hq", "sam2")


@pytest.fixture(scope="module", params=KINDS)
def network(request):
    return tiny_sam(request.param).double()  # wide weights amplify rounding


def blocks(rows: int = 6, columns: int = 9, size: int = 10) -> np.ndarray:
    """A patchwork of colours, uint8 (rows * size, columns * size, 3)."""
    colours = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return np.kron(colours, np.ones((size, size, 1), np.uint8))


def plainly(network, image: np.ndarray, points: list[tuple[float, float]]) -> list[tuple[np.ndarray, float, float]]:
    """Mask, predicted IoU and stability of every point's three masks: one whole forward pass of the network a point."""
    height, width = image.shape[:2]
    if isinstance(network, transformers.Sam2Model):
        new_height = new_width = 64
    else:
        new_height, new_width = round(64 * height / max(height, width)), round(64 * width / max(height, width))
    small = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.BILINEAR)).astype(np.float64)
    pixels = np.zeros((1, 3, 64, 64))
    for c, (mean, std) in enumerate([(123.675, 58.395), (116.28, 57.12), (103.53, 57.375)]):
        pixels[0, c, :new_height, :new_width] = (small[..., c] - mean) / std
    results = []
    for x, y in points:
        point = torch.tensor([[[[x * new_width / width, y * new_height / height]]]], dtype=torch.float64)
        with torch.no_grad():
            out = network(pixel_values=torch.tensor(pixels), input_points=point)
        for k in range(3):
            logits = out.pred_masks[:, 0, k][None]
            if not isinstance(network, transformers.Sam2Model):
                logits = F.interpolate(logits, (64, 64), mode="bilinear")[..., :new_height, :new_width]
            logits = F.interpolate(logits, (height, width), mode="bilinear")[0, 0].numpy()
            outer = (logits > -1).sum()
            stability = (logits > 1).sum() / outer if outer else 0.0
            results.append((logits > 0, out.iou_scores[0, 0, k].item(), stability))
    return results


def grid(side: int, width: int, height: int) -> list[tuple[float, float]]:
    return [((i + 0.5) / side * width, (j + 0.5) / side * height) for j in range(side) for i in range(side)]


def tight_box(mask: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max(), ys.max()]


def plain_nms(boxes: list, scores: list, threshold: float) -> list[int]:
    """Greedy suppression, pair by pair."""
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        a = boxes[index]
        for other in kept:
            b = boxes[other]
            shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
            if both and shared / both > threshold:
                break
        else:
            kept.append(index)
    return kept


def decoded(region) -> np.ndarray:
    return coco.decode({"size": list(region.size), "counts": region.counts}).astype(bool)


@pytest.mark.parametrize("shape", [(6, 9), (9, 5)], ids=["wide", "tall"])
def test_same_masks_as_the_model_called_point_by_point(network, shape):
    """Without suppression: every mask of every point, in its order; 16 points in uneven batches against one at a time."""
    image = blocks(*shape)
    height, width = image.shape[:2]
    options = GeneratorOptions(
        points_per_side=4, points_per_batch=7, pred_iou_thresh=-1e9, stability_score_thresh=0.5, box_nms_thresh=1.0
    )
    regions = generate_masks(image, SamPointModel(network), options)
    points = grid(4, width, height)
    expected = [(found, points[n // 3]) for n, found in enumerate(plainly(network, image, points))]
    expected = [(found, point) for found, point in expected if found[2] >= 0.5]
    expected.sort(key=lambda pair: -pair[0][1])  # stable
    assert len(regions) == len(expected) > 20
    for region, ((mask, iou, stability), point) in zip(regions, expected, strict=True):
        assert np.array_equal(decoded(region), mask)
        assert region.point == pytest.approx(point)
        assert region.predicted_iou == pytest.approx(iou, rel=1e-4)
        assert region.stability_score == pytest.approx(stability, abs=1e-3)
        assert region.area == mask.sum()


def test_filters_and_suppression_keep_what_they_should(network):
    image = blocks()
    found = plainly(network, image, grid(4, 90, 60))
    least = float(np.quantile([iou for _, iou, _ in found], 0.2))
    options = GeneratorOptions(points_per_side=4, pred_iou_thresh=least, stability_score_thresh=0.6)
    regions = generate_masks(image, SamPointModel(network), options)
    passed = [(mask, iou) for mask, iou, stability in found if iou > least and stability >= 0.6]
    kept = plain_nms([tight_box(mask) for mask, _ in passed], [iou for _, iou in passed], 0.7)
    assert 1 < len(kept) < len(passed)
    assert len(regions) == len(kept)
    for region, index in zip(regions, kept, strict=True):
        assert np.array_equal(decoded(region), passed[index][0])


def test_crops_see_their_part_once_and_keep_no_mask_they_cut(network):
    """Layer 1: four crops of a 200 x 160 image, each embedded once; a mask ending at an inner border is dropped."""
    image = blocks(16, 20)
    embedded = []
    model = SamPointModel(network)

    class Counting:
        def embed(self, crop):
            embedded.append(crop.shape[:2])
            return model.embed(crop)

    options = GeneratorOptions(
        points_per_side=4,
        pred_iou_thresh=-1e9,
        stability_score_thresh=0.1,
        box_nms_thresh=1.0,
        crop_n_layers=1,
        crop_nms_thresh=1.0,
        crop_n_points_downscale_factor=2,
    )
    regions = generate_masks(image, Counting(), options)
    overlap = int(512 / 1500 * 160)  # 54
    width, height = (200 + overlap) // 2, (160 + overlap) // 2
    assert embedded == [(160, 200)] + [(height, width)] * 4
    expected = []
    for left, top in [(0, 0), (0, height - overlap), (width - overlap, 0), (width - overlap, height - overlap)]:
        crop = np.ascontiguousarray(image[top : top + height, left : left + width])
        for mask, _, stability in plainly(network, crop, grid(2, width, height)):
            if stability >= 0.1 and mask.any():
                whole = np.zeros((160, 200), bool)
                whole[top : top + height, left : left + width] = mask
                x0, y0, x1, y1 = tight_box(whole)
                cut = (left and x0 <= left + 20) or (not left and x1 >= width - 20)
                cut = cut or (top and y0 <= top + 20) or (not top and y1 >= height - 20)
                if not cut:
                    expected.append((whole, [left, top, width, height]))
    crops = [region for region in regions if region.crop_box != (0, 0, 200, 160)]
    assert {(decoded(region).tobytes(), region.crop_box) for region in crops} == {
        (mask.tobytes(), tuple(box)) for mask, box in expected
    }
    assert [region.crop_box == (0, 0, 200, 160) for region in regions] == sorted(
        region.crop_box == (0, 0, 200, 160) for region in regions
    )  # small crops first


def test_same_records_as_the_pipeline_of_transformers(monkeypatch):
    """SAM 1. Its last step wants torchvision's NMS and is given one of the same meaning in its place."""
    network, image = tiny_sam("sam").double(), blocks()
    size = {"longest_edge": 64}, {"height": 64, "width": 64}
    module = pytest.importorskip("transformers.models.sam.image_processing_pil_sam")  # not before transformers 5.4
    processor = module.SamImageProcessorPil(size=size[0], pad_size=size[1], mask_pad_size=size[1], mask_size=size[0])

    def batched_nms(boxes, scores, idxs, iou_threshold):
        return torch.tensor(plain_nms(boxes.tolist(), scores.tolist(), iou_threshold))

    stand_in = types.ModuleType("torchvision.ops.boxes")
    stand_in.batched_nms = batched_nms
    for name in ("torchvision", "torchvision.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchvision.ops.boxes", stand_in)
    monkeypatch.setattr(module.SamImageProcessorPil, "post_process_for_mask_generation", _unguarded)
    pipe = transformers.MaskGenerationPipeline(model=network, image_processor=processor)
    theirs = pipe(
        Image.fromarray(image),
        points_per_crop=4,
        points_per_batch=64,
        pred_iou_thresh=0.5,
        stability_score_thresh=0.6,
        crops_nms_thresh=0.7,
        output_rle_mask=True,
        output_bboxes_mask=True,
    )
    options = GeneratorOptions(points_per_side=4, pred_iou_thresh=0.5, stability_score_thresh=0.6)
    ours = generate_masks(image, SamPointModel(network), options)
    assert len(ours) == len(theirs["masks"]) > 4
    for number, region in enumerate(ours):
        assert np.array_equal(decoded(region), theirs["masks"][number])
        assert region.predicted_iou == pytest.approx(theirs["scores"][number].item(), rel=1e-4)
        x0, y0, x1, y1 = theirs["bounding_boxes"][number].tolist()
        assert region.bbox == (x0, y0, x1 - x0, y1 - y0)
        runs = coco.frPyObjects(theirs["rle_mask"][number], *region.size)
        assert region.record()["segmentation"] == {"size": [60, 90], "counts": runs["counts"].decode()}


def _unguarded(self, masks, scores, boxes, threshold):
    """The method without its check that torchvision is installed."""
    from transformers.models.sam.image_processing_pil_sam import _post_process_for_mask_generation

    return _post_process_for_mask_generation(masks, scores, boxes, threshold)


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    tiny_sam("sam").save_pretrained(tmp_path / "sam")
    return tmp_path / "sam"


def test_a_saved_model_gives_the_same_masks(network, tmp_path):
    network.save_pretrained(tmp_path)
    options = GeneratorOptions(points_per_side=2, pred_iou_thresh=-1e9, stability_score_thresh=0.1)
    segment = SamRecipe(str(tmp_path), options).build()
    assert segment(blocks()) == generate_masks(blocks(), SamPointModel(network), options) != []


def test_sam2_as_published_with_its_video_parts(tmp_path):
    """The files of SAM 2 on the hub are those of its video model."""
    network = tiny_sam("sam2")
    network.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"model_type": "sam2"', '"model_type": "sam2_video"'))
    assert isinstance(load_sam(str(tmp_path)).network, transformers.Sam2Model)


def test_missing_weights_are_an_error_not_random_numbers(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SamDiffSRError, match=r"mask_decoder\.iou_token"):
        load_sam(str(folder))


@pytest.mark.parametrize("damage", ["cut", "gone", "other model", "no folder", "wrong shape"])
def test_a_model_that_cannot_be_loaded_is_one_sentence(folder, damage):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "gone":
        weights.unlink()
    elif damage == "other model":
        config.write_text('{"model_type": "bert"}')
    elif damage == "wrong shape":
        config.write_text(config.read_text().replace('"iou_head_hidden_dim": 16', '"iou_head_hidden_dim": 8'))
    name = "./nowhere" if damage == "no folder" else str(folder)
    with pytest.raises(SamDiffSRError) as caught:
        load_sam(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
