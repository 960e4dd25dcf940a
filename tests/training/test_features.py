"""The feature loss."""

import itertools

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from samdiffsr import SamDiffSRError
from samdiffsr.training.features import EfficientNetFeatures, FeatureLoss, VGGFeatures


@pytest.mark.parametrize("kind", ["vgg", "efficientnet"])
def test_feature_loss(feature_file, kind):
    loss = FeatureLoss(VGGFeatures(feature_file) if kind == "vgg" else EfficientNetFeatures())
    hr = torch.rand(1, 3, 32, 32) * 2 - 1

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
    assert not any(parameter.requires_grad for parameter in loss.parameters())


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
    found = VGGFeatures(tmp_path / "vgg16.pth")(image)
    torch.testing.assert_close(found[0], x, atol=1e-5, rtol=1e-4)
    assert [tuple(part.shape) for part in found] == [(1, 4, 8, 8), (1, 6, 4, 4), (1, 8, 2, 2)]


def test_missing_feature_weights_are_named(tmp_path):
    with pytest.raises(SamDiffSRError, match=r"none\.safetensors"):
        VGGFeatures(tmp_path / "none.safetensors")
    save_file({"conv1_1.weight": torch.zeros(1)}, tmp_path / "half.safetensors")
    with pytest.raises(SamDiffSRError, match=r"conv1_1\.bias"):
        VGGFeatures(tmp_path / "half.safetensors")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "half.pth")
    with pytest.raises(SamDiffSRError, match=r"features\.0\.bias"):
        VGGFeatures(tmp_path / "half.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(SamDiffSRError, match=r"text\.pth cannot be read"):
        VGGFeatures(tmp_path / "text.pth")
