"""DISTS: the published layouts with random weights, against the paper's equations written out over a torch module."""

import numpy as np
import pytest
import torch
from torch import nn

from samdiffsr import SamDiffSRError
from samdiffsr.evaluation import downloads
from samdiffsr.evaluation.benchmark import load_metrics
from samdiffsr.evaluation.dists import CHANNELS, DISTS, l2_pool
from support import publish

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: where VGG16 pools


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The network, alpha and beta, with files in the published layout in the folder."""
    layers, before = [], 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for width in WIDTHS:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            before = width or before
    network = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(1)
    heads = {name: torch.rand(1, sum(CHANNELS), 1, 1, generator=generator) for name in ("alpha", "beta")}
    state = {f"features.{key}": value for key, value in network.state_dict().items()}
    publish(monkeypatch, tmp_path / "vgg16-397923af.pth", state)
    publish(monkeypatch, tmp_path / "weights.pt", heads)
    return network, heads["alpha"].flatten(), heads["beta"].flatten()


def images():
    generator = np.random.default_rng(0)
    a, b = (generator.integers(0, 256, (37, 45, 3), dtype=np.uint8) for _ in range(2))
    return a, (0.7 * a + 0.3 * b).astype(np.uint8)


def test_l2_pooling_by_hand():
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    squares = np.pad(np.arange(25.0).reshape(5, 5) ** 2, 1)
    window = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = [[np.sqrt((squares[i : i + 3, j : j + 3] * window).sum()) for j in (0, 2, 4)] for i in (0, 2, 4)]
    np.testing.assert_allclose(l2_pool(x)[0, 0].numpy(), expected, rtol=1e-6)


@torch.no_grad()
def reference(published, a, b):
    """1 - the sum over maps and channels of alpha l(x, y) + beta s(x, y), with weights of sum 1."""
    network, alpha, beta = published
    total = float(alpha.sum() + beta.sum())
    pair = []
    for image in (a, b):
        rgb = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        x = torch.stack([(rgb[:, c] - (0.485, 0.456, 0.406)[c]) / (0.229, 0.224, 0.225)[c] for c in range(3)], dim=1)
        maps = [rgb]
        for layer in network:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
                x = l2_pool(x)
            else:
                x = layer(x)
        pair.append([one[0].reshape(one.shape[1], -1).numpy().astype(float) for one in [*maps, x]])
    similar, channel = 0.0, 0
    for x, y in zip(*pair, strict=True):
        for one, other in zip(x, y, strict=True):
            texture = (2 * one.mean() * other.mean() + 1e-6) / (one.mean() ** 2 + other.mean() ** 2 + 1e-6)
            covariance = ((one - one.mean()) * (other - other.mean())).mean()
            structure = (2 * covariance + 1e-6) / (one.var() + other.var() + 1e-6)
            similar += float(alpha[channel]) / total * texture + float(beta[channel]) / total * structure
            channel += 1
    assert channel == sum(CHANNELS)
    return 1 - similar


def test_dists_is_the_papers_equations(published, tmp_path):
    a, b = images()
    dists = load_metrics(["dists"], tmp_path).distances["dists"]
    assert dists(a, b) == pytest.approx(reference(published, a, b), abs=1e-5)
    assert dists(a, b) > 0.01 and dists(a, a) == pytest.approx(0, abs=1e-6)
    names = ("vgg16-397923af.pth", "weights.pt")
    assert load_metrics(["dists"], tmp_path).weights == {name: downloads.sha256(tmp_path / name) for name in names}


def test_dists_refuses_what_it_cannot_compare(published, tmp_path):
    a, b = images()
    dists = DISTS(tmp_path)
    assert dists(a[:16, :16], b[:16, :16]) > 0
    for one, other in ((a[:15], b[:15]), (a[1:], b)):
        with pytest.raises(SamDiffSRError, match="two images of one size from 16x16"):
            dists(one, other)
