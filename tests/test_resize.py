"""imresize against a direct transcription of the definition, golden numbers, and its own torch version."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samdiffsr import SamDiffSRError, imresize, imresize_tensor
from samdiffsr.resize import imresize_rows
from support import GOLDEN

RELEASED = np.load(GOLDEN / "released_small.npz")


def naive_pass(line: np.ndarray, out_length: int, scale: float) -> np.ndarray:
    """One axis, one sample at a time: the sum over all integers j of h(u - j) line[reflect(j)], normalised."""
    shrink, length, out = min(scale, 1.0), len(line), []
    for i in range(out_length):
        u, total, weights = (i + 0.5) / scale - 0.5, 0.0, 0.0
        for j in range(math.floor(u - 2 / shrink) - 1, math.ceil(u + 2 / shrink) + 2):
            x = abs(shrink * (u - j))
            h = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0
            k = j % (2 * length)
            total += h * line[k if k < length else 2 * length - 1 - k]
            weights += h
        out.append(total / weights)
    return np.array(out)


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    scale=st.sampled_from([0.25, 0.4, 1.0, 1.7, 4.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_definition(height, width, scale, seed):
    image = np.random.default_rng(seed).normal(size=(height, width))
    rows = np.apply_along_axis(naive_pass, 0, image, math.ceil(scale * height), scale)
    expected = np.apply_along_axis(naive_pass, 1, rows, math.ceil(scale * width), scale)
    np.testing.assert_allclose(imresize(image, scale), expected, atol=1e-12)
    as_batch = imresize_tensor(torch.from_numpy(image)[None, None], scale)
    np.testing.assert_allclose(as_batch[0, 0].numpy(), expected, atol=1e-12)


def test_matlab_golden():
    """The golden LR image is MATLAB's; rounding after each pass is what makes it exact."""
    assert np.array_equal(imresize(RELEASED["hr"], 1 / 4), RELEASED["lr"])
    once = np.floor(imresize(RELEASED["hr"].astype(float), 1 / 4) + 0.5).clip(0, 255).astype(np.uint8)
    assert (once != RELEASED["lr"]).any()


def test_golden_upscaling():
    up = imresize(RELEASED["lr"].astype(np.float64) / 256, 4)
    np.testing.assert_allclose(up, RELEASED["lr_up"], atol=1e-6)
    batch = torch.from_numpy(RELEASED["lr"].astype(np.float32) / 256).permute(2, 0, 1)[None]
    np.testing.assert_allclose(imresize_tensor(batch, 4)[0].permute(1, 2, 0).numpy(), RELEASED["lr_up"], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 5), (7, 33)])
def test_enlarging_by_four_equals_the_table_of_taps(size):
    """The scale takes the way that can be exported, the size the general one."""
    batch = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(imresize_tensor(batch, 4), imresize_tensor(batch, size=(4 * size[0], 4 * size[1])))


def test_a_constant_stays_constant_and_shapes_follow():
    assert np.array_equal(imresize(np.full((5, 3, 2), 77, np.uint8), 4), np.full((20, 12, 2), 77))
    assert imresize(np.zeros((10, 7), np.float32), 1 / 4).shape == (3, 2)
    assert imresize(np.zeros((10, 7), np.float32), size=(4, 9)).dtype == np.float32
    assert imresize(np.zeros((10, 7), np.uint8), size=(4, 9)).shape == (4, 9)
    assert imresize_tensor(torch.zeros(2, 3, 1, 1), 4).shape == (2, 3, 4, 4)


def test_the_smaller_scale_goes_first():
    """With rounding between the passes the order shows: halving rows before doubling columns differs from the reverse."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    both = imresize(image, size=(32, 8))
    np.testing.assert_array_equal(both, imresize(imresize(image, size=(16, 8)), size=(32, 8)))
    assert (both != imresize(imresize(image, size=(32, 16)), size=(32, 8))).any()


def test_16_bits_are_rounded_after_each_pass_and_clipped():
    image = np.random.default_rng(0).integers(0, 65_536, (12, 9)).astype(np.uint16)
    rows = np.apply_along_axis(naive_pass, 0, image.astype(float), 3, 0.25)
    rows = np.floor(rows.clip(0, 65_535) + 0.5)
    expected = np.floor(np.apply_along_axis(naive_pass, 1, rows, 3, 0.25).clip(0, 65_535) + 0.5)
    found = imresize(image, 0.25)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)
    edge = np.array([[0, 0, 65_535, 65_535]], np.uint16)
    assert imresize(edge, 4).max() == 65_535 and imresize(edge, 4).min() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_blocks_change_nothing(monkeypatch, dtype):
    image = (np.random.default_rng(0).random((31, 17, 3)) * 255).astype(dtype)
    whole = [imresize(image, scale) for scale in (0.25, 2.7)]
    monkeypatch.setattr("samdiffsr.resize._BLOCK", 100)
    for expected, scale in zip(whole, (0.25, 2.7), strict=True):
        np.testing.assert_array_equal(imresize(image, scale), expected)


@pytest.mark.parametrize(("size", "rows"), [((76, 44), (20, 41)), ((9, 7), (3, 6)), ((48, 11), (0, 30))])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_rows_of_a_band_are_those_of_the_whole(size, rows, dtype):
    image = (np.random.default_rng(3).random((19, 11, 3)) * 255).astype(dtype)
    first = max(0, rows[0] * 19 // size[0] - 5)
    band = image[first : rows[1] * 19 // size[0] + 6]
    found = imresize_rows(band, size, first=first, height=19, rows=rows)
    assert np.array_equal(found, imresize(image, size=size)[slice(*rows)])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: imresize(np.zeros((4, 4), np.int32), 2), "int32"),
        (lambda: imresize(np.zeros(4, np.uint8), 2), "(4,)"),
        (lambda: imresize(np.zeros((4, 4), np.uint8)), "either scale or size"),
        (lambda: imresize(np.zeros((4, 4), np.uint8), 2, (3, 3)), "either scale or size"),
        (lambda: imresize(np.zeros((4, 4), np.uint8), -1), "-1"),
        (lambda: imresize(np.zeros((4, 4), np.uint8), size=(0, 3)), "(0, 3)"),
        (lambda: imresize(np.zeros((0, 4), np.uint8), 2), "height 0"),
        (lambda: imresize_tensor(torch.zeros(3, 4, 4), 2), "(3, 4, 4)"),
    ],
)
def test_bad_input_is_named(call, told):
    with pytest.raises(SamDiffSRError) as caught:
        call()
    assert told in str(caught.value)
