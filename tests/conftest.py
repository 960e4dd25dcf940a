"""Fixtures shared by the tests: small real components, never mocks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

DATA = Path(__file__).with_name("data")
_NOISE = np.random.default_rng(3)

torch.set_num_threads(1)  # pytest-xdist runs one process a core


def noise_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 5), **options: Any) -> Path:
    """Write a small noise image of width and height `size`, and its folder; options are Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = _NOISE.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.frombytes(mode, size, pixels.tobytes()).save(path, **options)
    return path


@pytest.fixture
def tiny_pipe():
    """A real pipeline of the light pair with random weights, small enough for milliseconds a call."""
    from diffusers import DDIMScheduler

    from samdiffsr import LightDenoiser, LightEncoder, NoiseSchedule, SamDiffSRPipeline
    from samdiffsr.sampling.schedulers import make_scheduler

    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = LightEncoder(width=16, blocks=1)
        denoiser = LightDenoiser(width=16, blocks=1, feature_channels=16)
    scheduler = make_scheduler(DDIMScheduler, NoiseSchedule.cosine(100), "sample", timestep_spacing="trailing")
    pipe = SamDiffSRPipeline(
        encoder, denoiser, scheduler, base="encoder", residual_scale=4.0, shift="bridge", target="sample", steps=2
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_pipe_dir(tiny_pipe, tmp_path_factory) -> Path:
    """A folder that `from_pretrained` loads."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_pipe.save_pretrained(folder)
    return folder
