"""Metrics against scikit-image and against properties of the published formulas."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from samdiffsr import SamDiffSRError, imresize
from samdiffsr.evaluation.metrics import SqueezeDistance, lr_psnr, luma, psnr_rgb, psnr_y, ssim_rgb, ssim_y
from support import EXAMPLES


def pair(seed=0):
    rng = np.random.default_rng(seed)
    hr = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return (hr.astype(int) + rng.integers(-9, 10, hr.shape)).clip(0, 255).astype(np.uint8), hr


def test_luma_is_rgb2ycbcr():
    image = pair()[1]
    np.testing.assert_allclose(luma(image), rgb2ycbcr(image)[..., 0], atol=1e-9)


@pytest.mark.parametrize("border", [0, 4])
def test_psnr_is_scikit_images(border):
    sr, hr = pair()
    cut = (slice(border, 40 - border), slice(border, 48 - border))
    y_sr, y_hr = (rgb2ycbcr(image)[..., 0][cut] for image in (sr, hr))
    assert psnr_y(sr, hr, border=border) == pytest.approx(peak_signal_noise_ratio(y_hr, y_sr, data_range=255), abs=1e-6)


def test_psnr_of_equal_images_and_of_unequal_sizes():
    sr, hr = pair()
    assert psnr_y(hr, hr) == float("inf")
    with pytest.raises(SamDiffSRError, match="48"):
        psnr_y(sr[:, :-1], hr)
    with pytest.raises(SamDiffSRError, match="x0 pixels inside a border of"):
        psnr_y(sr[:8], hr[:8])


@pytest.mark.parametrize("border", [0, 4])
def test_psnr_rgb_is_scikit_images(border):
    sr, hr = pair()
    cut = (slice(border, 40 - border), slice(border, 48 - border))
    expected = peak_signal_noise_ratio(hr[cut], sr[cut], data_range=255)
    assert psnr_rgb(sr, hr, border=border) == pytest.approx(expected, abs=1e-6)


# With these settings scikit-image takes Wang's window, and leaves out the 5 pixels beside the edge where it is incomplete.
WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}


@pytest.mark.parametrize("border", [0, 4])
def test_ssim_is_scikit_images(border):
    sr, hr = pair()
    cut = (slice(border, 40 - border), slice(border, 48 - border))
    y_sr, y_hr = (rgb2ycbcr(image)[..., 0][cut] for image in (sr, hr))
    assert ssim_y(sr, hr, border=border) == pytest.approx(structural_similarity(y_hr, y_sr, **WANG), abs=1e-6)
    rgb = structural_similarity(hr[cut].astype(float), sr[cut].astype(float), channel_axis=2, **WANG)
    assert ssim_rgb(sr, hr, border=border) == pytest.approx(rgb, abs=1e-6)


def test_ssim_of_equal_and_of_too_small_images():
    sr, hr = pair()
    assert ssim_y(hr, hr) == pytest.approx(1, abs=1e-12)
    assert ssim_y(sr[:19, :19], hr[:19, :19]) < 1
    with pytest.raises(SamDiffSRError, match="11x11"):
        ssim_y(sr[:18], hr[:18])


def test_lr_psnr_shrinks_the_result_to_8_bit():
    sr, hr = pair()
    lr = imresize(hr, 1 / 4)
    assert lr_psnr(hr, lr) == float("inf")
    expected = peak_signal_noise_ratio(lr, imresize(sr, 1 / 4), data_range=255)
    assert lr_psnr(sr, lr) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(SamDiffSRError, match="different shapes"):
        lr_psnr(sr, lr[1:])


@pytest.fixture
def distance(tmp_path):
    """Random weights in SqueezeNet 1.1's layout, with positive heads as the published ones are."""
    generator, tensors = torch.Generator().manual_seed(0), {}

    def conv(name, after, before, size):
        tensors[f"{name}.weight"] = (
            torch.randn(after, before, size, size, generator=generator) / (before * size**2) ** 0.5
        )
        tensors[f"{name}.bias"] = torch.zeros(after)

    conv("conv1", 64, 3, 3)
    before = 64
    for number, squeeze in zip(range(2, 10), (16, 16, 32, 32, 48, 48, 64, 64), strict=True):
        conv(f"fire{number}/squeeze1x1", squeeze, before, 1)
        conv(f"fire{number}/expand1x1", 4 * squeeze, squeeze, 1)
        conv(f"fire{number}/expand3x3", 4 * squeeze, squeeze, 3)
        before = 8 * squeeze
    for number, channels in enumerate((64, 128, 256, 384, 384, 512, 512)):
        tensors[f"head{number}"] = torch.rand(1, channels, 1, 1, generator=generator)
    save_file(tensors, tmp_path / "distance.safetensors")
    return SqueezeDistance(tmp_path / "distance.safetensors")


def test_squeeze_distance(distance):
    sr, hr = pair()
    worse = np.random.default_rng(5).integers(0, 256, hr.shape, dtype=np.uint8)
    assert distance(hr, hr) == 0
    assert 0 < distance(sr, hr) < distance(worse, hr)
    assert distance(sr, hr) == pytest.approx(distance(hr, sr), rel=1e-5)
    assert [tuple(f.shape[1:]) for f in distance._features(hr)] == [
        (64, 19, 23),
        (128, 9, 11),
        (256, 4, 5),
        (384, 2, 2),
        (384, 2, 2),
        (512, 2, 2),
        (512, 2, 2),
    ]


def test_squeeze_distance_refuses_what_it_cannot_compare(distance, tmp_path):
    sr, hr = pair()
    with pytest.raises(SamDiffSRError, match="32x32"):
        distance(sr[:31], hr[:31])
    with pytest.raises(SamDiffSRError, match="32x32"):
        distance(sr[:-1], hr)
    with pytest.raises(SamDiffSRError, match=r"none\.safetensors"):
        SqueezeDistance(tmp_path / "none.safetensors")


def test_the_embedded_squeeze_distance():
    """0.2955 is what the original float32 weights in an independent program give for this picture."""
    hr = np.ascontiguousarray(np.asarray(Image.open(EXAMPLES / "astronaut.png").convert("RGB"))[:64, :96])
    assert SqueezeDistance()(imresize(imresize(hr, 1 / 4), 4), hr) == pytest.approx(0.2955, abs=3e-4)
