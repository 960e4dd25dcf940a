"""Structure maps against Eq. 10 written out, the golden map, and the edges: odd sizes, no masks, empty masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samdiffsr import SamDiffSRError, structure_map
from samdiffsr.structure import ENCODINGS, position_map, structure_of_regions
from support import GOLDEN

RELEASED = np.load(GOLDEN / "released_small.npz")


def rope(y: int, x: int, width: int) -> float:
    theta = y / 10000 ** (2 * (x // 2) / width)
    return np.cos(theta) - np.sin(theta) if x % 2 == 0 else np.cos(theta) + np.sin(theta)


def test_golden_map_of_the_released_code():
    found = structure_map(RELEASED["masks"].astype(bool), mean_over="image", overlap="last")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, RELEASED["structure"], atol=1e-6)


@given(height=st.integers(1, 7), width=st.integers(1, 7), count=st.integers(0, 4), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_equation_10(height, width, count, seed):
    masks = np.random.default_rng(seed).random((count, height, width)) < 0.4
    places = [[rope(y, x, width) for x in range(width)] for y in range(height)]
    expected = np.zeros((height, width))
    for mask in masks:
        if mask.any():
            expected += mask * np.mean([places[y][x] for y, x in np.argwhere(mask)])
    found = structure_map(masks)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found).max(initial=0) <= np.sqrt(2) * max(count, 1)


def test_overlap_and_mean_options():
    masks = np.zeros((2, 4, 6), bool)
    masks[0, :3], masks[1, 2:] = True, True
    first, second = structure_map(masks[:1]), structure_map(masks[1:])
    np.testing.assert_allclose(structure_map(masks), first + second, atol=1e-7)
    last = structure_map(masks, overlap="last")
    np.testing.assert_allclose(last, np.where(masks[1], second, first), atol=1e-7)
    np.testing.assert_allclose(structure_map(masks[:1], mean_over="image"), first * 18 / 24, atol=1e-7)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_has_one_value_a_region(encoding):
    masks = np.zeros((2, 9, 11), bool)
    masks[0, :, :5], masks[1, :, 5:] = True, True
    found = structure_map(masks, encoding=encoding)
    position = position_map(encoding, 9, 11)
    assert position.shape == (9, 11)
    parts = (position[:, :5].mean(), position[:, 5:].mean()) if encoding != "cosine" else np.sqrt([5 / 11, 6 / 11])
    np.testing.assert_allclose([found[mask].mean() for mask in masks], parts, atol=1e-6)
    assert max(np.ptp(found[mask]) for mask in masks) == 0


@pytest.mark.parametrize(("height", "width"), [(3, 5), (128, 4), (300, 7)])
def test_encodings_by_their_formulas(height, width):
    theta = np.array([[y / 10000 ** (2 * (x // 2) / width) for x in range(width)] for y in range(height)])
    cos, sin, even = np.cos(theta), np.sin(theta), np.arange(width) % 2 == 0
    np.testing.assert_allclose(position_map("rope", height, width), np.where(even, cos - sin, cos + sin), atol=1e-12)


def test_the_encodings_of_the_ablation_are_the_released_ones():
    """Written out for a square image: the similarity of a mask with ones; row_sin cos(row_sin^T); two random vectors."""
    masks = np.random.default_rng(0).random((2, 8, 8)) < 0.4
    masks[1] &= ~masks[0]
    ones = np.ones(64)
    expected = sum(mask * (ones @ mask.ravel()) / (np.linalg.norm(ones) * np.linalg.norm(mask)) for mask in masks)
    for mean_over in ("region", "image"):
        found = structure_map(masks, encoding="cosine", mean_over=mean_over)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    row_sin = np.sin([[1 / 0.001 ** (2 * i / 8) for i in range(8)]])
    np.testing.assert_allclose(position_map("sincos", 8, 8), row_sin * np.cos(row_sin.T), atol=1e-9)
    linear = position_map("linear", 30, 20)
    assert np.linalg.matrix_rank(linear) == 1 and linear.min() >= 0 and linear.max() < 1 and linear.std() > 0.1
    assert not np.array_equal(linear[:20], linear[:20].T)


def test_normalised_maps_use_their_whole_range():
    masks = np.zeros((2, 6, 6), bool)
    masks[0, :, :2], masks[1, 3:, 2:] = True, True
    plain = structure_map(masks, mean_over="image")
    for name, low, high in (("unit", 0, 1), ("signed", -1, 1)):
        found = structure_map(masks, mean_over="image", normalise=name)
        assert (found.min(), found.max()) == (low, high)
        expected = low + (high - low) * (plain - plain.min()) / np.ptp(plain)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert not structure_map(np.ones((1, 4, 4), bool), normalise=name).any(), "one value has no range"


def test_regions_given_by_their_pixels_are_masks():
    masks = np.random.default_rng(0).random((5, 40, 33)) < 0.3
    masks[3] = False
    options = {"encoding": "sincos", "mean_over": "image", "overlap": "last"}
    regions = [np.flatnonzero(mask.ravel(order="F")) for mask in masks]
    assert np.array_equal(structure_of_regions(regions, (40, 33), **options), structure_map(masks, **options))


def test_no_mask_and_empty_mask_are_zero():
    assert not structure_map(np.zeros((0, 5, 3), bool)).any()
    assert structure_map(np.zeros((0, 5, 3), bool)).shape == (5, 3)
    assert not structure_map(np.zeros((2, 5, 3), bool)).any()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: structure_map(np.zeros((1, 2, 2), np.uint8)), "uint8"),
        (lambda: structure_map(np.zeros((2, 2), bool)), "(2, 2)"),
        (lambda: structure_map(np.zeros((1, 2, 2), bool), encoding="polar"), "'rope'"),
        (lambda: structure_map(np.zeros((1, 2, 2), bool), overlap="first"), "'last'"),
        (lambda: structure_map(np.zeros((1, 2, 2), bool), mean_over="mask"), "'region'"),
        (lambda: structure_map(np.zeros((1, 2, 2), bool), normalise="01"), "'signed'"),
    ],
)
def test_bad_input_is_named(call, told):
    with pytest.raises(SamDiffSRError) as caught:
        call()
    assert told in str(caught.value)
