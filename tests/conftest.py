"""Fixtures shared by the tests: small real components, never mocks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support import write_masks

torch.set_num_threads(1)  # pytest-xdist runs one process a core


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
        encoder, denoiser, scheduler, base="encoder", residual_scale=4.0, shift="released", target="sample", steps=2
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def able_pipe():
    """A tiny pipeline with the input for a level of degradation, and with a structure head."""
    from diffusers import DDIMScheduler

    from samdiffsr import LightDenoiser, LightEncoder, NoiseSchedule, SamDiffSRPipeline
    from samdiffsr.models.weights import with_options
    from samdiffsr.sampling.schedulers import make_scheduler

    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = with_options(LightEncoder(width=16, blocks=1), level=True)
        denoiser = with_options(LightDenoiser(width=16, blocks=1, feature_channels=16, with_structure=True), level=True)
        for network in (encoder, denoiser):
            for name, weight in network.named_parameters():
                if "level_embedding" in name or "film" in name:  # 0 in a new network: it would not look at the level
                    torch.nn.init.normal_(weight, std=0.3)
        torch.nn.init.constant_(encoder.level_head.out.bias, 0.5)  # else its estimates are 0 or 1
        torch.nn.init.normal_(encoder.level_head.out.weight, std=0.01)
    scheduler = make_scheduler(DDIMScheduler, NoiseSchedule.cosine(100), "sample", timestep_spacing="trailing")
    pipe = SamDiffSRPipeline(encoder, denoiser, scheduler, base="encoder", shift="bridge", target="sample", steps=2)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_pipe_dir(tiny_pipe, tmp_path_factory) -> Path:
    """A folder that `from_pretrained` loads."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two photographs, 50x41 and 48x64 (height x width), each with two regions; returns the folder of images and masks."""
    (tmp_path / "hr").mkdir()
    (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    for stem, (height, width) in {"a": (50, 41), "b": (48, 64)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"hr/{stem}.png")
        left = np.zeros((height, width), bool)
        left[:, :17] = True
        write_masks(tmp_path / f"masks/{stem}.json", [left, ~left])
    return tmp_path
