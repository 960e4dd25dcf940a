"""`clean`: the level of degradation that sampling takes an image to have, given or estimated."""

import numpy as np
import pytest
import torch

import samdiffsr.sampling.tiled
from samdiffsr import LightDenoiser, LightEncoder, NoiseSchedule, SamDiffSRPipeline
from samdiffsr.errors import ConfigError
from samdiffsr.models.level import WIDTH
from samdiffsr.models.weights import with_options
from samdiffsr.sampling.schedulers import named_scheduler


def pipeline(encoder, denoiser):
    scheduler = named_scheduler("ddim", NoiseSchedule.cosine(100), "sample")
    pipe = SamDiffSRPipeline(encoder, denoiser, scheduler, base="encoder", target="sample", shift="none", steps=2)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, image, **options):
    return pipe(image, generator=torch.Generator().manual_seed(0), output_type="uint8", **options)


@pytest.fixture
def plain():
    torch.manual_seed(0)
    denoiser = LightDenoiser(8, 1, 8)
    with torch.no_grad():
        denoiser.trunk[0].film.weight.normal_(0, 0.3)
        denoiser.trunk[0].conv2.weight.mul_(10)
        denoiser.head.weight.mul_(10)
    return pipeline(LightEncoder(8, 1), denoiser)


@pytest.fixture
def levelled(plain):
    """The same model with the input, whose new weights are as after training: not zero."""
    encoder, denoiser = with_options(plain.encoder, level=True), with_options(plain.denoiser, level=True)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in [*encoder.named_parameters(), *denoiser.named_parameters()]:
            if "level_embedding" in name or (name == "trunk.0.film.weight" and weight.shape[1] == WIDTH):
                weight.add_(0.3 * torch.randn_like(weight))
        encoder.level_head.out.bias.fill_(0.5)
    return pipeline(encoder, denoiser)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (19, 30, 3), dtype=np.uint8)


def test_a_model_without_the_input_refuses_to_clean(plain, image):
    with pytest.raises(ConfigError, match=r"clean is 0\.5, but this model was not trained to clean"):
        run(plain, image, clean=0.5)
    assert np.array_equal(run(plain, image).images[0], run(plain, image, clean=0).images[0])
    assert run(plain, image).levels is None


def test_the_range(levelled, image):
    for wrong in (-0.1, 1.1, float("nan"), "auto"):
        with pytest.raises(ConfigError, match="clean is"):
            run(levelled, image, clean=wrong)


def test_level_0_is_the_plain_model_and_others_are_not(plain, levelled, image):
    wanted = run(plain, image).images[0]
    assert np.array_equal(run(levelled, image, clean=0).images[0], wanted)
    found = [run(levelled, image, clean=clean).images[0].astype(int) for clean in (0.5, 1)]
    assert np.abs(found[0] - wanted).mean() > 0.5
    assert np.abs(found[0] - found[1]).mean() > 0.5


def test_both_networks_get_the_level(plain, levelled, image):
    half = pipeline(levelled.encoder, plain.denoiser)
    assert not np.array_equal(run(half, image, clean=1).images[0], run(levelled, image, clean=1).images[0])
    with pytest.raises(ConfigError, match="encoder does not"):
        pipeline(plain.encoder, levelled.denoiser)


def test_auto_is_the_estimate_of_each_image(levelled, image):
    """The estimate of the whole image; giving it by hand draws the same picture."""
    other = image // 8
    found = run(levelled, [image, other])
    for one, sr, level in zip((image, other), found.images, found.levels, strict=True):
        signed = torch.from_numpy(one.astype(np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1
        with torch.no_grad():
            assert level == pytest.approx(levelled.encoder.estimate_level([signed]).item(), abs=1e-5)
        given = run(levelled, one, clean=level)
        assert given.levels == [pytest.approx(level)]
        assert np.array_equal(given.images[0], sr)
    assert abs(found.levels[0] - found.levels[1]) > 0.01


def test_the_estimate_does_not_depend_on_the_tile(levelled, image, monkeypatch):
    """Not even where the estimate itself needs several windows."""
    monkeypatch.setattr(samdiffsr.sampling.tiled, "LEVEL_TILE_LR", 12)
    whole, tiled = run(levelled, image, tile=0), run(levelled, image, tile=8)
    assert whole.levels == tiled.levels
    assert np.abs(whole.images[0].astype(int) - tiled.images[0]).max() <= 1


def test_a_saved_model_keeps_the_input(levelled, image, tmp_path):
    levelled.save_pretrained(tmp_path)
    loaded = SamDiffSRPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(run(loaded, image, clean=0.7).images[0], run(levelled, image, clean=0.7).images[0])
