"""The level of degradation as an input of the light networks, and its estimate."""

import pytest
import torch

from samdiffsr.models.level import LevelEmbedding, LevelHead
from samdiffsr.models.light import LightDenoiser, LightEncoder
from samdiffsr.models.weights import load_network, with_options

LEVELS = torch.tensor([0.0, 0.4, 1.0])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return LightEncoder(8, 2).eval()


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return LightDenoiser(8, 2, 8).eval()


def disturb(network):
    """Weights as after training: none of them zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def encoded(encoder, level=None, seed=0):
    lr = torch.rand(3, 3, 9, 11, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    with torch.no_grad():
        return torch.cat([found.flatten() for found in encoder.encode(lr, level, with_image=True)])


def denoised(denoiser, level=None):
    source = torch.Generator().manual_seed(0)
    x_t, features = torch.randn(3, 3, 32, 24, generator=source), torch.randn(3, 8, 8, 6, generator=source)
    with torch.no_grad():
        return denoiser(x_t, torch.tensor([1, 50, 99]), features, level=level)


def test_without_the_input_there_is_no_new_weight(encoder, denoiser):
    assert not encoder.takes_level and not denoiser.takes_level
    assert not [name for name in [*encoder.state_dict(), *denoiser.state_dict()] if "level" in name]


def test_added_to_a_trained_network_it_changes_nothing(encoder, denoiser):
    disturb(encoder), disturb(denoiser)
    assert torch.equal(encoded(encoder), encoded(with_options(encoder, level=True), LEVELS))
    assert torch.equal(denoised(denoiser), denoised(with_options(denoiser, level=True), LEVELS))


def test_at_level_0_it_changes_nothing_even_after_training(encoder, denoiser):
    """And at other levels it does, for each example by its own."""
    for network, run in ((with_options(encoder, level=True), encoded), (with_options(denoiser, level=True), denoised)):
        disturb(network)
        plain, found = run(network), run(network, LEVELS)
        assert torch.equal(run(network, torch.zeros(3)), plain)
        assert not torch.allclose(found, plain, atol=1e-3)
        if network is not encoder and run is denoised:
            assert torch.equal(found[0], plain[0])
            assert not torch.allclose(found[1], found[2], atol=1e-3)


def test_one_image_and_many_agree(encoder, denoiser):
    """One image goes another way through a block than several."""
    encoder, denoiser = disturb(with_options(encoder, level=True)), disturb(with_options(denoiser, level=True))
    lr, x_t, features = torch.rand(2, 3, 7, 5), torch.randn(2, 3, 28, 20), torch.randn(2, 8, 7, 5)
    level, t = torch.tensor([0.3, 0.9]), torch.tensor([3, 70])
    with torch.no_grad():
        both = encoder.encode(lr, level)[0], denoiser(x_t, t, features, level=level)
        for n in range(2):
            one = slice(n, n + 1)
            assert torch.allclose(encoder.encode(lr[one], level[one])[0], both[0][one], atol=1e-5)
            assert torch.allclose(denoiser(x_t[one], t[one], features[one], level=level[one]), both[1][one], atol=1e-5)


def test_everything_new_learns(encoder, denoiser):
    """No gradient is lost between two zeros, not even in a network that is new altogether, whose films are zero too."""
    for network, run in (
        (with_options(encoder, level=True), encoder_loss),
        (with_options(denoiser, level=True), denoiser_loss),
    ):
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        for _ in range(3):
            optimizer.step()
            optimizer.zero_grad()
            run(network).backward()
        new = {name: one.grad for name, one in network.named_parameters() if "level" in name or "film" in name}
        assert len(new) > 4
        assert not [name for name, gradient in new.items() if not gradient.any()]


def encoder_loss(encoder):
    lr = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    features, _ = encoder.encode(lr, LEVELS)
    return features.square().mean() + encoder.level_head(lr).square().mean()


def denoiser_loss(denoiser):
    x_t, features = torch.ones(3, 3, 32, 24), torch.ones(3, 8, 8, 6)
    return denoiser(x_t, torch.tensor([1, 50, 99]), features, level=LEVELS).square().mean()


def test_saved_and_loaded(encoder, tmp_path):
    network = disturb(with_options(encoder, level=True))
    network.save_pretrained(tmp_path)
    assert torch.equal(encoded(load_network(LightEncoder, tmp_path), LEVELS), encoded(network, LEVELS))


def test_the_embedding_is_0_at_level_0():
    embedding = disturb(LevelEmbedding(5))
    assert (embedding(torch.zeros(2)) == 0).all()
    assert (embedding(torch.tensor([0.1])) != 0).all()
    assert (LevelEmbedding(5, zero=True)(LEVELS) == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (24, 24), (50, 70)])
def test_the_head_estimates_from_any_size(size):
    torch.manual_seed(0)
    head = LevelHead()
    with torch.no_grad():
        head.out.bias.fill_(0.5)
        found = head.estimate([torch.rand(1, 3, *size)])
    assert found.shape == (1,)
    assert 0 < found < 1


def test_windows_count_by_their_area():
    torch.manual_seed(0)
    head = LevelHead()
    source = torch.Generator().manual_seed(0)
    large, small = (torch.rand(1, 3, 48, side, generator=source) * 2 - 1 for side in (48, 24))
    with torch.no_grad():
        head.out.bias.fill_(0.5)
        head.out.weight.mul_(0.1)  # within 0 and 1, whatever the first weights are
        wanted = head.judge((2 * head.means(large) + head.means(small)) / 3)
        assert torch.allclose(head.estimate([large, small]), wanted**2)  # it learns the root
        head.out.bias.fill_(7.0)
        assert head.estimate([large]) == 1
        assert head(large) > 1  # in training it is not clipped, or there would be no gradient
