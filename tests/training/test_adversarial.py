"""The discriminator and the adversarial losses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samdiffsr.training.adversarial import TERMS, AdversarialLoss, PatchDiscriminator


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
    adversarial = AdversarialLoss(PatchDiscriminator(4), "relativistic")
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
    adversarial = AdversarialLoss(PatchDiscriminator(8), "softplus")
    adam = torch.optim.Adam(adversarial.parameters(), lr=3e-3)
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
