"""The cost of a run, against a count by hand."""

from samdiffsr.training.config import DataConfig
from samdiffsr.training.cost import estimate_cost
from samdiffsr.training.run import (
    diffusion_objective,
    encoder_objective,
)
from support import tiny


def test_cost_against_a_count_by_hand(photos, tmp_path):
    """Stage 1 of tiny: convolutions of (in, out) channels at 8x8 pixels; backward costs twice the forward pass, less the
    gradient of the input of the first layer."""
    config = tiny(photos, tmp_path)
    objective = encoder_objective(config)
    cost = estimate_cost(objective, config.encoder)
    pairs = [(3, 16), (16, 16), (16, 16), (16, 16), (16, 48)]
    forward = sum(2 * 9 * a * b * 64 for a, b in pairs)
    assert cost.flop == 2 * (3 * forward - 2 * 9 * 3 * 16 * 64)
    assert (cost.learning, cost.frozen) == (sum(9 * a * b + b for a, b in pairs), 0)
    kept = 4 * 64 * (3 + 16 * 6 + 48)  # inputs of the convolutions, at the least
    assert cost.memory - 20 * cost.learning >= 2 * kept / 2
    halves = estimate_cost(
        objective, config.encoder.model_copy(update={"data": DataConfig(crop_lr=8, batch=4, accumulate=2)})
    )
    assert (halves.flop, halves.memory) == (2 * cost.flop, cost.memory)
    second = estimate_cost(diffusion_objective(config, objective.network), config.diffusion)
    assert second.frozen == cost.learning
