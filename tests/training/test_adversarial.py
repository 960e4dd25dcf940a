"""The discriminator and the adversarial losses."""

import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samdiffsr.errors import ConfigError
from samdiffsr.training.adversarial import TERMS, AdversarialLoss, Discriminator, new_adversarial_loss
from samdiffsr.training.checkpoint import load_checkpoint
from samdiffsr.training.config import LossConfig
from samdiffsr.training.features import EfficientNetFeatures
from samdiffsr.training.run import train_encoder
from support import quiet, same, tiny, weights


def test_adversarial_terms():
    real, fake = torch.tensor([1.5, -0.2]), torch.tensor([0.3, -2.0])
    expected = {
        "softplus": (np.log1p(np.exp([-1.5, 0.2])).mean() + np.log1p(np.exp([0.3, -2.0])).mean(), None),
        "hinge": ((0 + 1.2) / 2 + (1.3 + 0) / 2, (-0.3 + 2.0) / 2),
        "relativistic": (np.log1p(np.exp([-1.2, -1.8])).mean(), np.log1p(np.exp([1.2, 1.8])).mean()),
    }
    expected["softplus"] = (expected["softplus"][0], np.log1p(np.exp([-0.3, 2.0])).mean())
    for kind, pair in expected.items():
        assert [float(term(real, fake)) for term in TERMS[kind]] == pytest.approx(pair)


def test_gradients_of_the_adversarial_terms_go_where_they_shall():
    torch.manual_seed(0)
    adversarial = AdversarialLoss(Discriminator(4), "relativistic")
    hr, base = torch.rand(2, 1, 3, 8, 8) * 2 - 1
    estimate = (hr + 0.1).requires_grad_(True)
    adversarial.term(hr, estimate, base).backward()
    assert float(estimate.grad.abs().sum()) > 0
    assert all(p.grad is None and p.requires_grad for p in adversarial.parameters())
    estimate.grad = None
    adversarial(hr, estimate, base).backward()
    assert estimate.grad is None
    assert all(p.grad is not None for p in adversarial.discriminator.inner.parameters())


def test_the_discriminator_learns_and_its_norms_are_one():
    torch.manual_seed(0)
    adversarial = AdversarialLoss(Discriminator(8), "softplus")
    adam = torch.optim.Adam(adversarial.discriminator.parameters(), lr=3e-3)
    hr = torch.rand(4, 3, 16, 16) * 2 - 1
    base = F.avg_pool2d(hr, 5, 1, 2)
    losses = []
    for _ in range(60):
        adversarial.discriminator.estimate_norms()
        adam.zero_grad()
        loss = adversarial(hr, base, base)
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    for _ in range(30):
        adversarial.discriminator.estimate_norms()
    for layer in adversarial.discriminator.inner:
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.02)
    weight = adversarial.discriminator.inner[0].weight
    adversarial(hr, base, base)
    assert torch.equal(adversarial.discriminator.inner[0].weight, weight)  # looking changes nothing


PROJECTED = LossConfig(adversarial_weight=0.1, discriminator="projected", discriminator_width=4)


def test_frozen_features_stay_as_they_are():
    """Maps of the right sizes; never in training mode, so that no example sees another."""
    features = EfficientNetFeatures().train()
    image = torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)
    maps = features(image)
    assert [tuple(one.shape[1:]) for one in maps] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    assert not features.network.training
    assert not any(parameter.requires_grad for parameter in features.parameters())
    alone = features(image[:1])  # no statistics of the batch
    for one, other in zip(maps, alone, strict=True):
        torch.testing.assert_close(one[:1], other, atol=1e-4, rtol=1e-4)


def test_a_projected_discriminator_teaches_through_features_that_stay():
    adversarial = new_adversarial_loss(PROJECTED, seed=3)
    before = {name: tensor.clone() for name, tensor in adversarial.features.state_dict().items()}
    hr = torch.rand(2, 3, 32, 32) * 2 - 1
    estimate, base = F.avg_pool2d(hr, 3, 1, 1).requires_grad_(True), F.avg_pool2d(hr, 5, 1, 2)
    patches = AdversarialLoss(adversarial.discriminator, "softplus", None)
    logits = adversarial.discriminator(estimate, base, adversarial.features(estimate))
    assert [tuple(one.shape[2:]) for one in logits] == [(8, 8), (16, 16), (8, 8), (4, 4), (2, 2)]
    expected = sum(float(F.softplus(-one.detach()).mean()) for one in logits)
    assert float(adversarial.term(hr, estimate, base).detach()) == pytest.approx(expected, rel=1e-5)
    adversarial.discriminator.first.requires_grad_(False)
    (gradient,) = torch.autograd.grad(sum(F.softplus(-one).mean() for one in logits[1:]), estimate)
    assert float(gradient.abs().sum()) > 0  # the heads alone reach the picture
    adversarial(hr, estimate, base).backward()
    assert all(p.grad is not None for p in adversarial.discriminator.heads.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in adversarial.features.state_dict().items())
    with pytest.raises(ValueError, match="zip"):
        patches.term(hr, estimate, base)  # heads without maps are a mistake, not a smaller loss


def test_the_norms_of_the_heads_are_one_too():
    discriminator = new_adversarial_loss(PROJECTED, seed=3).discriminator
    for _ in range(40):
        discriminator.estimate_norms()
    for head in discriminator.heads:
        assert float(torch.linalg.matrix_norm(head[0].weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.02)


def test_training_with_a_projected_discriminator_goes_on_bit_equal(photos, tmp_path):
    """And its checkpoint holds the heads, not the frozen network."""
    options = ("encoder.loss.adversarial_weight=0.1", "encoder.loss.discriminator=projected")
    for name, updates in (("whole", [0]), ("parts", [2, 0])):
        for stop in updates:

            def halt(update, record, stop=stop):
                if update == stop + 1 and stop:
                    raise KeyboardInterrupt

            config = tiny(photos, tmp_path / name, *options)
            try:
                train_encoder(config, resume=name == "parts" and not stop, on_update=halt if stop else quiet)
            except KeyboardInterrupt:
                assert stop
    states = [load_checkpoint(tmp_path / name / "encoder/checkpoints")[0] for name in ("whole", "parts")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert any(name.startswith("discriminator.heads") for name in states[0])
    assert not any("features" in name or "network" in name for name in states[0])
    assert same(weights(tmp_path / "whole/encoder"), weights(tmp_path / "parts/encoder"))


def test_a_missing_package_is_named_before_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ConfigError, match=r"projected.*efficientnet_lite_pytorch.*pip install"):
        new_adversarial_loss(PROJECTED, seed=0)
