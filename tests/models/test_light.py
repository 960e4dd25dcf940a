"""The light networks: blocks of any number of convolutions, against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from samdiffsr import ConditionalUNet, LightDenoiser, LightEncoder, SamDiffSRError, SamDiffSRPipeline
from samdiffsr.models.blocks import embed_time
from samdiffsr.resize import imresize_tensor


def disturbed(network):
    """Weights as after training: none of them zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def by_hand(state, name, x):
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)


@pytest.mark.parametrize(("convs", "activation"), [(2, "relu"), (4, "silu"), (3, "silu")])
def test_the_encoder_is_its_formula(convs, activation):
    encoder = disturbed(LightEncoder(width=6, blocks=2, convs=convs, activation=activation))
    state, f = encoder.state_dict(), {"relu": torch.relu, "silu": lambda x: x * torch.sigmoid(x)}[activation]
    lr = torch.rand(2, 3, 7, 9) * 2 - 1
    first = x = by_hand(state, "conv_in", lr)
    for block in range(2):
        hidden = by_hand(state, f"trunk.{block}.conv1", x)
        for number in range(2, convs + 1):
            hidden = by_hand(state, f"trunk.{block}.conv{number}", f(hidden))
        x = x + hidden
    features = by_hand(state, "conv_out", x) + first
    image = (imresize_tensor(lr, 4) + F.pixel_shuffle(by_hand(state, "head", features), 4)).clamp(-1, 1)
    with torch.no_grad():
        found = encoder.encode(lr, with_image=True)
    torch.testing.assert_close(found[0], features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], image, atol=1e-5, rtol=1e-5)
    assert len(state) == 2 * (2 * convs + 3)


@pytest.mark.parametrize("images", [1, 2])
def test_the_denoiser_is_its_formula(images):
    """The time scales and shifts each channel after the first convolution of a block, whether one image comes or several."""
    denoiser = disturbed(LightDenoiser(width=6, blocks=2, feature_channels=5, convs=4, activation="silu"))
    state = denoiser.state_dict()
    x_t, features, t = torch.randn(images, 3, 20, 12), torch.randn(images, 5, 5, 3), torch.tensor([3, 70][:images])
    time = F.silu(F.linear(embed_time(t, 64), state["time.mlp.0.weight"], state["time.mlp.0.bias"]))
    time = F.silu(F.linear(time, state["time.mlp.2.weight"], state["time.mlp.2.bias"]))
    x = by_hand(state, "conv_in", F.pixel_unshuffle(x_t, 4)) + by_hand(state, "conv_features", features)
    for block in (f"trunk.{number}" for number in range(2)):
        film = F.linear(time, state[f"{block}.film.weight"], state[f"{block}.film.bias"])[:, :, None, None]
        hidden = by_hand(state, f"{block}.conv1", x) * (1 + film[:, :6]) + film[:, 6:]
        for number in (2, 3, 4):
            hidden = by_hand(state, f"{block}.conv{number}", F.silu(hidden))
        x = x + hidden
    with torch.no_grad():
        found = denoiser(x_t, t, features)
    torch.testing.assert_close(found, F.pixel_shuffle(by_hand(state, "head", x), 4), atol=1e-5, rtol=1e-5)


def test_every_convolution_learns():
    """The activations work in place, which must not change a gradient."""
    encoder = disturbed(LightEncoder(width=4, blocks=1, convs=4, activation="silu")).double()
    lr = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: encoder.encode(x)[0], lr)
    encoder.encode(lr)[0].square().sum().backward()
    assert all(p.grad.any() for name, p in encoder.named_parameters() if not name.startswith("head"))


@pytest.mark.parametrize(
    ("options", "message"), [({"convs": 1}, "convs is 1"), ({"convs": 2.5}, "2.5"), ({"activation": "elu"}, "'silu'")]
)
def test_impossible_blocks_are_refused(options, message):
    for network in (LightEncoder, LightDenoiser):
        with pytest.raises(SamDiffSRError, match=message):
            network(width=4, blocks=1, **options)


def test_light_pair_in_the_budget():
    """Under 12 MB in float16, and nothing but convolutions with a finite receptive field."""
    with torch.device("meta"):
        networks = (LightEncoder(), LightDenoiser())
    assert sum(p.numel() * 2 for network in networks for p in network.parameters()) < 12e6


def test_light_encoder_computes_the_estimate_only_when_asked():
    encoder = LightEncoder(width=8, blocks=2).eval()
    lr = torch.rand(2, 3, 5, 4) * 2 - 1
    features, image = encoder.encode(lr)
    assert features.shape == (2, 8, 5, 4)
    assert image is None
    again, image = encoder.encode(lr, with_image=True)
    assert torch.equal(features, again)
    assert torch.equal(image, encoder(lr))
    assert image.shape == (2, 3, 20, 16)


@pytest.mark.parametrize(
    "denoiser",
    [
        ConditionalUNet(dim=4, multipliers=(1, 2), feature_channels=4),
        LightDenoiser(width=8, blocks=2, feature_channels=4),
    ],
)
def test_a_condition_stands_for_its_features(denoiser):
    x, t, features = torch.randn(1, 3, 8, 8), torch.tensor([5]), torch.randn(1, 4, 2, 2)
    with torch.no_grad():
        given = denoiser(x, t, None, denoiser.condition(features))
        assert torch.equal(given, denoiser(x, t, features))
        assert not torch.allclose(given, denoiser(x, t, None, denoiser.condition(features + 1)))


def test_film_is_the_same_for_one_image_and_for_many():
    """One image folds it into the weights; a batch, whose times differ, cannot."""
    denoiser = LightDenoiser(width=8, blocks=2, feature_channels=4).eval()
    for block in denoiser.trunk:
        for parameter in (block.film.weight, block.film.bias, block.conv2.weight):
            torch.nn.init.normal_(parameter, std=0.3)
    x, t, features = torch.randn(2, 3, 8, 8), torch.tensor([5, 60]), torch.randn(2, 4, 2, 2)
    together = denoiser(x, t, features)
    alone = torch.cat([denoiser(x[i : i + 1], t[i : i + 1], features[i : i + 1]) for i in (0, 1)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    for result in (alone, together):  # in training too
        result.square().mean().backward()
    assert all(parameter.grad is not None for parameter in denoiser.parameters())


def test_light_denoiser_reads_time_state_and_features():
    denoiser = LightDenoiser(width=8, blocks=1, feature_channels=4).eval()
    torch.nn.init.normal_(denoiser.trunk[0].film.weight)  # starts at zero: time is learnt
    x, t, features = torch.randn(1, 3, 8, 8), torch.tensor([5]), torch.randn(1, 4, 2, 2)
    out = denoiser(x, t, features)
    assert out.shape == x.shape
    for changed in (denoiser(x + 1, t, features), denoiser(x, t + 50, features), denoiser(x, t, features + 1)):
        assert not torch.allclose(out, changed, atol=1e-4)


def test_noise_does_not_grow_from_block_to_block():
    """Without `limit` the default encoder makes 10^5 of white noise and of a chessboard of pixels, and no picture."""
    encoder = SamDiffSRPipeline.from_pretrained("default").encoder
    row = torch.arange(24)
    board = ((row[:, None] + row) % 2 * 2.0 - 1).expand(1, 3, -1, -1)
    noise = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        for lr in (board, noise):
            features, image = encoder.encode(lr, torch.tensor([0.5]), with_image=True)
            assert features.abs().max() < 50
            assert (image - imresize_tensor(lr, 4)).abs().mean() < 0.5


def test_limit_is_that_of_a_value():
    torch.manual_seed(0)
    plain, limited = LightEncoder(width=8, blocks=2), LightEncoder(width=8, blocks=2, limit=0.25)
    limited.load_state_dict(plain.state_dict())
    seen = []
    limited.trunk[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().max().item()))
    lr = torch.rand(1, 3, 6, 5) * 2 - 1
    assert not torch.equal(limited.encode(lr)[0], plain.encode(lr)[0])
    assert seen == [0.25]
