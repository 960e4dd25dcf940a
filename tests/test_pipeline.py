"""The pipeline with small real networks: sizes, types, seeds, batches, schedulers, saving."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image

from samdiffsr import (
    ConditionalUNet,
    NoiseSchedule,
    RRDBEncoder,
    SamDiffSRError,
    SamDiffSRPipeline,
    imresize,
)
from samdiffsr.sampling.schedulers import make_scheduler


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def paper_pipe():
    """The paper's networks, small; the U-Net needs sides that are a multiple of 8."""
    torch.manual_seed(0)
    encoder = RRDBEncoder(channels=8, blocks=3, growth=4)
    denoiser = ConditionalUNet(dim=8, multipliers=(1, 2, 3, 4), feature_channels=encoder.feature_channels)
    scheduler = make_scheduler(DDPMScheduler, NoiseSchedule.cosine(100), "marginal_noise", variance_type="fixed_small")
    pipe = SamDiffSRPipeline(encoder, denoiser, scheduler, target="marginal_noise", steps=3)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 4), (8, 8), (13, 9)])
@pytest.mark.parametrize("family", ["tiny_pipe", "paper_pipe"])
def test_any_size(request, family, size):
    pipe = request.getfixturevalue(family)
    out = pipe(picture(*size), generator=seeded(), output_type="np").images
    assert out.shape == (1, 4 * size[0], 4 * size[1], 3)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert 0 <= out.min() <= out.max() <= 1


def test_input_types_agree(tiny_pipe):
    image = picture(6, 5)
    forms = [
        image,
        Image.fromarray(image),
        image / 255,
        image / 255 * (1 + 1e-9),
        torch.from_numpy(image / 255).permute(2, 0, 1),
        (image.astype(np.uint16) * 257),
    ]
    results = [tiny_pipe(form, generator=seeded(), output_type="np").images for form in forms]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=2e-6)
    grey = picture(6, 5)[..., 0]
    np.testing.assert_array_equal(
        tiny_pipe(grey, generator=seeded(), output_type="np").images,
        tiny_pipe(np.stack([grey] * 3, axis=2), generator=seeded(), output_type="np").images,
    )


def test_output_types(tiny_pipe):
    image = picture(6, 5)
    array = tiny_pipe(image, generator=seeded(), output_type="np").images
    tensor = tiny_pipe(image, generator=seeded(), output_type="pt").images
    (pil,) = tiny_pipe(image, generator=seeded()).images
    assert tensor.shape == (1, 3, 24, 20)
    np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    assert pil.size == (20, 24)
    np.testing.assert_array_equal(np.asarray(pil), (array[0] * 255).round().astype(np.uint8))
    assert np.array_equal(tiny_pipe(image, generator=seeded(), return_dict=False)[0][0], pil)
    (eight,) = tiny_pipe(image, generator=seeded(), output_type="uint8").images
    (sixteen,) = tiny_pipe(image, generator=seeded(), output_type="uint16").images
    assert (eight.dtype, sixteen.dtype) == (np.uint8, np.uint16)
    np.testing.assert_array_equal(eight, np.asarray(pil))
    np.testing.assert_array_equal(sixteen, (array[0] * 65535).round().astype(np.uint16))


def test_an_image_does_not_depend_on_its_batch(tiny_pipe):
    images = [picture(6, 5), picture(3, 9, seed=1), picture(6, 5, seed=2)]
    alone = [tiny_pipe(image, generator=seeded(4), output_type="np").images[0] for image in images]
    together = tiny_pipe(images, generator=seeded(4), output_type="np").images
    listed = tiny_pipe(images, generator=[seeded(4) for _ in images], output_type="np").images
    for one, shared, own in zip(alone, together, listed, strict=True):
        np.testing.assert_array_equal(one, shared)
        np.testing.assert_array_equal(one, own)
    stacked = tiny_pipe(torch.from_numpy(images[0] / 255).permute(2, 0, 1)[None].repeat(2, 1, 1, 1), output_type="pt")
    assert stacked.images.shape == (2, 3, 24, 20)


def test_seeds_matter_and_repeat(tiny_pipe):
    image = picture(6, 5)
    first = tiny_pipe(image, generator=seeded(1), output_type="np").images
    assert np.array_equal(first, tiny_pipe(image, generator=seeded(1), output_type="np").images)
    assert not np.array_equal(first, tiny_pipe(image, generator=seeded(2), output_type="np").images)
    generator = seeded(1)
    tiny_pipe(image, generator=generator)
    assert not np.array_equal(first, tiny_pipe(image, generator=generator, output_type="np").images)
    torch.manual_seed(5)
    unseeded = tiny_pipe(image, output_type="np").images
    torch.manual_seed(5)
    assert np.array_equal(unseeded, tiny_pipe(image, output_type="np").images)


def test_what_comes_out_is_base_plus_residual(tiny_pipe):
    """With a denoiser that answers x_0 = 0.4 everywhere, sr = base + 0.4 / residual_scale in [-1, 1] units."""
    tiny_pipe.register_to_config(base="bicubic")
    with torch.no_grad():
        for parameter in tiny_pipe.denoiser.head.parameters():
            parameter.zero_()
        tiny_pipe.denoiser.head.bias.fill_(0.4)
    image = picture(6, 5)
    found = tiny_pipe(image, generator=seeded(), output_type="np").images[0]
    expected = (imresize(image / 255, 4) + 0.4 / 4 / 2).clip(0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_loses_and_moves_nothing(paper_pipe):
    """The features of a padded image are those of the image repeated at its border, so a constant stays constant."""
    flat = paper_pipe(np.full((3, 5, 3), 90, np.uint8), generator=seeded(), output_type="np").images
    assert flat.shape == (1, 12, 20, 3)
    image = picture(3, 5)
    padded = np.pad(image, ((0, 1), (0, 1), (0, 0)), mode="edge")
    out = paper_pipe(image, generator=seeded(), output_type="np").images[0]
    whole = paper_pipe(padded, generator=seeded(), output_type="np").images[0][:12, :20]
    inside = (slice(0, 4), slice(0, 12))  # away from the border, where bicubic sees the padding
    np.testing.assert_allclose(out[inside], whole[inside], atol=1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler,
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        EulerDiscreteScheduler,
        LCMScheduler,
    ],
)
def test_stock_schedulers_swap(tiny_pipe, scheduler):
    tiny_pipe.scheduler = make_scheduler(scheduler, NoiseSchedule.cosine(100), "sample")
    out = tiny_pipe(picture(4, 4), num_inference_steps=5, generator=seeded(), output_type="np").images
    assert np.isfinite(out).all()
    assert np.array_equal(
        out, tiny_pipe(picture(4, 4), num_inference_steps=5, generator=seeded(), output_type="np").images
    )


def test_a_scheduler_that_cannot_take_so_many_steps_says_so(tiny_pipe):
    tiny_pipe.scheduler = make_scheduler(LCMScheduler, NoiseSchedule.cosine(100), "sample", original_inference_steps=50)
    with pytest.raises(SamDiffSRError, match="LCMScheduler refuses 60 steps"):
        tiny_pipe(picture(2, 2), num_inference_steps=60)


def test_a_scheduler_that_misreads_the_prediction_is_refused(tiny_pipe):
    tiny_pipe.scheduler = make_scheduler(DDIMScheduler, NoiseSchedule.cosine(100), "marginal_noise")
    with pytest.raises(SamDiffSRError, match=r"prediction_type 'epsilon'.*'sample'"):
        tiny_pipe(picture(4, 4))


def test_posterior_noise_is_sampled_exactly_or_not_at_all(tiny_pipe):
    parts = {"encoder": tiny_pipe.encoder, "denoiser": tiny_pipe.denoiser}
    exact = make_scheduler(DDPMScheduler, NoiseSchedule.cosine(10), "posterior_noise")
    assert not exact.config.clip_sample
    pipe = SamDiffSRPipeline(**parts, scheduler=exact, target="posterior_noise", steps=10)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(picture(2, 2), generator=seeded()).images[0].size == (8, 8)
    with pytest.raises(SamDiffSRError, match="all 10 steps"):
        pipe(picture(2, 2), num_inference_steps=5)
    pipe.scheduler = make_scheduler(DDIMScheduler, NoiseSchedule.cosine(10), "posterior_noise")
    with pytest.raises(SamDiffSRError, match="DDIMScheduler"):
        pipe(picture(2, 2))
    pipe.scheduler = make_scheduler(DDPMScheduler, NoiseSchedule.cosine(10), "posterior_noise", clip_sample=True)
    with pytest.raises(SamDiffSRError, match="clip_sample=False"):
        pipe(picture(2, 2))


def test_what_cannot_sample_is_told(tiny_pipe):
    whole, image = tiny_pipe.scheduler, picture(3, 2)
    try:
        for kind in (EulerAncestralDiscreteScheduler, PNDMScheduler, FlowMatchEulerDiscreteScheduler):
            tiny_pipe.scheduler = kind.from_config(whole.config)
            with pytest.raises(SamDiffSRError, match=kind.__name__):
                tiny_pipe(image, 4)
    finally:
        tiny_pipe.scheduler = whole
    for generator in (5, (5,)):
        with pytest.raises(SamDiffSRError, match=r"torch\.Generator"):
            tiny_pipe(image, generator=generator)
    expected = tiny_pipe(image, 2, generator=seeded(), output_type="np").images
    silent = {"callback_on_step_end": lambda *_: None, "generator": (seeded(),)}
    assert np.array_equal(tiny_pipe(image, np.int64(2), output_type="np", **silent).images, expected)


def test_callback_sees_each_step_and_may_replace_the_state(tiny_pipe):
    seen = []

    def watch(pipe, step, timestep, values):
        seen.append((pipe is tiny_pipe, step, timestep, tuple(values["latents"].shape)))
        return {"latents": torch.zeros_like(values["latents"])} if step == 2 else values

    out = tiny_pipe(
        picture(3, 2), num_inference_steps=3, generator=seeded(), output_type="np", callback_on_step_end=watch
    ).images[0]
    assert seen == [(True, 0, 99, (1, 3, 12, 8)), (True, 1, 66, (1, 3, 12, 8)), (True, 2, 32, (1, 3, 12, 8))]
    with torch.no_grad():
        base = tiny_pipe.encoder(torch.from_numpy(picture(3, 2) / 255).permute(2, 0, 1)[None].float() * 2 - 1)
    np.testing.assert_allclose(out, (base[0].permute(1, 2, 0).numpy() + 1) / 2, atol=1e-6)


def test_saving_and_loading_is_bit_equal(tiny_pipe, tmp_path):
    tiny_pipe.save_pretrained(tmp_path / "m")
    loaded = SamDiffSRPipeline.from_pretrained(tmp_path / "m")
    loaded.set_progress_bar_config(disable=True)
    image = picture(6, 5)
    expected = tiny_pipe(image, generator=seeded(), output_type="np").images
    assert np.array_equal(loaded(image, generator=seeded(), output_type="np").images, expected)
    assert {
        name: loaded.config[name] for name in ("base", "residual_scale", "shift", "target", "steps", "lr_divisor")
    } == {
        "base": "encoder",
        "residual_scale": 4.0,
        "shift": "released",
        "target": "sample",
        "steps": 2,
        "lr_divisor": 255,
    }
    assert not list((tmp_path / "m").rglob("*.bin"))


def test_half_precision_weights_load_as_float32(tiny_pipe, tmp_path):
    tiny_pipe.to(torch.float16).save_pretrained(tmp_path / "m")
    loaded = SamDiffSRPipeline.from_pretrained(tmp_path / "m")
    assert loaded.denoiser.dtype == loaded.encoder.dtype == torch.float32


def test_pil_images_of_16_bit_are_not_clipped(tiny_pipe):
    ramp = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    deep, plain = (
        tiny_pipe(image, generator=seeded(), output_type="uint16").images[0] for image in (Image.fromarray(ramp), ramp)
    )
    assert Image.fromarray(ramp).mode == "I;16" and np.array_equal(deep, plain)
    for mode in ("I", "F"):
        with pytest.raises(SamDiffSRError, match=f"mode '{mode}'"):
            tiny_pipe(Image.new(mode, (4, 4)))


def test_a_missing_or_damaged_model_is_named(tiny_pipe, tmp_path):
    with pytest.raises(SamDiffSRError, match="nowhere"):
        SamDiffSRPipeline.from_pretrained("nowhere")
    tiny_pipe.save_pretrained(tmp_path / "m")
    weights = next((tmp_path / "m" / "denoiser").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(SamDiffSRError, match="cannot be loaded"):
        SamDiffSRPipeline.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ([], "empty list"),
        ("photo.png", "str"),
        (np.zeros((4, 4, 4), np.uint8), "(4, 4, 4)"),
        (np.zeros((0, 4, 3), np.uint8), "height 0"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.full((4, 4, 3), 7.0), "7"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (torch.full((3, 4, 4), -1.0), "-1"),
        (torch.zeros(4, 4, 3), "(4, 4, 3)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "uint8"),
    ],
)
def test_bad_images_are_named(tiny_pipe, image, told):
    with pytest.raises(SamDiffSRError) as caught:
        tiny_pipe(image)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_inference_steps": 0}, "from 1 to 100"),
        ({"num_inference_steps": 101}, "101"),
        ({"output_type": "jpg"}, "'pil'"),
        ({"generator": [seeded(), seeded()]}, "list of 2"),
    ],
)
def test_bad_options_are_named(tiny_pipe, options, told):
    with pytest.raises(SamDiffSRError) as caught:
        tiny_pipe(picture(2, 2), **options)
    assert told in str(caught.value)


def test_what_can_be_computed_once_is(paper_pipe, tiny_pipe):
    """The condition once an image, no half of a network whose result nobody reads, and no graph."""
    calls = []
    tiny_pipe.register_to_config(base="bicubic")
    for pipe, once, never in (
        (paper_pipe, paper_pipe.denoiser.cond_proj, paper_pipe.encoder.HRconv),
        (tiny_pipe, tiny_pipe.denoiser.conv_features, tiny_pipe.encoder.head),
    ):
        calls.clear()
        once.register_forward_hook(lambda *_: calls.append(not torch.is_grad_enabled()))
        never.register_forward_hook(lambda *_: calls.append("wasted"))
        pipe(picture(6, 5), num_inference_steps=3)
        assert calls == [True]


def test_detail_scales_what_is_added_to_the_base(tiny_pipe, tmp_path):
    """0 is the encoder's own estimate, and between 0 and 1 the results lie on a line, where nothing is clamped."""
    lr = 0.25 + 0.5 * torch.rand(3, 6, 5, generator=seeded())

    def result(**options):
        return tiny_pipe(lr, generator=seeded(), output_type="pt", **options).images[0]

    whole, base = result(), result(detail=0)
    expected = (tiny_pipe.encoder(2 * lr[None] - 1)[0] + 1) / 2
    torch.testing.assert_close(base, expected, atol=1e-6, rtol=0)
    free = ((whole > 0) & (whole < 1)).float()
    assert free.mean() > 0.5
    assert (whole - base).abs().max() > 1e-3
    torch.testing.assert_close(free * result(detail=0.25), free * (0.75 * base + 0.25 * whole), atol=1e-6, rtol=0)
    tiny_pipe.register_to_config(detail=0.25)
    tiny_pipe.save_pretrained(tmp_path)
    saved = SamDiffSRPipeline.from_pretrained(tmp_path)
    assert torch.equal(saved(lr, generator=seeded(), output_type="pt").images[0], result(detail=0.25))


@pytest.mark.parametrize("detail", [-0.1, 2.5, float("nan")])
def test_a_detail_out_of_range_is_named(tiny_pipe, detail):
    with pytest.raises(SamDiffSRError, match=str(detail)):
        tiny_pipe(picture(4, 4), detail=detail)
