"""Optimisers, learning rates and the state in a checkpoint."""

import itertools
import math

import pytest
import torch

from samdiffsr import ConditionalUNet, LightDenoiser, LightEncoder, SamDiffSRError
from samdiffsr.training.checkpoint import load_checkpoint
from samdiffsr.training.config import OptimConfig
from samdiffsr.training.run import encoder_objective, encoder_stage, train_encoder
from samdiffsr.training.state import OPTIMIZERS, TrainState, schedule_factor
from support import quiet, tiny, weights


def test_learning_rate_warms_up_and_decays():
    def factors(**options):
        optim = OptimConfig(updates=100, learning_rate=1.0, **options)
        return [schedule_factor(update, optim) for update in range(100)]

    cosine = factors(warmup=10)
    assert cosine[0] == pytest.approx(1 / 11)
    assert cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[99] < 0.001
    assert all(a < b for a, b in itertools.pairwise(cosine[:11]))
    assert all(a > b for a, b in itertools.pairwise(cosine[10:]))
    steps = factors(schedule="step", step_every=40, step_factor=0.5, warmup=1)
    assert steps == [0.5] + [1.0] * 39 + [0.5] * 40 + [0.25] * 20
    assert factors(schedule="constant") == [1.0] * 100


def test_muon_turns_all_hidden_directions_alike(photos, tmp_path):
    """Its first step is nearly a multiple of an orthogonal matrix; the first and last layers and biases get AdamW's."""
    rate = 1e-3
    options = ["encoder.optim.optimizer=muon", "encoder.optim.updates=1", "encoder.optim.schedule=constant"]
    options += ["encoder.optim.warmup=0", f"encoder.optim.learning_rate={rate}", "encoder.optim.ema_decay=0"]
    config = tiny(photos, tmp_path / "run", *options)
    before = encoder_objective(config).network.state_dict()
    after = weights(train_encoder(config, resume=False, on_update=quiet))["weights"]
    for name, tensor in before.items():
        step = after[name] - tensor
        if name.startswith(("trunk", "conv_out")) and step.ndim == 4:
            values = torch.linalg.svdvals(step.flatten(1)) / (0.2 * rate * math.sqrt(step[0].numel()))
            assert values.min() > 0.5 and values.max() < 1.5, name
        else:
            assert float(step.abs().max()) == pytest.approx(rate, rel=0.01), name


def test_a_checkpoint_of_another_optimizer_is_refused(photos, tmp_path):
    train_encoder(tiny(photos, tmp_path / "run"), resume=False, on_update=quiet)
    other = tiny(photos, tmp_path / "run", "encoder.optim.optimizer=muon", "encoder.optim.updates=6")
    with pytest.raises(SamDiffSRError, match="'muon', but the checkpoint is of 'adamw'"):
        train_encoder(other, resume=True, on_update=quiet)


@pytest.mark.parametrize(
    ("kind", "arguments", "head"),
    [
        (LightEncoder, {"width": 8, "blocks": 1}, {"level": True}),
        (LightDenoiser, {"width": 8, "blocks": 1, "feature_channels": 8}, {"with_structure": True}),
        (ConditionalUNet, {"dim": 4, "multipliers": [1, 2], "feature_channels": 8}, {"with_structure": True}),
    ],
)
def test_a_head_does_not_change_who_trains_the_rest_of_a_network(kind, arguments, head):
    def by_muon(network):
        optim = OptimConfig(updates=1, learning_rate=1.0, optimizer="muon")
        groups = OPTIMIZERS["muon"]({"network": network}, {"network": 1.0}, optim).param_groups
        chosen = {id(one) for group in groups if group["use_muon"] for one in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
        return {name for name, one in network.named_parameters() if id(one) in chosen}

    plain, more = kind(**arguments), kind(**arguments, **head)
    assert len(list(plain.parameters())) < len(list(more.parameters()))
    assert by_muon(more) == by_muon(plain) != set()


def test_a_checkpoint_whose_muon_took_other_convolutions_is_refused(photos, tmp_path):
    """Before heads counted apart, the encoder's own last convolution was among them."""
    options = ["encoder.optim.optimizer=muon", "encoder.network={width: 8, blocks: 1, level: true}"]
    config = tiny(photos, tmp_path / "run", *options)
    train_encoder(config, resume=False, on_update=quiet)
    tensors, numbers = load_checkpoint(tmp_path / "run/encoder/checkpoints")
    state = TrainState(encoder_stage(config).objective, None, config.encoder, torch.device("cpu"))
    state.load(dict(tensors), numbers)
    tensors["adam.encoder.head.weight.momentum_buffer"] = tensors.pop("adam.encoder.head.weight.exp_avg")
    del tensors["adam.encoder.head.weight.exp_avg_sq"]
    with pytest.raises(SamDiffSRError, match=r"encoder\.head\.weight trained by Muon.* by AdamW: start anew"):
        state.load(tensors, numbers)
