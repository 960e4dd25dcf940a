"""The feature loss."""

import itertools

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from samdiffsr import SamDiffSRError
from samdiffsr.training.features import FeatureLoss


def test_feature_loss(feature_file):
    loss = FeatureLoss(feature_file)
    hr = torch.rand(1, 3, 16, 16) * 2 - 1

    def distance(image, phase=(0, 0)):
        return loss(image, hr, [phase])

    assert float(distance(hr)) == 0
    near, far = (hr + size * torch.randn_like(hr) for size in (0.02, 0.3))
    assert 0 < float(distance(near)) < float(distance(far))
    phases = itertools.product(range(4), repeat=2)
    assert len({float(distance(far, phase)) for phase in phases}) == 16  # where the pooling falls matters
    both = loss(torch.cat([far, near]), torch.cat([hr, hr]), [(1, 2), (3, 0)])
    assert float(both) == pytest.approx((float(distance(far, (1, 2))) + float(distance(near, (3, 0)))) / 2)
    near.requires_grad_(True)
    distance(near).backward()
    assert float(near.grad.abs().sum()) > 0
    assert not list(loss.parameters())


def test_torchvision_features_are_of_normalised_rgb(tmp_path):
    """The first stage against its formula; names and pixels are torchvision's."""
    state, before = {"classifier.0.bias": torch.zeros(1)}, 3
    for number, after in zip((0, 2, 5, 7, 10, 12, 14), (4, 4, 6, 6, 8, 8, 8), strict=True):
        state |= {
            f"features.{number}.weight": torch.randn(after, before, 3, 3),
            f"features.{number}.bias": torch.randn(after),
        }
        before = after
    torch.save(state, tmp_path / "vgg16.pth")
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = ((image + 1) / 2 - mean) / deviation
    for number in (0, 2):
        x = F.relu(F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1))
    found = FeatureLoss(tmp_path / "vgg16.pth").maps(image)
    torch.testing.assert_close(found[0], x / (x.norm(dim=1, keepdim=True) + 1e-8), atol=1e-5, rtol=1e-4)
    assert [tuple(part.shape) for part in found] == [(1, 4, 8, 8), (1, 6, 4, 4), (1, 8, 2, 2)]


def test_missing_feature_weights_are_named(tmp_path):
    with pytest.raises(SamDiffSRError, match=r"none\.safetensors"):
        FeatureLoss(tmp_path / "none.safetensors")
    save_file({"conv1_1.weight": torch.zeros(1)}, tmp_path / "half.safetensors")
    with pytest.raises(SamDiffSRError, match=r"conv1_1\.bias"):
        FeatureLoss(tmp_path / "half.safetensors")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "half.pth")
    with pytest.raises(SamDiffSRError, match=r"features\.0\.bias"):
        FeatureLoss(tmp_path / "half.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(SamDiffSRError, match=r"text\.pth cannot be read"):
        FeatureLoss(tmp_path / "text.pth")
