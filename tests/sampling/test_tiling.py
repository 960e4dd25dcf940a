"""Tiles: every network's halo, results that do not depend on the tile, memory that runs out, files that leave no trace."""

import os

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import samdiffsr.sampling.noise_blocks
import samdiffsr.sampling.tiled
from samdiffsr import (
    ConditionalUNet,
    LightDenoiser,
    LightEncoder,
    NoiseSchedule,
    RRDBEncoder,
    SamDiffSRError,
    SamDiffSRPipeline,
)
from samdiffsr.resize import SCALE
from samdiffsr.sampling.schedulers import make_scheduler
from samdiffsr.sampling.tiles import Canvas, Window, automatic_tile, tiles
from support import paper_pipe

CPU = torch.device("cpu")
SCHEDULERS = ["DDPM", "DDIM", "LCM", "DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def light_pipe():
    torch.manual_seed(0)
    encoder, denoiser = LightEncoder(width=8, blocks=1), LightDenoiser(width=8, blocks=1, feature_channels=8)
    for layer in (encoder.conv_out, encoder.head, denoiser.head, denoiser.trunk[0].conv2):
        torch.nn.init.kaiming_normal_(layer.weight)  # a new network hardly looks at its neighbours
    return SamDiffSRPipeline(encoder, denoiser, scheduler("DDIM", "sample"), base="encoder", target="sample")


def scheduler(name, target):
    return make_scheduler(getattr(diffusers, f"{name}Scheduler"), NoiseSchedule.cosine(100), target)


@pytest.fixture(params=[light_pipe, paper_pipe])
def pipe(request):
    built = request.param()
    built.set_progress_bar_config(disable=True)
    return built


@pytest.fixture
def small_blocks(monkeypatch):
    """As if images were larger: blocks of 40 HR pixels."""
    monkeypatch.setattr(samdiffsr.sampling.noise_blocks, "BLOCK_HR", 40)


@pytest.fixture
def in_files(monkeypatch, tmp_path):
    """As if memory were smaller: state and output go to files, in an own temporary folder."""
    monkeypatch.setattr(samdiffsr.sampling.tiled, "STATE_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def upscale(pipe, image, tile, **options):
    options = {"generator": seeded(), "output_type": "np", "num_inference_steps": 3} | options
    return pipe(image, tile=tile, **options).images[0]


# The halo of every network, measured: a NaN spreads exactly as far as the network sees.


def reach(output, size_in, size_out, at):
    """How many input pixels from `at` the NaNs of an (1, C, H, W) output lie at most."""
    poisoned = output.isnan().any(dim=(0, 1)).nonzero()
    return int((poisoned.double() * size_in / size_out).floor().sub(at).abs().max())


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("offset", [0, 1])
def test_an_encoder_sees_as_far_as_it_says(blocks, offset):
    deep = LightEncoder(width=4, blocks=blocks, convs=4, activation="silu")
    paper = RRDBEncoder(channels=4, blocks=blocks + 1, growth=4)
    for encoder in (LightEncoder(width=4, blocks=blocks), deep, paper):
        size = 2 * encoder.halo_lr + 5
        at = size // 2 + offset
        lr = torch.zeros(1, 3, size, size)
        lr[..., at, at] = torch.nan
        with torch.no_grad():
            features, image = encoder.encode(lr, with_image=True)
        far = max(reach(features, 1, 1, at), reach(image, size, SCALE * size, at))
        assert encoder.halo_lr - 1 <= far <= encoder.halo_lr


@pytest.mark.parametrize("offset", range(8))
@pytest.mark.parametrize(("levels", "convs"), [(0, 2), (0, 4), (1, 2), (2, 2), (3, 2)])
def test_a_denoiser_sees_as_far_as_it_says(levels, convs, offset):
    """`levels` of the paper's U-Net, 0 for the light network with blocks of `convs` convolutions; `offset` of the poison
    against the coarsest grid."""
    light = LightDenoiser(width=4, blocks=2, feature_channels=4, convs=convs)
    denoiser = ConditionalUNet(dim=4, multipliers=(1,) * levels, feature_channels=4) if levels else light
    size = -(-(2 * denoiser.halo_lr + 9) // 8) * 8
    at = SCALE * (size // 2) + offset
    t, features = torch.tensor([3]), torch.zeros(1, 4, size, size)
    x_t = torch.zeros(1, 3, SCALE * size, SCALE * size)
    with torch.no_grad():
        poisoned = features.clone()
        poisoned[..., at // SCALE, at // SCALE] = torch.nan
        by_features = reach(denoiser(x_t, t, poisoned), size, SCALE * size, at // SCALE)
        x_t[..., at, at] = torch.nan
        by_state = reach(denoiser(x_t, t, features), size, SCALE * size, at // SCALE)
        near = reach(denoiser.condition(poisoned), 1, denoiser.condition_scale, at // SCALE)
    assert by_state <= denoiser.halo_lr and by_features <= denoiser.halo_lr and near <= denoiser.condition_halo_lr
    assert max(by_state, by_features) >= denoiser.halo_lr - 2  # nor is the halo a waste


@pytest.mark.parametrize("network", [RRDBEncoder, ConditionalUNet, LightEncoder, LightDenoiser])
def test_the_shipped_sizes_say_what_the_structure_implies(network):
    with torch.device("meta"):
        assert (
            network().halo_lr == {RRDBEncoder: 259, ConditionalUNet: 43, LightEncoder: 19, LightDenoiser: 18}[network]
        )


# Tiles are exact.


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("size", "block"), [((23, 27), 40), ((25, 10), 40), ((12, 15), 512)])
def test_the_result_does_not_depend_on_the_tile(pipe, name, size, block, monkeypatch):
    """Blocks on all sides, blocks as wide as the image, and one block; in memory and in files."""
    monkeypatch.setattr(samdiffsr.sampling.noise_blocks, "BLOCK_HR", block)
    pipe.scheduler = scheduler(name, pipe.config["target"])
    image = picture(*size)
    whole = upscale(pipe, image, 0)
    assert whole.std() > 0.1
    monkeypatch.setattr(samdiffsr.sampling.tiled, "OUTPUT_TILE_LR", 7)
    for tile in (8, 13):
        assert np.abs(upscale(pipe, image, tile) - whole).max() < 1e-4, tile
    monkeypatch.setattr(samdiffsr.sampling.tiled, "STATE_BYTES", 0)
    assert np.abs(upscale(pipe, image, 8) - whole).max() < 1e-4
    assert np.array_equal(upscale(pipe, image, 0), whole)


@pytest.mark.parametrize("levels", [3, 4])
def test_tiles_start_where_the_coarsest_level_has_a_pixel(levels):
    """A long strip, for the U-Net of four levels sees 43 LR pixels far; odd tiles are widened to its grid of 2."""
    pipe = paper_pipe()
    denoiser = ConditionalUNet(dim=4, multipliers=(1,) * levels, feature_channels=pipe.encoder.feature_channels)
    pipe.register_modules(denoiser=denoiser.eval())
    pipe.set_progress_bar_config(disable=True)
    image = picture(5, 141)
    whole = upscale(pipe, image, 0, num_inference_steps=2)
    assert np.abs(upscale(pipe, image, 25, num_inference_steps=2) - whole).max() < 1e-4


def test_a_halo_too_narrow_would_show(pipe, monkeypatch):
    """The test above can fail: one pixel less than the network sees is seen."""
    image = picture(40, 40)
    whole = upscale(pipe, image, 0)
    for network in (pipe.denoiser, pipe.encoder):
        true = network.halo_lr
        monkeypatch.setattr(type(network), "halo_lr", property(lambda _, true=true: true // 3))
    assert np.abs(upscale(pipe, image, 8) - whole).max() > 1e-4


def test_the_default_model_is_exact_in_tiles():
    pipe = SamDiffSRPipeline.from_pretrained("default")
    pipe.set_progress_bar_config(disable=True)
    image = picture(40, 44).repeat(2, axis=1)[:, :60]
    whole = upscale(pipe, image, 0, num_inference_steps=2)
    assert np.abs(upscale(pipe, image, 32, num_inference_steps=2) - whole).max() < 1e-4


def test_no_seam_is_left_by_tiles_nor_by_blocks_of_noise(pipe, small_blocks):
    """Jumps across the borders of tiles and of blocks are like those anywhere else; a flat image hides none."""
    result = upscale(pipe, np.full((60, 60, 3), 140, np.uint8), 10)
    for axis in (0, 1):
        jumps = np.abs(np.diff(result, axis=axis)).mean(axis=(1 - axis, 2))
        at_phase = jumps[3::4]  # between LR pixels, where tiles and blocks meet; other phases have other statistics
        seams = np.isin(np.arange(3, len(jumps), 4) + 1, [*range(40, 240, 40)])
        deviation = at_phase[~seams].std()
        assert abs(at_phase[seams].mean() - at_phase[~seams].mean()) < 3 * deviation / seams.sum() ** 0.5 + 1e-3


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 40), st.sampled_from([1, 2, 4]))
def test_tiles_cover_the_image_once(height, width, side, multiple):
    height, width = height * multiple, width * multiple
    seen = np.zeros((height, width), int)
    for tile in tiles(height, width, side, multiple):
        seen[tile.top : tile.bottom, tile.left : tile.right] += 1
        assert tile.top % multiple == tile.left % multiple == 0
        assert not side or max(tile.shape) <= -(-side // multiple) * multiple
    assert (seen == 1).all()


# Noise.


def test_up_to_one_block_the_noise_is_the_generators_own(tiny_pipe):
    """x_T as any diffusers pipeline draws it, and the generator goes on from there."""
    first = []
    generator = seeded(5)
    tiny_pipe.scheduler = scheduler("DDIM", "sample")
    tiny_pipe.denoiser.register_forward_pre_hook(lambda _, args: first.append(args[0].clone()))
    tiny_pipe(picture(6, 5), num_inference_steps=1, generator=generator)
    expected = seeded(5)
    assert torch.equal(first[0], torch.randn(1, 3, 24, 20, generator=expected))
    assert torch.equal(generator.get_state(), expected.get_state())


def test_blocks_have_different_noise(tiny_pipe, small_blocks):
    first = []
    tiny_pipe.denoiser.register_forward_pre_hook(lambda _, args: first.append(args[0].clone()))
    tiny_pipe(picture(20, 20), num_inference_steps=1, generator=seeded())
    blocks = first[0].reshape(3, 2, 40, 2, 40).permute(1, 3, 0, 2, 4).reshape(4, -1)
    correlation = np.corrcoef(blocks.numpy())
    assert np.abs(correlation - np.eye(4)).max() < 0.1
    assert abs(float(blocks.std()) - 1) < 0.03
    tiny_pipe(picture(20, 20), num_inference_steps=1, generator=seeded(1))
    assert not torch.equal(first[0], first[1])


# Memory.


class Greedy(LightDenoiser):
    """A light denoiser on a device with little memory."""

    __module__ = "samdiffsr"
    most, refused = 0, 0

    def forward(self, x_t, t, features, condition=None):
        if x_t.shape[2] * x_t.shape[3] > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().forward(x_t, t, features, condition)


def greedy_pipe(most):
    pipe = light_pipe()
    denoiser = Greedy(width=8, blocks=1, feature_channels=8)
    denoiser.load_state_dict(pipe.denoiser.state_dict())
    denoiser.most = most
    pipe.register_modules(denoiser=denoiser.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_out_of_memory_halves_the_tile_and_goes_on():
    image, notes = picture(70, 40), []
    expected = upscale(greedy_pipe(10**9), image, 0)
    pipe = greedy_pipe((4 * 30) ** 2)
    result = upscale(pipe, image, None, on_warning=notes.append)
    assert np.abs(result - expected).max() < 1e-4
    assert notes == [
        "memory ran out in the denoiser: going on in tiles of 35x35 pixels of the input",
        "memory ran out in the denoiser: going on in tiles of 17x17 pixels of the input",
    ]
    assert pipe.denoiser.refused == 2  # the later steps know
    with pytest.warns(RuntimeWarning, match="20x20"):
        upscale(greedy_pipe((4 * 30) ** 2), image, 40)


def test_progress_comes_with_every_tile(tiny_pipe):
    """Four tiles for the encoder, four for each of two steps; smaller tiles make smaller parts."""
    seen = []
    upscale(tiny_pipe, picture(20, 20), 10, num_inference_steps=2, on_progress=seen.append)
    assert seen == pytest.approx([number / 12 for number in range(1, 13)])
    with pytest.warns(RuntimeWarning, match="20x20"):
        upscale(greedy_pipe((4 * 30) ** 2), picture(40, 24), 40, num_inference_steps=1, on_progress=seen.append)
    assert seen[12:] == pytest.approx([0.5, 0.625, 0.75, 0.875, 1])


def test_when_the_least_tile_is_too_large_an_error_says_so():
    with pytest.raises(SamDiffSRError, match=r"Not enough memory for this 40x70 image, even in tiles of 16x16"):
        upscale(greedy_pipe(100), picture(70, 40), None, on_warning=lambda note: None)


def test_other_errors_are_not_taken_for_a_lack_of_memory(pipe, monkeypatch):
    def broken(*_):
        raise RuntimeError("sizes of tensors must match")

    monkeypatch.setattr(pipe.denoiser, "forward", broken)
    with pytest.raises(RuntimeError, match="sizes of tensors"):
        upscale(pipe, picture(8, 8), None)


def test_files_are_gone_and_the_output_outlives_them(pipe, in_files):
    seen = []

    def watch(pipe, step, timestep, values):
        seen.append((values["latents"], os.listdir(in_files)))
        return values

    result = upscale(pipe, picture(12, 10), 8, output_type="uint16", callback_on_step_end=watch)
    assert seen == [(None, [])] * 3  # nameless from the start: nothing is left even if the process is killed
    assert isinstance(result, np.memmap) and result.shape == (48, 40, 3)
    in_memory = upscale(pipe, picture(12, 10), 8)
    np.testing.assert_array_equal(result, (in_memory * 65535).round().astype(np.uint16))
    result[0] = 0  # writable, as an array in memory


def test_a_callback_may_replace_a_state_in_files(pipe, in_files):
    def clear(*_):
        return {"latents": torch.zeros(1, 3, 32, 32)}

    cleared = [upscale(pipe, picture(8, 8), 4, generator=seeded(n), callback_on_step_end=clear) for n in (0, 1)]
    assert np.array_equal(*cleared)


def test_what_a_callback_keeps_or_returns_stays_its_own(pipe, small_blocks):
    kept = []

    def keep(_pipe, step, _timestep, values):
        kept.append((values["latents"], values["latents"].clone()))
        return values

    upscale(pipe, picture(12, 14), 8, callback_on_step_end=keep)
    assert len(kept) == 3 and all(torch.equal(then, now) for now, then in kept)


def test_a_full_disk_is_one_sentence(pipe, in_files):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(SamDiffSRError, match=r"temporary folder: File too large; .*TMPDIR"):
            upscale(pipe, picture(12, 10), 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    in_files.rmdir()
    with pytest.raises(SamDiffSRError, match=r"temporary folder: No such file.*TMPDIR"):
        upscale(pipe, picture(12, 10), 8)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint16])
def test_a_canvas_gives_back_what_was_written(in_file, dtype):
    canvas = Canvas(3, 7, 9, dtype=dtype, device=CPU, in_file=in_file)
    expected = (torch.arange(3 * 7 * 9).reshape(1, 3, 7, 9) % 251).to(dtype)
    for window in tiles(7, 9, 4):
        canvas.write(window, window.cut(expected, canvas.window))
    for window in (canvas.window, Window(2, 6, 3, 8), Window(6, 7, 8, 9)):
        assert torch.equal(canvas.read(window).float(), window.cut(expected, canvas.window).float())
    if dtype != torch.bfloat16:
        np.testing.assert_array_equal(canvas.arrays()[0], expected[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "uint8", "uint16"])
def test_every_output_type_is_the_same_from_files(tiny_pipe, monkeypatch, output_type):
    image = picture(9, 7)
    expected = upscale(tiny_pipe, image, 4, output_type=output_type)
    monkeypatch.setattr(samdiffsr.sampling.tiled, "STATE_BYTES", 0)
    np.testing.assert_array_equal(
        np.asarray(upscale(tiny_pipe, image, 4, output_type=output_type)), np.asarray(expected)
    )


def test_the_automatic_tile_fits_the_memory():
    options = {"halo": 18, "bytes_per_pixel": 4000, "device": CPU}
    assert automatic_tile(128, 128, **options, free=8 * 2**30) == 0
    tile = automatic_tile(4000, 4000, **options, free=8 * 2**30)
    assert tile > 300 and (tile + 36) ** 2 * 4000 < 700 * 2**20
    small = automatic_tile(4000, 4000, **options, free=200 * 2**20)
    assert (small + 36) ** 2 * 4000 <= 100 * 2**20 < (small + 38) ** 2 * 4000
    assert automatic_tile(4000, 4000, **options, free=0) == 16
    assert automatic_tile(4000, 4000, **options, free=None) == tile
    wide = automatic_tile(4000, 4000, halo=259, bytes_per_pixel=4000, device=CPU, free=64 * 2**30)
    assert wide >= 4 * 259  # mostly halo otherwise
    on_gpu = automatic_tile(4000, 4000, **options | {"device": torch.device("cuda")}, free=32 * 2**30)
    assert on_gpu > 1000


@pytest.mark.parametrize("tile", [-1, 2.5, "8"])
def test_a_bad_tile_is_named(tiny_pipe, tile):
    with pytest.raises(SamDiffSRError, match=rf"tile is {tile!r}"):
        tiny_pipe(picture(4, 4), tile=tile)
