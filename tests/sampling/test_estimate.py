"""The structure map in sampling: the model's head, a segmenter, the caller's map, and what is refused without one."""

import numpy as np
import pytest
import torch
from PIL import Image

import samdiffsr.sampling.noise_blocks
import samdiffsr.sampling.tiled
from samdiffsr import ConditionalUNet, LightDenoiser, LightEncoder, NoiseSchedule, SamDiffSRError, SamDiffSRPipeline
from samdiffsr.sampling.schedulers import named_scheduler
from samdiffsr.structure import ENCODINGS, draw_structure, position_map, position_window, structure_map

COSINE = NoiseSchedule.cosine(100)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pipe_with(
    target="posterior_noise",
    shift="paper",
    *,
    head=True,
    unet=False,
    scheduler="ddim",
    structure_input=False,
    **options,
):
    torch.manual_seed(0)
    encoder = LightEncoder(width=8, blocks=1)
    given = {"feature_channels": 8, "with_structure": head, "structure_input": structure_input}
    if unet:
        denoiser = ConditionalUNet(dim=4, multipliers=(1, 2), **given)
    else:
        denoiser = LightDenoiser(width=8, blocks=1, **given)
    if structure_input:
        torch.nn.init.kaiming_normal_(denoiser.conv_structure.weight)
    if head:
        torch.nn.init.kaiming_normal_(denoiser.structure_head.conv_out.weight)  # a new head hardly answers
        for layer in denoiser.structure_head.trunk:
            torch.nn.init.kaiming_normal_(layer.weight)
    pipe = SamDiffSRPipeline(
        encoder,
        denoiser,
        named_scheduler(scheduler, COSINE, target, estimated=True),
        base="encoder",
        shift=shift,
        target=target,
        steps=3,
        **options,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, image, **options):
    return pipe(image, generator=seeded(), output_type="np", **options)


@pytest.mark.parametrize("target", ["posterior_noise", "sample"])
def test_the_models_own_estimate_is_used_and_returned(target):
    pipe, image = pipe_with(target), picture(6, 5)
    out = run(pipe, image, return_structure=True)
    (found,) = out.structures
    assert found.shape == (24, 20) and found.dtype == np.float32 and found.std() > 0.01
    np.testing.assert_array_equal(run(pipe, image).images, out.images)
    np.testing.assert_allclose(run(pipe, image, structure=found).images, out.images, atol=1e-5)
    other = run(pipe, image, structure=np.zeros_like(found)).images
    assert np.abs(other - out.images).max() > 1e-4
    image_list, maps = pipe([image, image], generator=seeded(), return_dict=False, return_structure=True)
    assert len(image_list) == len(maps) == 2 and isinstance(maps[0], Image.Image) and maps[0].size == (20, 24)


@pytest.mark.parametrize("unet", [False, True])
def test_the_map_as_an_input_reaches_the_denoiser_without_any_shift(unet):
    pipe, image = pipe_with("sample", "none", unet=unet, structure_input=True), picture(21, 18)
    (found,) = run(pipe, image, return_structure=True).structures
    own = run(pipe, image).images
    np.testing.assert_allclose(run(pipe, image, structure=found).images, own, atol=1e-5)
    assert np.abs(run(pipe, image, structure=found + 1).images - own).max() > 1e-3
    np.testing.assert_allclose(run(pipe, image, tile=9).images, run(pipe, image, tile=0).images, atol=1e-5)
    plain = pipe_with("sample", "none", unet=unet)
    np.testing.assert_array_equal(run(plain, image, structure=found + 1).images, run(plain, image).images)


def test_a_denoiser_that_takes_the_map_is_not_exported():
    export = pytest.importorskip("samdiffsr.export.sampler")  # needs the extra `onnx`
    for head in (False, True):
        with pytest.raises(SamDiffSRError, match=r"without diffusion\.network\.structure_input"):
            export.sampler_of(pipe_with("sample", "none", head=head, structure_input=True))


def test_a_denoiser_that_takes_the_map_is_never_sampled_without_one(tmp_path):
    image = picture(3, 2)
    for head in (False, True):
        pipe = pipe_with("sample", "none", head=head, structure_input=True)
        with pytest.raises(SamDiffSRError, match="takes the structure map as an input, but structure is 'none'"):
            run(pipe, image, structure="none")
    pipe = pipe_with("sample", "none", head=False, structure_input=True)
    with pytest.raises(SamDiffSRError, match="takes the structure map"):
        run(pipe, image)
    pipe.save_pretrained(tmp_path / "m")
    loaded = SamDiffSRPipeline.from_pretrained(tmp_path / "m")
    loaded.set_progress_bar_config(disable=True)
    given = {"structure": np.ones((12, 8), np.float32)}
    np.testing.assert_array_equal(run(loaded, image, **given).images, run(pipe, image, **given).images)


@pytest.mark.parametrize("options", [{"mean_over": "image"}, {"normalise": "signed"}, {"encoding": "cosine"}])
def test_a_segmented_map_is_made_as_those_of_the_training_were(options, tmp_path):
    image = np.zeros((24, 24, 3), np.uint8)
    image[:, 9:] = 220
    pipe_with(head=False, **options).save_pretrained(tmp_path / "m")
    pipe = SamDiffSRPipeline.from_pretrained(tmp_path / "m")
    (found,) = run(pipe, image, structure="felzenszwalb", return_structure=True).structures
    (plain,) = run(pipe_with(head=False), image, structure="felzenszwalb", return_structure=True).structures
    masks = np.stack([plain == value for value in np.unique(plain)])
    np.testing.assert_allclose(found, structure_map(masks, **options), atol=1e-6)
    assert np.abs(found - plain).max() > 0.01


@pytest.mark.parametrize("unet", [False, True])
def test_the_estimate_does_not_depend_on_the_tile(unet, monkeypatch):
    """Head, position map and E are windowed like everything else; in memory, in files, in blocks of noise."""
    monkeypatch.setattr(samdiffsr.sampling.noise_blocks, "BLOCK_HR", 80)
    pipe, image = pipe_with(unet=unet), picture(43, 41)
    whole = run(pipe, image, tile=0, return_structure=True)
    tiled = run(pipe, image, tile=9, return_structure=True)
    np.testing.assert_allclose(tiled.structures[0], whole.structures[0], atol=1e-5)
    # Rounding, which noise targets multiply by 2000 at t = T.
    np.testing.assert_allclose(tiled.images, whole.images, atol=1e-3)
    monkeypatch.setattr(samdiffsr.sampling.tiled, "STATE_BYTES", 0)
    np.testing.assert_allclose(run(pipe, image, tile=9).images, whole.images, atol=1e-3)


def test_the_head_sees_as_far_as_it_says():
    head = pipe_with().denoiser.structure_head
    size = 2 * head.halo_lr + 7
    at = size // 2
    features, position = torch.zeros(1, 8, size, size), torch.zeros(1, 1, 4 * size, 4 * size)
    features[..., at, at] = torch.nan
    with torch.no_grad():
        rows = head(features, position).isnan().any(dim=(0, 1)).nonzero() // 4
    assert int((rows - at).abs().max()) == head.halo_lr


def test_regions_of_similar_colour_need_no_weights():
    pipe, image = pipe_with(head=False), np.zeros((24, 24, 3), np.uint8)
    image[:, 12:] = 220
    (found,) = run(pipe, image, structure="felzenszwalb", return_structure=True).structures
    left, right = found[:, :40], found[:, 56:]
    assert np.ptp(left) == np.ptp(right) == 0 and left[0, 0] != right[0, 0]


def test_what_cannot_be_sampled_without_an_estimate_is_refused_and_what_can_is_not():
    image = picture(3, 2)
    with pytest.raises(SamDiffSRError, match=r"shift 'paper' with target 'sample' moves .* 6\.5 standard deviations"):
        run(pipe_with("sample", head=False), image)
    with pytest.raises(SamDiffSRError, match=r"shift 'bridge' with target 'velocity'.*'released' or 'none'"):
        run(pipe_with("velocity", "bridge"), image, structure="none")
    for shift in ("released", "none"):
        run(pipe_with("marginal_noise", shift, head=False), image)
    for target in ("sample", "velocity", "marginal_noise", "posterior_noise"):
        for name in ("ddpm", "lcm", "dpmsolver++", "unipc"):
            run(pipe_with(target, scheduler=name), image)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("sam", "'felzenszwalb'"),
        ("model", "no structure head"),
        (np.zeros((3, 2), np.float32), r"of shape \(12, 8\), four times the image, got float32 of shape \(3, 2\)"),
        (np.zeros((12, 8), int), "int64"),
        (np.full((12, 8), np.nan), "finite"),
        ([np.zeros((12, 8))] * 2, "2 maps, but there are 1 images"),
    ],
)
def test_a_bad_structure_is_named(structure, message):
    with pytest.raises(SamDiffSRError, match=message):
        run(pipe_with("sample", "none", head=False), picture(3, 2), structure=structure)


def test_there_is_nothing_to_return_without_an_estimate(tiny_pipe):
    with pytest.raises(SamDiffSRError, match="no structure map to return"):
        tiny_pipe(picture(3, 2), return_structure=True)


def test_a_head_is_saved_and_loaded_and_older_folders_have_none(tmp_path, tiny_pipe):
    pipe = pipe_with()
    pipe.save_pretrained(tmp_path / "m")
    loaded = SamDiffSRPipeline.from_pretrained(tmp_path / "m")
    loaded.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(run(loaded, picture(4, 4)).images, run(pipe, picture(4, 4)).images)
    assert tiny_pipe.denoiser.structure_head is None
    assert not [name for name in tiny_pipe.denoiser.state_dict() if "structure" in name]


def test_the_head_costs_less_than_a_twentieth_of_a_step():
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        denoiser = LightDenoiser(with_structure=True)
        x_t, features, position = torch.zeros(1, 3, 64, 64), torch.zeros(1, 128, 16, 16), torch.zeros(1, 1, 64, 64)
        counts = []
        for work in (
            lambda: denoiser(x_t, torch.zeros(1), features),
            lambda: denoiser.structure(features, position),
        ):
            with FlopCounterMode(display=False) as counter:
                work()
            counts.append(counter.get_total_flops())
    assert counts[1] < 0.025 * counts[0]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_window_of_the_position_map_is_a_window_of_the_whole(encoding):
    whole = position_map(encoding, 23, 17)
    found = position_window(encoding, (23, 17), slice(3, 20), slice(5, 17))
    np.testing.assert_allclose(found, whole[3:20, 5:17], atol=1e-6)
    beyond = position_window(encoding, (23, 17), slice(3, 25), slice(5, 20))
    np.testing.assert_array_equal(beyond[:17, :12], found)


def test_a_structure_map_can_be_looked_at():
    drawn = draw_structure(np.array([[-2.0, -2.0, 0.0, 0.0, 2.0, 2.0]]))
    night, straw = [24, 28, 72], [250, 232, 160]
    grey, edge = [128, 128, 128], [77, 77, 77]
    assert drawn.tolist() == [[night, [14, 17, 43], grey, edge, straw, straw]]
    assert draw_structure(np.zeros((2, 3))).tolist() == [[grey] * 3] * 2
    assert draw_structure(np.full((1, 2), 0.7)).tolist() == [[night] * 2]


def test_values_that_lie_close_together_are_drawn_apart():
    drawn = draw_structure(np.array([[1.0, 0.98, -1.0, 0.97]]).T)
    assert drawn[3, 0].tolist() == [127, 56, 127]  # the second of four values: a third of the scale
