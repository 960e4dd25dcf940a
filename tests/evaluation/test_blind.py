"""Judging without originals: each figure sees what it is for."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from samdiffsr.cli import app
from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.evaluation.blind import as_picture, blockiness, disagreement, sharpness
from samdiffsr.evaluation.niqe import asymmetric_gaussian, niqe, patch_features
from samdiffsr.images import read_image
from samdiffsr.resize import imresize
from support import EXAMPLES

RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """A real one of at least two patches."""
    found = (read_image(file).rgb for file in sorted(EXAMPLES.rglob("*.jpg")) + sorted(EXAMPLES.rglob("*.png")))
    return next(rgb for rgb in found if min(rgb.shape[:2]) >= 192)[:384, :384]


@pytest.mark.parametrize(("shape", "left", "right"), [(2.0, 1.0, 1.0), (1.0, 1.0, 1.0), (2.0, 0.5, 1.5)])
def test_the_fit_finds_the_distribution_that_was_drawn(shape: float, left: float, right: float) -> None:
    half = RNG.gamma(1 / shape, 1, 200_000) ** (1 / shape)  # of exp(-|x|^shape)
    side = RNG.random(half.size) < left / (left + right)
    values = np.where(side, -half * left, half * right)
    found = np.array(asymmetric_gaussian(values[None]))[:, 0]
    np.testing.assert_allclose(found, (shape, left, right), rtol=0.03)


def test_niqe_prefers_a_photograph_to_its_blurred_and_its_noisy_copy(photograph: np.ndarray) -> None:
    good = niqe(photograph)
    blurred = imresize(imresize(photograph, 1 / 4), size=photograph.shape[:2])
    noisy = (photograph + RNG.normal(0, 25, photograph.shape)).clip(0, 255).astype(np.uint8)
    assert good < niqe(blurred) and good < niqe(noisy)
    assert math.isfinite(niqe(np.full((192, 192, 3), 90, np.uint8)))  # a flat picture


def test_niqe_has_36_features_a_patch_and_needs_two(photograph: np.ndarray) -> None:
    features, sharp = patch_features(photograph[:200, :300])
    assert features.shape == (6, 36) and sharp.shape == (6,)
    with pytest.raises(ImageError, match="NIQE needs two patches of 96x96, but the image is 100x100"):
        niqe(photograph[:100, :100])


def test_blockiness_is_one_without_blocks_and_more_with_them() -> None:
    smooth = np.add.outer(np.arange(128), np.arange(128))[..., None].repeat(3, axis=2).astype(np.uint8)
    assert blockiness(smooth) == pytest.approx(1)
    blocks = smooth + (10 * RNG.integers(0, 5, (4, 4, 1))).repeat(32, axis=0).repeat(32, axis=1)
    assert blockiness(blocks.astype(np.uint8)) > 3
    with pytest.raises(ImageError, match="34 pixels a side, but the image is 128x33"):
        blockiness(smooth[:33])


def test_sharpness_counts_steps() -> None:
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::2] = 255
    assert sharpness(stripes) == pytest.approx(219 / 2)  # every step across, none along; Y spans 16 to 235


def test_disagreement_is_the_standard_deviation() -> None:
    results = RNG.integers(0, 256, (3, 5, 4, 3)).astype(np.uint8)
    expected = np.sqrt(results.astype(float).var(axis=0, ddof=1).mean(axis=2))
    np.testing.assert_allclose(disagreement(list(results)), expected, rtol=1e-5)
    assert not disagreement([results[0], results[0]]).any()
    with pytest.raises(ConfigError, match="at least 2 seeds, got 1"):
        disagreement(list(results[:1]))
    picture = as_picture(np.array([[0, 1], [31, 99]], np.float32))
    assert picture.grey and picture.rgb[..., 0].tolist() == [[0, 8], [248, 255]]


def test_evaluate_of_lr_alone(tiny_pipe_dir: Path, tmp_path: Path, photograph: np.ndarray) -> None:
    lr = tmp_path / "lr"
    lr.mkdir()
    Image.fromarray(photograph[:48, :60]).save(lr / "a.png")
    Image.fromarray(photograph[:7, :9]).save(lr / "b.png")
    words = ["evaluate", "--lr", str(lr), "-m", str(tiny_pipe_dir), "--baseline", "bicubic", "--seeds", "0,1"]
    made = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "r")])
    assert made.exit_code == 0, made.output
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    bicubic, model = report["means"]["bicubic"], report["means"][str(tiny_pipe_dir)]
    assert set(bicubic) == {"niqe", "lr-psnr", "blockiness", "sharpness"}
    assert set(model) == {*bicubic, "disagreement"} and model["disagreement"] > 0
    assert "'b.png': NIQE needs two patches" in (tmp_path / "r" / "report.md").read_text()
    pictures = sorted(file.name for file in (tmp_path / "r").glob("*_disagreement.png"))
    assert len(pictures) == 2 and read_image(tmp_path / "r" / pictures[0]).rgb.shape == (192, 240, 3)
    for more, sentence in (
        (["evaluate", "-o", "x"], "give --hr, or --lr alone"),
        ([*words, "-o", "x", "--published"], "--published needs originals"),
    ):
        refused = CliRunner().invoke(app, more)
        assert isinstance(refused.exception, ConfigError) and sentence in str(refused.exception)
