"""One update: of the networks of a stage, and of the discriminator if there is one."""

import math
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from samdiffsr.training.config import StageConfig
from samdiffsr.training.feed import Part
from samdiffsr.training.state import TrainState

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def step(
    model: nn.Module,
    rival: nn.Module | None,
    parts: list[Part],
    state: TrainState,
    config: StageConfig,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Forward and backward over `parts`, then one step of each optimiser.

    Args:
        model, rival: the objective and the opponent, wrapped for distribution if need be.
        parts: what this process computes, one part after the other.

    Returns:
        The mean of each loss term over `parts`, weighted as it counts, and "grad_norm", the gradient's norm before clipping.
    """
    optim, count = config.optim, len(parts)
    weight = config.loss.adversarial_weight if state.update >= config.loss.adversarial_start else 0.0
    autocast = torch.autocast(accelerator.device.type, DTYPES[optim.precision], enabled=optim.precision != "float32")
    found, judged = [], []
    for number, (batch, draws) in enumerate(parts, 1):
        # Gradients travel between processes with the last part only.
        with nullcontext() if number == count else accelerator.no_sync(model):
            with autocast:
                terms, estimate, base = model(batch, draws)
                if state.opponent is not None and weight:
                    terms = terms | {"adversarial": weight * state.opponent.term(batch.hr, estimate, base)}
            state.scaler.scale(_sum(terms) / count).backward()
        found.append({name: term.detach() for name, term in terms.items()})
        if rival is not None:
            judged.append((batch.hr, estimate.detach(), base))
    norm = _advance(state.optimizer, state.parameters, state, optim.clip_norm)
    state.ema.step(state.parameters)
    means = {name: torch.stack([terms[name] for terms in found]).mean() for name in found[0]}
    if rival is not None:
        means["discriminator"] = _train_opponent(rival, judged, state, optim.clip_norm, autocast, accelerator)
    state.scaler.update()
    return means | {"grad_norm": norm}


def _train_opponent(
    rival: nn.Module,
    judged: list[tuple[Tensor, Tensor, Tensor]],
    state: TrainState,
    clip_norm: float | None,
    autocast: torch.autocast,
    accelerator: Accelerator,
) -> Tensor:
    """One step of the discriminator on (hr, estimate, base) of each part; its loss."""
    assert state.opponent is not None and state.opponent_adam is not None
    state.opponent.network.estimate_norms()
    losses = []
    for number, images in enumerate(judged, 1):
        with nullcontext() if number == len(judged) else accelerator.no_sync(rival):
            with autocast:
                loss = rival(*images)
            state.scaler.scale(loss / len(judged)).backward()
        losses.append(loss.detach())
    _advance(state.opponent_adam, list(state.opponent.parameters()), state, clip_norm)
    return torch.stack(losses).mean()


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def _advance(optimizer: torch.optim.Optimizer, parameters: list, state: TrainState, clip_norm: float | None) -> Tensor:
    """Clip, step, and forget the gradients; their norm before clipping."""
    state.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf)
    state.scaler.step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    return norm.detach()
