"""The paper's two networks: sizes, shapes, errors, and the released code's own outputs (tests/data/golden)."""

import math

import numpy as np
import pytest
import torch

from samdiffsr.errors import ConfigError, SamDiffSRError
from samdiffsr.models.blocks import embed_time
from samdiffsr.models.encoder import RRDBEncoder
from samdiffsr.models.unet import ConditionalUNet
from support import GOLDEN


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "released_small.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return torch.load(GOLDEN / "released_small.ckpt", weights_only=True)["state_dict"]["model"]


def stripped(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def encoder(weights) -> RRDBEncoder:
    model = RRDBEncoder(channels=16, blocks=5, growth=8)
    model.load_state_dict(stripped(weights, "rrdb."))  # strict: every released name, and no other
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def denoiser(weights) -> ConditionalUNet:
    model = ConditionalUNet(dim=16, feature_channels=32)
    model.load_state_dict(stripped(weights, "denoise_fn."))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def lr(golden) -> torch.Tensor:
    return torch.from_numpy(golden["lr"]).permute(2, 0, 1)[None].float() / 255 * 2 - 1


def test_the_defaults_are_the_released_sizes():
    with torch.device("meta"):
        encoder, denoiser = RRDBEncoder(), ConditionalUNet()
    assert sum(p.numel() for p in encoder.parameters()) == 12_381_443
    assert sum(p.numel() for p in denoiser.parameters()) == 12_934_915
    assert encoder.taps == (2, 5, 8, 11, 14, 17)
    assert encoder.feature_channels == denoiser.feature_channels == 384
    assert (denoiser.hr_multiple, denoiser.hr_minimum) == (8, 16)


def test_encoder_gives_the_released_estimate(golden, encoder, lr):
    """Measured 3.6e-7 with lr / 255; lr / 256 would be off by 1.3e-3."""
    assert np.abs(encoder(lr).numpy() - golden["rrdb"]).max() < 1e-5


def test_denoiser_gives_the_released_prediction(golden, encoder, denoiser, lr):
    """Measured 7.5e-8 with lr / 255; lr / 256 would be off by 2.1e-5."""
    t = torch.from_numpy(golden["t"]).reshape(1)
    prediction = denoiser(torch.from_numpy(golden["x_t"]), t, encoder.encode(lr)[0])
    assert np.abs(prediction.numpy() - golden["eps"]).max() < 1e-5


def test_features_are_every_third_block_and_the_trunk(encoder, lr):
    seen = {}
    hooks = [
        encoder.RRDB_trunk[2].register_forward_hook(lambda _m, _i, out: seen.update(third=out)),
        encoder.conv_first.register_forward_hook(lambda _m, _i, out: seen.update(first=out)),
        encoder.trunk_conv.register_forward_hook(lambda _m, _i, out: seen.update(trunk=out)),
    ]
    features, image = encoder.encode(lr)
    for hook in hooks:
        hook.remove()
    assert image is None
    assert torch.equal(features, torch.cat((seen["third"], seen["first"] + seen["trunk"]), dim=1))
    assert features.shape == (1, encoder.feature_channels, *lr.shape[2:])


def test_the_upsampling_half_runs_only_when_asked(encoder, lr):
    ran = []
    hooks = [
        layer.register_forward_hook(lambda *_: ran.append(1))
        for layer in (encoder.upconv1, encoder.upconv2, encoder.HRconv, encoder.conv_last)
    ]
    features, _ = encoder.encode(lr)
    assert not ran
    again, image = encoder.encode(lr, with_image=True)
    for hook in hooks:
        hook.remove()
    assert len(ran) == 4
    assert torch.equal(features, again)
    assert image is not None
    assert torch.equal(image, encoder(lr))
    assert image.min() >= -1
    assert image.max() <= 1


def test_a_number_of_blocks_without_a_tap_on_the_trunk():
    encoder = RRDBEncoder(channels=4, blocks=3, growth=2)
    assert encoder.taps == (2,)
    assert encoder.encode(torch.zeros(1, 3, 5, 1))[0].shape == (1, 4, 5, 1)


def test_scale_8():
    encoder = RRDBEncoder(channels=4, blocks=2, growth=2, scale=8)
    denoiser = ConditionalUNet(dim=4, multipliers=(1, 2), feature_channels=4, scale=8)
    features, image = encoder.encode(torch.zeros(1, 3, 3, 2), with_image=True)
    assert image is not None
    assert image.shape == (1, 3, 24, 16)
    assert denoiser.hr_multiple == 8
    assert denoiser(torch.zeros(1, 3, 24, 16), torch.zeros(1, dtype=torch.long), features).shape == image.shape


@pytest.mark.parametrize(
    ("multipliers", "multiple", "minimum"), [((1,), 4, 4), ((1, 1, 1), 4, 8), ((1, 2, 3, 4), 8, 16), ((2, 2), 4, 4)]
)
def test_the_promised_sizes_work(multipliers, multiple, minimum):
    denoiser = ConditionalUNet(dim=4, multipliers=multipliers, feature_channels=2)
    assert (denoiser.hr_multiple, denoiser.hr_minimum) == (multiple, minimum)
    for size in ((minimum, minimum), (minimum, minimum + multiple)):
        x = torch.zeros(2, 3, *size)
        features = torch.zeros(2, 2, size[0] // 4, size[1] // 4)
        assert denoiser(x, torch.tensor([0, 99]), features).shape == x.shape


@pytest.mark.parametrize(
    ("x", "t", "features", "message"),
    [
        ((1, 3, 20, 24), (1,), (1, 32, 5, 6), "20x24, but both sides must be a multiple of 8 and at least 16"),
        ((1, 3, 8, 24), (1,), (1, 32, 2, 6), "8x24, but both sides must be a multiple of 8 and at least 16"),
        ((1, 4, 16, 16), (1,), (1, 32, 4, 4), r"x_t has the shape \(1, 4, 16, 16\)"),
        ((3, 16, 16), (1,), (1, 32, 4, 4), r"x_t has the shape \(3, 16, 16\)"),
        ((2, 3, 16, 16), (1,), (2, 32, 4, 4), r"t has the shape \(1,\)"),
        ((1, 3, 16, 16), (), (1, 32, 4, 4), r"t has the shape \(\)"),
        ((1, 3, 16, 16), (1,), (1, 31, 4, 4), r"features have the shape \(1, 31, 4, 4\)"),
        ((1, 3, 16, 16), (1,), (1, 32, 4, 5), r"needs \(1, 32, 4, 4\)"),
        ((2, 3, 16, 16), (2,), (1, 32, 4, 4), r"needs \(2, 32, 4, 4\)"),
    ],
)
def test_denoiser_refuses_shapes_that_do_not_fit(denoiser, x, t, features, message):
    with pytest.raises(SamDiffSRError, match=message):
        denoiser(torch.zeros(x), torch.zeros(t, dtype=torch.long), torch.zeros(features))


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 8, 8)])
def test_encoder_refuses_shapes_that_do_not_fit(encoder, shape):
    with pytest.raises(SamDiffSRError, match="encoder needs a batch"):
        encoder.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (RRDBEncoder, {"scale": 2}, "scale of the encoder is 2"),
        (RRDBEncoder, {"blocks": 1}, "blocks of the encoder is 1"),
        (ConditionalUNet, {"dim": 7}, "dim of the U-Net is 7"),
        (ConditionalUNet, {"dim": 2}, "dim of the U-Net is 2"),
        (ConditionalUNet, {"scale": 3}, "scale of the U-Net is 3"),
        (ConditionalUNet, {"multipliers": ()}, r"multipliers of the U-Net is \(\)"),
        (ConditionalUNet, {"multipliers": (1, 0)}, r"multipliers of the U-Net is \(1, 0\)"),
    ],
)
def test_impossible_sizes_are_refused(kind, sizes, message):
    with pytest.raises(ConfigError, match=message):
        kind(**sizes)


def test_time_embedding_by_hand():
    got = embed_time(torch.tensor([0, 7]), 64)
    frequency = [math.exp(-math.log(10000) / 31 * i) for i in range(32)]
    expected = [[f(t * w) for f in (math.sin, math.cos) for w in frequency] for t in (0, 7)]
    assert torch.allclose(got, torch.tensor(expected), atol=1e-6)


def test_a_batch_equals_its_images_one_by_one(encoder, denoiser):
    generator = torch.Generator().manual_seed(3)
    lr = torch.rand(2, 3, 4, 6, generator=generator) * 2 - 1
    x, t = torch.randn(2, 3, 16, 24, generator=generator), torch.tensor([5, 80])
    both = denoiser(x, t, encoder.encode(lr)[0])
    for i in range(2):
        alone = denoiser(x[i : i + 1], t[i : i + 1], encoder.encode(lr[i : i + 1])[0])
        assert torch.allclose(both[i : i + 1], alone, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-2  # the images and steps do differ


def test_half_precision_stays_half(encoder, denoiser):
    x, t = torch.zeros(1, 3, 16, 16, dtype=torch.bfloat16), torch.tensor([50])
    features = torch.zeros(1, 32, 4, 4, dtype=torch.bfloat16)
    low = ConditionalUNet(dim=16, feature_channels=32)
    low.load_state_dict(denoiser.state_dict())
    assert low.bfloat16()(x, t, features).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["encoder", "denoiser"])
def test_saving_and_loading_is_bit_equal(name, request, tmp_path):
    model = request.getfixturevalue(name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert not again.training
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in model.config.items() if k[0] != "_"
    }
    expected, got = model.state_dict(), again.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
