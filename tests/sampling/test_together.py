"""Small images of one size go through the networks together, and come out as each would alone."""

import diffusers
import numpy as np
import pytest
import torch

import samdiffsr.sampling.noise_blocks
import samdiffsr.sampling.upscaler
from samdiffsr import NoiseSchedule
from samdiffsr.sampling.schedulers import make_scheduler
from support import paper_pipe

RNG = np.random.default_rng(3)
IMAGES = [RNG.integers(0, 256 >> number, (11, 14, 3), dtype=np.uint8) for number in range(3)]
MAPS = [RNG.uniform(-1, 1, (44, 56)).astype(np.float32) for _ in IMAGES]


@pytest.fixture(params=["light", "paper"])
def pipe(request, able_pipe):
    return able_pipe if request.param == "light" else paper_pipe()


def run(pipe, images, first=0, **options):
    """With a generator of its own for each image, `first` for the first."""
    generators = [torch.Generator().manual_seed(first + number) for number in range(len(images))]
    options = {"num_inference_steps": 3, "output_type": "np"} | options
    return pipe(images, generator=generators, **options)


def alone(pipe, images, **options):
    return [run(pipe, [one], first=number, **options) for number, one in enumerate(images)]


def batches(pipe):
    """The number of images in each pass of the denoiser from now on."""
    seen = []
    forward = pipe.denoiser.forward
    pipe.denoiser.forward = lambda x, *rest, **named: (seen.append(len(x)), forward(x, *rest, **named))[1]
    return seen


def assert_as_alone(found, singles):
    assert len(found.images) == len(singles)
    for one, single in zip(found.images, singles, strict=True):
        assert np.abs(np.float64(one) - single.images[0]).max() < 1e-4


@pytest.mark.parametrize("tile", [0, 5])
@pytest.mark.parametrize("name", ["DDPM", "DDIM", "UniPCMultistep", "SASolver", "LCM"])
def test_each_is_what_it_is_alone(pipe, name, tile):
    target = pipe.config["target"]
    pipe.scheduler = make_scheduler(getattr(diffusers, f"{name}Scheduler"), NoiseSchedule.cosine(100), target)
    singles = alone(pipe, IMAGES, tile=tile, on_warning=print)
    seen = batches(pipe)
    assert_as_alone(run(pipe, IMAGES, tile=tile, on_warning=print), singles)
    assert set(seen) == {3}
    assert np.abs(singles[0].images[0] - singles[1].images[0]).max() > 0.1


@pytest.mark.parametrize("structure", ["model", "felzenszwalb", MAPS])
def test_each_has_its_own_structure_map(able_pipe, structure):
    able_pipe.register_to_config(shift="paper")  # the map counts most
    found = run(able_pipe, IMAGES, structure=structure, return_structure=True)
    for number, image in enumerate(IMAGES):
        wanted = MAPS[number] if structure is MAPS else structure
        single = run(able_pipe, [image], first=number, structure=wanted, return_structure=True)
        assert np.abs(found.structures[number] - single.structures[0]).max() < 1e-4
        assert np.abs(found.images[number] - single.images[0]).max() < 1e-4
    assert np.abs(found.structures[0] - found.structures[1]).max() > 0.01


def test_each_has_its_own_level(able_pipe):
    found, singles = run(able_pipe, IMAGES), alone(able_pipe, IMAGES)
    assert found.levels == pytest.approx([single.levels[0] for single in singles], abs=1e-6)
    assert len(set(found.levels)) == 3
    assert_as_alone(found, singles)


def test_one_generator_gives_each_the_same_noise(able_pipe):
    found = able_pipe([IMAGES[0], IMAGES[0]], generator=torch.Generator().manual_seed(5), output_type="np")
    assert np.abs(found.images[0] - found.images[1]).max() < 1e-6


def test_several_blocks_of_noise(able_pipe, monkeypatch):
    monkeypatch.setattr(samdiffsr.sampling.noise_blocks, "BLOCK_HR", 20)
    assert_as_alone(run(able_pipe, IMAGES), alone(able_pipe, IMAGES))


def test_what_did_not_suffice_for_one_is_computed_again_for_all(able_pipe):
    warnings = []
    with torch.no_grad():  # white, which bfloat16 holds
        able_pipe.encoder.head.bias.fill_(1e4)
    grey = [np.full_like(IMAGES[0], 9), np.full_like(IMAGES[0], 90)]
    run(able_pipe, grey, detail=0, precision="bfloat16", on_warning=warnings.append)
    assert not warnings  # pictures of one colour may stay so
    found = run(able_pipe, [*grey, IMAGES[2]], detail=0, precision="bfloat16", on_warning=warnings.append).images
    assert len(found) == 3
    assert warnings == ["bfloat16 did not suffice, the result has one colour: the picture is computed again in float32"]


def test_the_same_noise_when_computed_again(able_pipe):
    """Answers that float32 holds and float16 does not."""
    with torch.no_grad():
        able_pipe.denoiser.conv_in.weight.mul_(1e6)
    wanted, warnings = run(able_pipe, IMAGES).images, []
    again = run(able_pipe, IMAGES, precision="float16", on_warning=warnings.append).images
    assert len(warnings) == 1
    np.testing.assert_array_equal(again, wanted)


def test_which_go_together(able_pipe, monkeypatch):
    """Those of one size and type that follow each other, as many as a call takes; the order stays."""
    assert able_pipe.together(16, 16) == 4 and able_pipe.together(33, 32) == 1
    monkeypatch.setitem(samdiffsr.sampling.upscaler.TOGETHER, "cpu", 2 * 11 * 14)
    deep = IMAGES[1].astype(np.uint16) * 257
    images = [IMAGES[0], IMAGES[1], IMAGES[2], IMAGES[0][:9], IMAGES[1], deep, deep]
    singles, parts = alone(able_pipe, images), []
    seen = batches(able_pipe)
    found = run(able_pipe, images, on_progress=parts.append)
    assert_as_alone(found, singles)
    assert seen == [2] * 3 + [1] * 9 + [2] * 3
    assert parts == sorted(parts) and parts[-1] == pytest.approx(1)


def test_a_callback_sees_them_together(able_pipe):
    shapes = []

    def look(pipe, step, timestep, values):
        shapes.append(tuple(values["latents"].shape))
        return {"latents": torch.zeros_like(values["latents"])}

    found = run(able_pipe, IMAGES, callback_on_step_end=look)
    assert shapes == [(3, 3, 44, 56)] * 3
    assert_as_alone(found, alone(able_pipe, IMAGES, detail=0))


def test_one_that_became_one_colour_is_found_beside_another(able_pipe):
    """A dark picture turns black, a bright one beside it does not: both are computed again, with the first one's noise."""
    with torch.no_grad():
        able_pipe.encoder.head.weight.zero_()
        able_pipe.encoder.head.bias.fill_(-1.2)
    bright = IMAGES[2] + np.uint8(192)  # its numbers are below 64
    for pictures, expected in (([IMAGES[2], bright], 1), ([bright, bright], 0)):
        warnings: list[str] = []
        run(able_pipe, pictures, detail=0, precision="bfloat16", on_warning=warnings.append)
        assert ["the result has one colour" in warning for warning in warnings] == [True] * expected
