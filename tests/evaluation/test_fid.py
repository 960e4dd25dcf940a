"""FID: the Inception in its published layout with random weights against a plain reference, and the distance against scipy."""

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F

from samdiffsr import SamDiffSRError
from samdiffsr.evaluation import benchmark, report
from samdiffsr.evaluation.fid import WEIGHTS, InceptionFeatures, frechet_distance
from samdiffsr.evaluation.methods import baseline
from samdiffsr.evaluation.pairs import find_pairs
from samdiffsr.images import Picture, write_image
from support import publish

# --- the published layout: output channels, input channels, kernel of every convolution ----------------------------


def block_a(inputs, pool):
    return {
        "branch1x1": (64, inputs, 1, 1),
        "branch5x5_1": (48, inputs, 1, 1),
        "branch5x5_2": (64, 48, 5, 5),
        "branch3x3dbl_1": (64, inputs, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
        "branch_pool": (pool, inputs, 1, 1),
    }


def block_c(c):
    return {
        "branch1x1": (192, 768, 1, 1),
        "branch7x7_1": (c, 768, 1, 1),
        "branch7x7_2": (c, c, 1, 7),
        "branch7x7_3": (192, c, 7, 1),
        "branch7x7dbl_1": (c, 768, 1, 1),
        "branch7x7dbl_2": (c, c, 7, 1),
        "branch7x7dbl_3": (c, c, 1, 7),
        "branch7x7dbl_4": (c, c, 7, 1),
        "branch7x7dbl_5": (192, c, 1, 7),
        "branch_pool": (192, 768, 1, 1),
    }


def block_e(inputs):
    return {
        "branch1x1": (320, inputs, 1, 1),
        "branch3x3_1": (384, inputs, 1, 1),
        "branch3x3_2a": (384, 384, 1, 3),
        "branch3x3_2b": (384, 384, 3, 1),
        "branch3x3dbl_1": (448, inputs, 1, 1),
        "branch3x3dbl_2": (384, 448, 3, 3),
        "branch3x3dbl_3a": (384, 384, 1, 3),
        "branch3x3dbl_3b": (384, 384, 3, 1),
        "branch_pool": (192, inputs, 1, 1),
    }


LAYOUT = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
    "Mixed_5b": block_a(192, 32),
    "Mixed_5c": block_a(256, 64),
    "Mixed_5d": block_a(288, 64),
    "Mixed_6a": {
        "branch3x3": (384, 288, 3, 3),
        "branch3x3dbl_1": (64, 288, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
    },
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": {
        "branch3x3_1": (192, 768, 1, 1),
        "branch3x3_2": (320, 192, 3, 3),
        "branch7x7x3_1": (192, 768, 1, 1),
        "branch7x7x3_2": (192, 192, 1, 7),
        "branch7x7x3_3": (192, 192, 7, 1),
        "branch7x7x3_4": (192, 192, 3, 3),
    },
    "Mixed_7b": block_e(1280),
    "Mixed_7c": block_e(2048),
}


@pytest.fixture(scope="module")
def state():
    """The published keys, all 566 of them, with random values that keep activations at one scale."""
    generator, tensors = torch.Generator().manual_seed(0), {}

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(shape, generator=generator)

    for block, convs in LAYOUT.items():
        for name, shape in convs.items() if isinstance(convs, dict) else [("", convs)]:
            key = f"{block}.{name}".rstrip(".")
            size = shape[1] * shape[2] * shape[3]
            tensors[f"{key}.conv.weight"] = torch.randn(shape, generator=generator) * (2 / size) ** 0.5
            tensors[f"{key}.bn.weight"] = uniform(0.9, 1.1, shape[0])
            tensors[f"{key}.bn.bias"] = uniform(-0.1, 0.1, shape[0])
            tensors[f"{key}.bn.running_mean"] = uniform(-0.1, 0.1, shape[0])
            tensors[f"{key}.bn.running_var"] = uniform(0.5, 1.5, shape[0])
            tensors[f"{key}.bn.num_batches_tracked"] = torch.tensor(0)
    tensors["fc.weight"], tensors["fc.bias"] = uniform(-1, 1, 1008, 2048), uniform(-1, 1, 1008)
    assert len(tensors) == 566
    return tensors


@pytest.fixture
def folder(state, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    publish(monkeypatch, tmp_path / "weights" / WEIGHTS, state)
    return tmp_path / "weights"


@torch.no_grad()
def reference(state, image):
    """The network of the FID paper in PyTorch's terms, block by block."""

    def conv(name, x, stride=1, padding=0):
        x = F.conv2d(x, state[f"{name}.conv.weight"], None, stride, padding)
        mean, variance, weight, bias = (
            state[f"{name}.bn.{part}"].reshape(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu((x - mean) / torch.sqrt(variance + 0.001) * weight + bias)

    def average(x):
        ones = torch.ones_like(x[:, :1])
        return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)  # TensorFlow does not count the padding

    x = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) * 2 - 1
    x = conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", x, 2))
    x = F.max_pool2d(conv("Conv2d_2b_3x3", x, 1, 1), 3, 2)
    x = F.max_pool2d(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x)), 3, 2)
    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        one = conv(f"{b}.branch1x1", x)
        five = conv(f"{b}.branch5x5_2", conv(f"{b}.branch5x5_1", x), 1, 2)
        three = conv(f"{b}.branch3x3dbl_2", conv(f"{b}.branch3x3dbl_1", x), 1, 1)
        three = conv(f"{b}.branch3x3dbl_3", three, 1, 1)
        x = torch.cat([one, five, three, conv(f"{b}.branch_pool", average(x))], 1)
    three = conv("Mixed_6a.branch3x3", x, 2)
    double = conv("Mixed_6a.branch3x3dbl_2", conv("Mixed_6a.branch3x3dbl_1", x), 1, 1)
    x = torch.cat([three, conv("Mixed_6a.branch3x3dbl_3", double, 2), F.max_pool2d(x, 3, 2)], 1)
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        one, seven, double = (conv(f"{b}.{name}", x) for name in ("branch1x1", "branch7x7_1", "branch7x7dbl_1"))
        seven = conv(f"{b}.branch7x7_3", conv(f"{b}.branch7x7_2", seven, 1, (0, 3)), 1, (3, 0))
        for number, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            double = conv(f"{b}.branch7x7dbl_{number}", double, 1, padding)
        x = torch.cat([one, seven, double, conv(f"{b}.branch_pool", average(x))], 1)
    three = conv("Mixed_7a.branch3x3_2", conv("Mixed_7a.branch3x3_1", x), 2)
    seven = conv("Mixed_7a.branch7x7x3_2", conv("Mixed_7a.branch7x7x3_1", x), 1, (0, 3))
    seven = conv("Mixed_7a.branch7x7x3_4", conv("Mixed_7a.branch7x7x3_3", seven, 1, (3, 0)), 2)
    x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
    for b, pool in (("Mixed_7b", average), ("Mixed_7c", lambda x: F.max_pool2d(x, 3, 1, 1))):
        one, three = conv(f"{b}.branch1x1", x), conv(f"{b}.branch3x3_1", x)
        three = [conv(f"{b}.branch3x3_2a", three, 1, (0, 1)), conv(f"{b}.branch3x3_2b", three, 1, (1, 0))]
        double = conv(f"{b}.branch3x3dbl_2", conv(f"{b}.branch3x3dbl_1", x), 1, 1)
        double = [conv(f"{b}.branch3x3dbl_3a", double, 1, (0, 1)), conv(f"{b}.branch3x3dbl_3b", double, 1, (1, 0))]
        x = torch.cat([one, *three, *double, conv(f"{b}.branch_pool", pool(x))], 1)
    return F.adaptive_avg_pool2d(x, 1)[0, :, 0, 0].numpy()


def test_the_features_are_the_published_architectures(folder, state):
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    features = InceptionFeatures(folder)(image)
    expected = reference(state, image)
    assert features.shape == (2048,) and features.dtype == np.float64
    assert expected.std() > 0.01
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-5 * expected.max())


# --- the distance ----------------------------------------------------------------------------------------------------


def test_the_distance_is_that_of_the_formula():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(60, 7)), generator.normal(1, 2, size=(45, 7)) @ generator.normal(size=(7, 7))
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = shift + np.trace(covariances[0] + covariances[1] - 2 * np.real(root))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_the_distance_with_fewer_samples_than_dimensions():
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(4, 9)), generator.normal(2, 1, size=(5, 9))
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values = np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sum(covariances)) - 2 * np.sqrt(values).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(SamDiffSRError, match="at least 2"):
        frechet_distance(a[:1], b)


# --- in the comparison -----------------------------------------------------------------------------------------------


def test_fid_in_the_comparison(folder, tmp_path):
    generator = np.random.default_rng(2)
    for name in "ab":
        noise = Picture(generator.integers(0, 256, (24, 20, 3), dtype=np.uint8))
        (tmp_path / "hr").mkdir(exist_ok=True)
        write_image(noise, tmp_path / "hr" / f"{name}.png")
    pairs, metrics = find_pairs(tmp_path / "hr", None), benchmark.load_metrics(["fid"], folder)
    result = benchmark.run(pairs, [baseline("bicubic")], metrics=metrics, pictures=2)
    sides = [
        np.stack([metrics.inception(shown[name]) for shown in result.pictures.values()]) for name in ("bicubic", "HR")
    ]
    assert result.fid == {("bicubic", None): frechet_distance(*sides)}
    assert list(metrics.weights) == [WEIGHTS]
    with pytest.raises(SamDiffSRError, match="FID needs at least 2 images, got 1; leave it out"):
        benchmark.run(pairs[:1], [baseline("bicubic")], metrics=metrics)


@pytest.mark.parametrize(("count", "mark", "note"), [(99, True, False), (100, False, True), (2048, False, False)])
def test_fid_of_few_images_is_marked(count, mark, note):
    result = benchmark.Result(fid={("bicubic", None): 12.345})
    for number in range(count):
        values = dict.fromkeys(("psnr-y", "psnr-rgb", "lr-psnr"), 30.0)
        result.scores.append(benchmark.Score("bicubic", str(number), None, values, None, None, 1.0))
    result.notes += benchmark._warnings(result, count)
    settings = {"title": "few", "settings": {}, "metrics": benchmark.PerceptualMetrics(), "published": False}
    found = report.document(result, [baseline("bicubic")], **settings)
    header, (row,) = report.summary_table(found)
    assert ("FID* ↓" in header) == mark and ("FID ↓" in header) != mark and "12.35" in row
    assert any(f"FID*: of {count} images only" in line for line in report.protocol_lines(found)) == mark
    assert any("compare it within this table only" in line for line in result.notes) == note
