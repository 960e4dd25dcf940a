"""The losses of both stages and their draws."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from samdiffsr import ConditionalUNet, LightDenoiser, LightEncoder, SamDiffSRError
from samdiffsr.data.dataset import PreparedPhotos
from samdiffsr.errors import ConfigError
from samdiffsr.structure import position_map
from samdiffsr.training.config import DiffusionConfig, EncoderConfig, EncoderLossConfig, LossConfig, OptimConfig
from samdiffsr.training.objective import DiffusionObjective, EncoderObjective, borders_map, normal, uniform
from samdiffsr.training.run import (
    diffusion_objective,
    encoder_objective,
    open_photos,
)
from support import tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("target", ["posterior_noise", "marginal_noise", "sample", "velocity"])
@pytest.mark.parametrize("shift", ["paper", "released", "unweighted", "bridge", "none"])
def test_every_shift_and_target_trains(photos, target, shift):
    loss, network = _stage(target=target, shift=shift, scheduler="lcm", steps=4, structure_weight=0.1, rollout=0.5)
    terms = terms_of(loss, examples(photos))
    torch.stack(list(terms.values())).sum().backward()
    assert math.isfinite(terms["pixel"].item())
    assert float(network.head.weight.grad.abs().sum()) > 0
    assert float(network.structure_head.conv_out.weight.grad.abs().sum()) > 0


def examples(photos, count=2):
    return PreparedPhotos(photos, crop_lr=4, candidates=1, flips=True, position="rope").batch(0, 0, count)


def terms_of(loss, batch):
    """The loss terms of a batch under the noise of examples 0, 1, ..."""
    return loss(batch, loss.draws(7, 0, len(batch.hr))).terms


def _stage(**options):
    torch.manual_seed(0)
    options = {"base": "encoder"} | options
    config = DiffusionConfig(optim=OptimConfig(updates=1, learning_rate=0.1), residual_scale=4, **options)
    network = LightDenoiser(width=8, blocks=1, feature_channels=8, with_structure=config.structure_weight > 0)
    return DiffusionObjective(network, LightEncoder(width=8, blocks=1), config), network


@pytest.mark.parametrize("kind", [LightDenoiser, ConditionalUNet])
def test_the_map_as_an_input_is_the_one_that_the_noise_holds(photos, kind):
    """E for most examples, the head's estimate for those that start from a rolled-out estimate, in both of their passes."""
    config = DiffusionConfig(
        optim=OptimConfig(updates=1, learning_rate=0.1),
        shift="none",
        target="sample",
        structure_weight=0.1,
        network={"structure_input": True},
        rollout=1.0,
    )
    size = {"width": 8, "blocks": 1} if kind is LightDenoiser else {"dim": 4, "multipliers": (1, 2)}
    network = kind(**size, feature_channels=8, with_structure=True, structure_input=True)
    seen = []
    network.register_forward_pre_hook(lambda _, args, given: seen.append(given["structure"]), with_kwargs=True)
    loss = DiffusionObjective(network, LightEncoder(width=8, blocks=1), config)
    batch = PreparedPhotos(photos, crop_lr=8, candidates=1, flips=True, position="rope").batch(0, 0, 2)
    draws = loss.draws(7, 0, 2)
    terms = loss(batch, draws).terms
    with torch.no_grad():
        found = network.structure(loss.encoder.encode(batch.lr)[0], batch.position)
    assert len(seen) == 2 and all(torch.allclose(one, found, atol=1e-6) for one in seen)
    terms["pixel"].backward()
    assert float(network.conv_structure.weight.grad.abs().sum()) > 0
    assert network.structure_head.conv_out.weight.grad is None, "the head learns from its own loss alone"
    loss(batch, draws | {"rolled": torch.tensor([], dtype=torch.int64), "rollout_noise": []})
    assert torch.equal(seen[-1], batch.structure)


def test_structure_reaches_the_noise(photos):
    batch = examples(photos)
    plain = replace(batch, structure=torch.zeros_like(batch.structure))
    assert float(batch.structure.abs().max()) > 0
    for shift, differs in (("bridge", True), ("none", False)):
        loss, _ = _stage(shift=shift, target="marginal_noise", structure_weight=0.1)
        assert (terms_of(loss, batch)["pixel"].item() != terms_of(loss, plain)["pixel"].item()) == differs


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_without_regions_the_position_map_is_the_structure_map(photos, tmp_path, weight):
    """Through the crops that a run reads, with and without a head that needs the position map anyway."""
    options = [f"diffusion.structure_weight={weight}", "diffusion.structure.map=position"]
    config = tiny(photos, tmp_path, *options)
    batch = open_photos(config, config.diffusion).batch(0, 0, 2)
    assert batch.position is not None and float((batch.position - batch.structure).abs().max()) > 0.1
    of_position = replace(batch, structure=batch.position)
    ablated, plain = (
        _stage(shift="released", structure_weight=weight, structure={"map": kind})[0]
        for kind in ("position", "regions")
    )
    expected = {name: term.item() for name, term in terms_of(plain, of_position).items()}
    assert {name: term.item() for name, term in terms_of(ablated, batch).items()} == expected
    assert terms_of(plain, batch)["pixel"].item() != expected["pixel"]


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_the_head_teaches_an_encoder_that_learns_and_never_the_denoiser(photos, rate):
    loss, network = _stage(shift="none", structure_weight=0.1, encoder_rate=rate, base="bicubic")
    terms_of(loss, examples(photos))["structure"].backward()
    taught = {name.partition(".")[0] for name, one in network.named_parameters() if one.grad is not None}
    assert taught == {"structure_head"}
    assert any(one.grad is not None for one in loss.encoder.parameters()) == (rate > 0)


def test_borders_are_where_neighbours_differ():
    structure = torch.zeros(1, 1, 12, 9)
    structure[..., 6:, :] = 0.3
    expected = torch.tensor([0, 0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    torch.testing.assert_close(borders_map(structure), expected[:, None].expand_as(structure))
    torch.testing.assert_close(borders_map(-structure.mT), expected.expand(1, 1, 9, 12))
    assert not borders_map(torch.full_like(structure, 0.3)).any()


@pytest.mark.parametrize("kind", ["constant", "other", "borders"])
def test_a_control_stands_for_the_structure_map(photos, kind):
    """The loss is that of the same batch whose structure maps are the control's."""
    batch = examples(photos)
    first, second = batch.structure
    assert not torch.equal(first, second)
    level = batch.structure.double().pow(2).mean(dim=(1, 2, 3)).sqrt().float()
    stand_in = {
        "constant": level[:, None, None, None].expand_as(batch.structure),
        "other": torch.stack([second, first]),
        "borders": borders_map(batch.structure),
    }
    options = {"shift": "bridge", "structure_weight": 0.1}
    control, plain = (_stage(**options, structure={"map": name})[0] for name in (kind, "regions"))
    expected = terms_of(plain, replace(batch, structure=stand_in[kind]))
    found = terms_of(control, batch)
    assert {name: term.item() for name, term in found.items()} == pytest.approx(
        {name: term.item() for name, term in expected.items()}, rel=1e-5
    )
    assert found["pixel"].item() != pytest.approx(terms_of(plain, batch)["pixel"].item(), rel=1e-5)


def test_the_map_of_another_crop_needs_another_crop(photos):
    loss, _ = _stage(shift="released", structure={"map": "other"})
    alone = PreparedPhotos(photos, crop_lr=4, candidates=1, flips=True).batch(0, 0, 1)
    with pytest.raises(ConfigError, match="choose a larger"):
        terms_of(loss, alone)


def test_rollout_feeds_the_networks_own_estimate(photos):
    batch = PreparedPhotos(photos, crop_lr=4, candidates=1, flips=True).batch(0, 0, 2)
    values = []
    for rollout in (0.0, 1.0):
        loss, network = _stage(target="sample", rollout=rollout)
        seen = []
        network.register_forward_pre_hook(lambda _, arguments, seen=seen: seen.append(arguments[1].tolist()))
        values.append(terms_of(loss, batch)["pixel"].item())
    assert values[0] != values[1]
    assert seen[0] == [99, 99]
    assert len(seen) == 2


def seen_by(network):
    """What a network is shown: (x_t, t), call by call."""
    seen = []
    network.register_forward_pre_hook(lambda _, arguments: seen.append((arguments[0].clone(), arguments[1].clone())))
    return seen


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_rollout_trains_on_the_state_that_sampling_sees(photos, weight):
    """x_T = y_T + s_T E^ and x_t = y_t + s_t E^ with y_t = add_noise(own estimate): what `reverse_process` shows the network.

    E^ is the head's, or the true map where there is none.
    """
    batch = examples(photos)
    shift = "paper" if weight else "released"
    loss, network = _stage(shift=shift, target="sample", rollout=1.0, structure_weight=weight)
    draws, seen = loss.draws(7, 0, 2), seen_by(network)
    loss(batch, draws)
    (x_last, last), (x_t, t) = seen
    with torch.no_grad():
        features, _ = loss.encoder.encode(batch.lr)
        estimate = network.structure(features, batch.position) if weight else batch.structure
        process, shape = loss.process, batch.hr.shape
        y_last, noise = normal(draws["rollout_noise"], shape, CPU), normal(draws["noise"], shape, CPU)
        torch.testing.assert_close(x_last, process.modulate(y_last, last, estimate))
        x_0 = process.to_plain(x_last, network(x_last, last, features), last, estimate).clamp(-1, 1)
        y_t = process.add_noise(x_0, noise, t, None)
        torch.testing.assert_close(x_t, process.modulate(y_t, t, estimate))
    assert float((x_last - y_last).abs().max()) > 1e-3  # and E is really there


@pytest.mark.parametrize("target", ["marginal_noise", "sample"])
def test_what_is_diffused_is_clipped(photos, target):
    """x_0 = clip(residual_scale (hr - base), -1, 1), of what the network is shown and of what it must answer."""
    batch = examples(photos)
    loss, network = _stage(shift="none", target=target)
    loss.config = loss.config.model_copy(update={"residual_scale": 40.0})
    draws, seen = loss.draws(7, 0, 2), seen_by(network)
    asked = []
    loss.pixel_loss = lambda prediction, wanted: asked.append(wanted) or (prediction - wanted).abs().mean()
    loss(batch, draws)
    _, image = loss.encoder.encode(batch.lr, with_image=True)
    unclipped = 40 * (batch.hr - image.detach())
    assert float(unclipped.abs().max()) > 1
    noise = normal(draws["noise"], batch.hr.shape, CPU)
    expected = loss.process.add_noise(unclipped.clamp(-1, 1), noise, draws["t"], None)
    torch.testing.assert_close(seen[0][0], expected)
    torch.testing.assert_close(asked[0], noise if target == "marginal_noise" else unclipped.clamp(-1, 1))


def test_the_training_target_and_state_hold_the_true_structure(photos):
    batch = examples(photos)
    loss, network = _stage(shift="paper", target="posterior_noise", structure_weight=0.1, scheduler="ddim", steps=2)
    draws, seen, asked = loss.draws(7, 0, 2), seen_by(network), []
    loss.pixel_loss = lambda prediction, wanted: asked.append(wanted) or (prediction - wanted).abs().mean()
    terms = loss(batch, draws).terms
    noise, t, process = normal(draws["noise"], batch.hr.shape, CPU), draws["t"], loss.process
    share = process.shift_step * (1 - process.schedule.alpha_bars).sqrt() / process.schedule.betas
    expected = noise + share[t].float().reshape(-1, 1, 1, 1) * batch.structure
    torch.testing.assert_close(asked[0], expected)
    _, image = loss.encoder.encode(batch.lr, with_image=True)
    x_0 = (4 * (batch.hr - image.detach())).clamp(-1, 1)
    torch.testing.assert_close(seen[0][0], process.add_noise(x_0, noise, t, batch.structure))
    features, _ = loss.encoder.encode(batch.lr)
    distance = (network.structure(features, batch.position) - batch.structure).abs().mean()
    assert terms["structure"].item() == pytest.approx(0.1 * distance.item(), rel=1e-5)


def test_positions_are_turned_with_their_crops(photos):
    """Where the map is the position map itself, both agree pixel for pixel, flipped and rotated or not."""
    source = PreparedPhotos(photos, crop_lr=4, candidates=1, flips=True, position="rope")
    batch = source.batch(0, 0, 8)
    for number, (crop, images) in enumerate(source._drawn(0, 0, 8)):
        whole = position_map("rope", *images[0].shape[:2])
        np.testing.assert_allclose(batch.position[number, 0].numpy(), crop.apply(whole, 4), atol=1e-6)


def test_feature_losses_are_part_of_the_total(photos, feature_file):
    batch = PreparedPhotos(photos, crop_lr=12, candidates=1, flips=True).batch(0, 0, 2)
    values = {}
    for weight in (0.1, 0.2):
        options = {"features_weight": weight, "features_file": feature_file, "efficientnet_weight": 2 * weight}
        loss, _ = _stage(target="velocity", loss=LossConfig(**options))
        values[weight] = terms_of(loss, batch)
    for name in ("features", "efficientnet"):
        assert 0 < values[0.2][name].item() == pytest.approx(2 * values[0.1][name].item())
    assert values[0.2]["pixel"].item() == values[0.1]["pixel"].item()


@pytest.mark.parametrize("stage", ["encoder", "diffusion"])
def test_level_gain_weighs_what_judges_damaged_inputs(photos, feature_file, stage):
    """The features' gradient of an example at level 0.5 under gain 3 is 2.5 times as large; values and pixel loss stay."""
    batch = PreparedPhotos(photos, crop_lr=4, candidates=1, flips=True).batch(0, 0, 1)
    found = {}
    for gain, level in ((0, 0.5), (3, 0.5), (3, 0.0), (3, math.nan)):
        options = {"features_weight": 0.1, "features_file": feature_file, "level_gain": gain}
        if stage == "diffusion":
            loss, network = _stage(target="sample", loss=LossConfig(**options))
        else:
            torch.manual_seed(0)
            network, optim = LightEncoder(width=8, blocks=1), OptimConfig(updates=1, learning_rate=0.1)
            loss = EncoderObjective(network, EncoderConfig(optim=optim, loss=EncoderLossConfig(**options)))
        terms = terms_of(loss, replace(batch, level=torch.tensor([level])))
        by = {name: torch.autograd.grad(terms[name], network.head.weight, retain_graph=True)[0] for name in terms}
        found[gain, str(level)] = {name: term.item() for name, term in terms.items()}, by["pixel"], by["features"]
    values, pixel, features = found[0, "0.5"]
    assert float(features.abs().max()) > 0
    for key, gain in (((3, "0.5"), 2.5), ((3, "0.0"), 1), ((3, "nan"), 1)):
        assert found[key][0] == values
        torch.testing.assert_close(found[key][1], pixel)
        torch.testing.assert_close(found[key][2], gain * features)


def test_noise_of_an_example_is_its_own_and_standard_normal():
    shape = torch.Size((4, 3, 64, 64))
    noise = normal([5, 6, 7, 8], shape, CPU)
    assert torch.equal(noise[1:3], normal([6, 7], shape, CPU))
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.05
    even = uniform(np.random.Philox(0).random_raw(10_000))
    assert 0 <= even.min() < 0.01 and 0.99 < even.max() < 1


def test_draws_follow_their_distributions(photos, tmp_path):
    """t uniform but for the share at t = T, rollout by its share, phases in 0..3; seeds all different."""
    config = tiny(photos, tmp_path, "diffusion.last_step_share=0.5", "diffusion.rollout=0.25")
    drawn = diffusion_objective(config, encoder_objective(config).network).draws(0, 10, 2000)
    t = drawn["t"]
    assert float((t == 99).float().mean()) == pytest.approx(0.505, abs=0.04)
    assert np.bincount(t[t < 99] // 33, minlength=3) / 1000 == pytest.approx([0.33] * 3, abs=0.05)
    assert len(drawn["rolled"]) == pytest.approx(500, abs=70)
    assert np.bincount(np.ravel(drawn["phase"])) == pytest.approx([1000] * 4, abs=120)
    assert len({*drawn["noise"], *drawn["rollout_noise"]}) == 2000 + len(drawn["rolled"])


def test_the_level_reaches_both_networks_and_is_learned(photos):
    """Stage 1 has a term for its estimate; both losses change with the level once the networks look at it."""
    batch = PreparedPhotos(photos, crop_lr=8, candidates=1, flips=True, degrade="real").batch(0, 0, 6)
    other = replace(batch, level=1 - batch.level)
    optim = OptimConfig(updates=1, learning_rate=0.1)
    torch.manual_seed(0)
    encoder, denoiser = LightEncoder(8, 1, level=True), LightDenoiser(8, 1, 8, level=True)
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *denoiser.parameters()]:
            parameter.add_(0.05 * torch.randn_like(parameter))
    stage1 = EncoderObjective(encoder, EncoderConfig(optim=optim, loss=EncoderLossConfig(level_weight=0.5)))
    stage2 = DiffusionObjective(denoiser, encoder, DiffusionConfig(optim=optim, base="encoder", rollout=0.5))
    for objective in (stage1, stage2):
        assert terms_of(objective, batch)["pixel"].item() != terms_of(objective, other)["pixel"].item()
    wanted = 0.5 * (encoder.level_head(batch.lr) - batch.level.sqrt()).square().mean()
    assert terms_of(stage1, batch)["level"].item() == pytest.approx(wanted.item())
    assert "level" not in terms_of(stage2, batch)
    blind = EncoderObjective(LightEncoder(8, 1), EncoderConfig(optim=optim))
    assert "level" not in terms_of(blind, batch)


def test_a_level_can_be_added_to_trained_networks(photos, tmp_path):
    """`start` from weights without the input: at first the same losses at every level."""
    torch.manual_seed(0)
    encoder, denoiser = LightEncoder(8, 1), LightDenoiser(8, 1, 8)
    encoder.save_pretrained(tmp_path / "encoder"), denoiser.save_pretrained(tmp_path / "denoiser")
    batch = PreparedPhotos(photos, crop_lr=4, candidates=1, flips=True, degrade="real").batch(0, 0, 4)
    configs = []
    for level in (False, True):
        config = tiny(photos, tmp_path / "run")
        stages = {
            "encoder": config.encoder.model_copy(update={"start": tmp_path / "encoder", "network": {"level": level}}),
            "diffusion": config.diffusion.model_copy(update={"start": tmp_path, "network": {"level": level}}),
        }
        configs.append(config.model_copy(update=stages))
    plain, levelled = (encoder_objective(config) for config in configs)
    assert terms_of(plain, batch)["pixel"].item() == terms_of(levelled, batch)["pixel"].item()
    assert levelled.network.takes_level
    with pytest.raises(SamDiffSRError, match=r"encoder\.network\.level=true"):
        diffusion_objective(configs[1], plain.network)
    stage2 = [diffusion_objective(config, one.network) for config, one in zip(configs, (plain, levelled), strict=True)]
    assert terms_of(stage2[0], batch)["pixel"].item() == terms_of(stage2[1], batch)["pixel"].item()
    assert stage2[1].network.takes_level
