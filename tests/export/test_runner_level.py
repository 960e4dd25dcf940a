"""The runner with networks that heed the level of degradation: given, or estimated as the pipeline estimates it."""

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler

from samdiffsr import LightDenoiser, LightEncoder, NoiseSchedule, SamDiffSRPipeline
from samdiffsr.export.networks import export_networks
from samdiffsr.export.run_onnx import Upscaler
from samdiffsr.sampling.schedulers import make_scheduler


def with_level() -> SamDiffSRPipeline:
    """The light pair, whose networks both heed the level."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trunk = {"width": 16, "blocks": 1, "convs": 3, "activation": "silu", "level": True}
        encoder, denoiser = LightEncoder(**trunk), LightDenoiser(feature_channels=16, **trunk)
        torch.nn.init.normal_(encoder.trunk[0].film.weight, std=0.3)
        torch.nn.init.normal_(denoiser.level_embedding.out.weight, std=0.3)
        torch.nn.init.normal_(denoiser.trunk[0].film.weight, std=0.3)
        torch.nn.init.normal_(denoiser.head.weight, std=0.1)
        torch.nn.init.constant_(encoder.level_head.out.bias, 0.4)
    scheduler = make_scheduler(LCMScheduler, NoiseSchedule.cosine(20), "sample")
    made = SamDiffSRPipeline(encoder, denoiser, scheduler, base="encoder", detail=0.7, target="sample", steps=3)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tracing takes seconds, so once."""
    made = tmp_path_factory.mktemp("onnx") / "level"
    export_networks(with_level(), made)
    names = ["config.json", "denoiser.onnx", "encoder.onnx", "level.onnx", "run_onnx.py"]
    assert sorted(path.name for path in made.iterdir()) == names
    return made


def picture(height, width):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torch_noise():
    """The numbers of a torch generator, as the runner asks for them."""
    generator = torch.Generator().manual_seed(0)
    return lambda shape: torch.randn(shape, generator=generator).numpy()


@pytest.mark.parametrize("clean", [None, 0.0, 0.7])
def test_runner_heeds_the_level(folder, clean):
    """The estimate is a mean over windows of 256 pixels: of this picture two."""
    pipe, upscaler, image = with_level(), Upscaler(folder), picture(20, 300)
    generator = torch.Generator().manual_seed(0)
    wanted = pipe(image[:, :100], generator=generator, output_type="np", clean=clean)
    found = upscaler(image[:, :100], noise=torch_noise(), clean=clean)
    np.testing.assert_allclose(found, wanted.images[0], atol=1e-4)
    level = upscaler.level(image.transpose(2, 0, 1)[None] / np.float32(255), clean)
    (expected,) = pipe(image, 1, torch.Generator().manual_seed(0), clean=clean).levels
    np.testing.assert_allclose(level, [expected], atol=1e-5)
    assert 0 < level < 1 or clean == 0


def test_runner_gives_the_same_in_tiles(folder):
    image = picture(70, 31)
    whole, tiled = (Upscaler(folder, tile=tile)(image, noise=torch_noise()) for tile in (0, 21))
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
