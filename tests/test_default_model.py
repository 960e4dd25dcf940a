"""The embedded model: it is whole, small, documented, and better than bicubic on pictures it never saw."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr import SamDiffSRPipeline, imresize
from samdiffsr.evaluation.metrics import psnr_y
from samdiffsr.models.weights import DEFAULT_MODEL
from support import EXAMPLES


@pytest.fixture(scope="module")
def pipe():
    loaded = SamDiffSRPipeline.from_pretrained("default")
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_weights_are_half_precision_and_under_12_megabytes():
    files = list(DEFAULT_MODEL.rglob("*.safetensors"))
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) < 12e6
    for file in files:
        header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
        assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F16"}
    assert (DEFAULT_MODEL / "README.md").is_file()


def test_it_was_trained_with_structure_modulated_noise(pipe):
    assert pipe.config["shift"] == "released"


@pytest.mark.parametrize(("detail", "gain"), [(None, 0.25), (0, 0.5)])
@pytest.mark.parametrize("name", ["astronaut", "cat", "coffee"])
def test_above_bicubic(pipe, name, detail, gain):
    """In dB, on a 48x48 window of each example; none of them was trained on. The default trades some for sharpness."""
    lr = np.asarray(Image.open(EXAMPLES / f"{name}.png").convert("RGB"))[10:58, 20:68]
    hr = np.asarray(Image.open(EXAMPLES / "originals" / f"{name}.png").convert("RGB"))[40:232, 80:272]
    sr = np.asarray(pipe(lr, generator=torch.Generator().manual_seed(0), detail=detail).images[0])
    assert psnr_y(sr, hr) > psnr_y(imresize(lr, 4), hr) + gain
    assert abs(sr.mean((0, 1)) - lr.mean((0, 1))).max() < 1


def test_results_do_not_depend_on_the_day(pipe):
    image = np.asarray(Image.open(EXAMPLES / "cat.png"))[:16, :16]
    first, second = (pipe(image, generator=torch.Generator().manual_seed(3)).images[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()
