"""Degradations for training: exact size, no shift, one number for how much."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from samdiffsr import imresize
from samdiffsr.data.degrade import (
    FULL_BLUR,
    MARGIN_LR,
    Blur,
    Degradation,
    Jpeg,
    Noise,
    Resize,
    Sinc,
    convolve,
    degrade,
    draw,
    random_of,
)

MANY = [draw(random_of(5, index)) for index in range(3000)]
MARGIN = 4 * MARGIN_LR


@pytest.fixture
def photo():
    """uint8 (136, 152, 3): smooth shapes and fine texture."""
    rng = np.random.default_rng(0)
    coarse = imresize(rng.uniform(0, 255, (17, 19, 3)), 8)
    return (coarse + rng.normal(0, 12, coarse.shape)).clip(0, 255).astype(np.uint8)


def strength(degradation):
    """0 clean, 1 light, 2 the whole range, by what only these have."""
    resizes = sum(isinstance(step, Resize) for step in degradation.steps)
    return 0 if not resizes else resizes - 1


def test_a_pure_function_of_seed_and_index(photo):
    first = [degrade(photo, 1, index) for index in range(12)]
    again = [degrade(photo.copy(), 1, index) for index in reversed(range(12))][::-1]
    assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(first, again, strict=True))
    other = [degrade(photo, 2, index) for index in range(12)]
    assert sum(not np.array_equal(a[0], b[0]) for a, b in zip(first, other, strict=True)) > 6
    assert len({level for _, level in first}) > 6


@pytest.mark.parametrize(("height", "width"), [(4, 4), (36, 60), (72, 88)])
def test_the_size_is_exactly_a_quarter(photo, height, width):
    for index in range(30):
        lr, level = degrade(photo[: height + 2 * MARGIN, : width + 2 * MARGIN], 3, index)
        assert lr.shape == (height // 4, width // 4, 3)
        assert lr.dtype == np.uint8
        assert 0 <= level <= 1


def test_level_0_is_the_crop_of_the_whole_photographs_bicubic_reduction(photo):
    """In the middle of the photograph and, with the margin mirrored, in its corner."""
    whole = imresize(photo, 1 / 4)
    corner = np.pad(photo, ((MARGIN, 0), (MARGIN, 0), (0, 0)), "symmetric")[: 64 + 2 * MARGIN, : 64 + 2 * MARGIN]
    clean = [index for index in range(30) if not MANY[index].steps]
    assert clean
    for index in clean:
        lr, level = degrade(photo[8:, 12:], 5, index)
        assert level == 0
        assert np.array_equal(lr, whole[2 + MARGIN_LR : -MARGIN_LR, 3 + MARGIN_LR : -MARGIN_LR])
        assert np.array_equal(degrade(corner, 5, index)[0], whole[:16, :16])


def test_only_the_clean_ones_have_level_0():
    assert all((degradation.level == 0) == (not degradation.steps) for degradation in MANY)


def test_a_dot_does_not_move():
    """Its centroid, without what noise and JPEG add at random, stays within 0.1 LR pixels."""
    y, x = np.mgrid[:160, :160]
    rng = np.random.default_rng(0)
    for degradation in MANY[:200]:
        steps = tuple(step for step in degradation.steps if not isinstance(step, Noise | Jpeg))
        row, column = rng.uniform(64, 96, 2)  # in HR pixels
        dot = 255 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * 6**2))
        lr = Degradation(steps).apply(dot.round().astype(np.uint8)[..., None].repeat(3, 2), rng)[..., 1].astype(float)
        found = [(lr.sum(axis) * np.arange(40)).sum() / lr.sum() for axis in (1, 0)]
        assert np.allclose(found, [(row + 0.5) / 4 - 0.5, (column + 0.5) / 4 - 0.5], atol=0.1)


def test_noise_and_jpeg_do_not_move_it_either():
    """On average over many, the place in the JPEG grid included."""
    y, x = np.mgrid[: 64 + 2 * MARGIN, : 64 + 2 * MARGIN]
    dot = 255 * np.exp(-((y - 63.5) ** 2 + (x - 67.5) ** 2) / (2 * 8**2))
    dot = dot.round().astype(np.uint8)[..., None].repeat(3, 2)
    total = np.mean([degrade(dot, 1, index)[0].astype(float) for index in range(300)], axis=(0, 3))
    total -= np.median(total)
    found = [(total.sum(axis) * np.arange(16)).sum() / total.sum() for axis in (1, 0)]
    assert np.allclose(found, [7.5, 8.5], atol=0.1)


@pytest.mark.parametrize(("clean", "wanted"), [(0.0, [0, 0.5, 0.5]), (0.6, [0.6, 0.2, 0.2]), (1.0, [1, 0, 0])])
def test_the_share_of_clean_examples_is_chosen(clean, wanted):
    drawn = [strength(draw(random_of(6, index), clean)) for index in range(2000)]
    assert np.bincount(drawn, minlength=3) / 2000 == pytest.approx(wanted, abs=0.03)


def test_every_branch_is_reached_in_its_share():
    shares = np.bincount([strength(degradation) for degradation in MANY]) / len(MANY)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)
    whole = [degradation.steps for degradation in MANY if strength(degradation) == 2]
    steps = [step for found in whole for step in found]
    blurs, noises = ([step for step in steps if isinstance(step, kind)] for kind in (Blur, Noise))
    assert {blur.shape for blur in blurs} == {"gaussian", "generalised", "plateau"}
    assert {blur.size for blur in blurs} == set(range(7, 22, 2))
    round_ones = np.mean([blur.sigma[0] == blur.sigma[1] for blur in blurs])
    assert round_ones == pytest.approx(0.69, abs=0.04)
    assert np.mean([noise.shot for noise in noises]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([noise.grey for noise in noises]) == pytest.approx(0.4, abs=0.04)
    assert np.mean([isinstance(found[-1], Jpeg) for found in whole]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([isinstance(found[0], Sinc) for found in whole]) == pytest.approx(0.1, abs=0.03)
    first = np.array([found[1].factor for found in whole]) / 4
    assert [(first > 1).mean(), (first < 1).mean()] == pytest.approx([0.2, 0.7], abs=0.05)
    assert first.min() < 0.2 and first.max() > 1.4
    second = np.array([next(step for step in found[2:] if isinstance(step, Resize)).factor for found in whole])
    assert [(second > 1).mean(), (second < 1).mean()] == pytest.approx([0.3, 0.4], abs=0.05)


def test_ranges():
    for degradation in MANY:
        light = strength(degradation) == 1
        qualities = [step.quality for step in degradation.steps if isinstance(step, Jpeg)]
        assert len(qualities) == (2 if degradation.steps else 0)
        assert all((75 if light else 30) <= quality <= 95 for quality in qualities)
        if light:
            assert 1.6 <= next(step for step in degradation.steps if isinstance(step, Resize)).factor <= 6
            assert all(step.sigma <= 4 for step in degradation.steps if isinstance(step, Noise))
        assert all(0.2 <= s <= 3 for step in degradation.steps if isinstance(step, Blur) for s in step.sigma)
    assert max(degradation.level for degradation in MANY if strength(degradation) == 1) < 0.3
    levels = [degradation.level for degradation in MANY if strength(degradation) == 2]
    assert np.percentile(levels, [5, 50, 95]) == pytest.approx([0.36, 0.61, 0.98], abs=0.05)


def test_more_of_anything_never_lowers_the_level():
    more = {
        Blur: lambda step: replace(step, sigma=(1.3 * step.sigma[0], 1.3 * step.sigma[1])),
        Sinc: lambda step: replace(step, cutoff=0.8 * step.cutoff),
        Noise: lambda step: replace(step, sigma=1.3 * step.sigma),
        Jpeg: lambda step: replace(step, quality=step.quality - 10),
    }
    raised = 0
    for degradation in MANY[:300]:
        for number, step in enumerate(degradation.steps):
            if type(step) in more:
                steps = list(degradation.steps)
                steps[number] = more[type(step)](step)
                stronger = Degradation(tuple(steps)).level
                assert stronger >= degradation.level
                raised += stronger > degradation.level
    assert raised > 500


def test_the_level_by_hand():
    reduce = Resize(1.0, Image.Resampling.BILINEAR)
    assert Degradation((Blur(21, (4.0, 4.0), 0.0), reduce)).level == pytest.approx(1 / FULL_BLUR)  # 4 HR pixels are 1
    assert Degradation((Noise(20, False, False), reduce)).level == pytest.approx(0.1)  # averaged over 4 x 4 pixels
    assert Degradation((reduce, Noise(20, False, False))).level == pytest.approx(0.4)
    assert Degradation((reduce, Jpeg(40, True))).level == pytest.approx(0.5)
    assert Degradation((reduce, Noise(30, False, False), Noise(40, False, False))).level == 1


def test_kernels_are_symmetric_and_sum_to_1():
    kernels = [step for degradation in MANY[:400] for step in degradation.steps if isinstance(step, Blur | Sinc)]
    for step in kernels:
        kernel = step.kernel()
        assert kernel.shape == (step.size, step.size)
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        assert np.allclose(kernel, kernel[::-1, ::-1], atol=1e-6)


def test_convolution_by_hand(photo):
    image = photo[:20, :30].astype(np.float32)
    kernel = Blur(7, (1.0, 2.0), 0.5).kernel()
    wide = np.pad(image, ((3, 3), (3, 3), (0, 0)), "symmetric")
    wanted = sum(kernel[i, j] * wide[i : i + 20, j : j + 30] for i in range(7) for j in range(7))
    assert np.allclose(convolve(image, kernel), wanted, atol=1e-2)


def test_noise_has_the_strength_it_names():
    grey = np.full((256, 256, 3), 128, np.uint8)
    dark = np.full((256, 256, 3), 32, np.uint8)
    keep = Resize(4.0, Image.Resampling.BILINEAR)
    for shot, image, wanted in ((False, grey, 10), (True, grey, 10), (False, dark, 10), (True, dark, 5)):
        noisy = Degradation((Noise(10.0, shot, False),)).apply(image, np.random.default_rng(0)).astype(float)
        assert noisy.std() == pytest.approx(wanted, rel=0.02)
    same = Degradation((keep, Noise(10.0, True, True))).apply(grey, np.random.default_rng(0))
    assert (same == same[..., :1]).all()
