"""The loop of both stages and, below it, one update."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from samdiffsr.errors import TrainingError
from samdiffsr.training.batches import Batches, MicroBatch
from samdiffsr.training.checkpoint import CHECKPOINTS, checkpoints
from samdiffsr.training.config import StageConfig
from samdiffsr.training.log import Log
from samdiffsr.training.objective import Objective
from samdiffsr.training.state import TrainState

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def train(
    objective: Objective,
    state: TrainState,
    batches: Batches,
    config: StageConfig,
    *,
    accelerator: Accelerator,
    log: Log,
    validate: Callable[[], None],
    validate_every: int,
    save: Callable[[], None],
    deadline: float,
) -> None:
    """Train `state` from where it stands to the last update or, if `deadline` (of `time.monotonic`) passes first in any of
    the processes, to the next look at the loss, in all of them; at least one update is done. `save` writes a checkpoint.

    Examples and noise are functions of (seed, update), so a resumed run is the run that never stopped; the gradient is the
    mean over the micro-batches of all processes, so that their number does not matter either, but for rounding.

    Raises:
        TrainingError: the loss is not finite, or diverges.
    """
    total = config.optim.updates
    model = accelerator.prepare_model(objective.train())
    adversarial = None if state.adversarial is None else accelerator.prepare_model(state.adversarial)
    pending: list[tuple[int, dict[str, Tensor], dict[str, float]]] = []
    for micro_batches, waited in batches.updates(state.update, total):
        started = time.perf_counter()
        state.set_rates()
        terms = update(model, adversarial, micro_batches, state, config, accelerator)
        state.update += 1
        times = {"seconds": waited + time.perf_counter() - started, "wait": waited}
        pending.append((state.update, terms, {"lr": state.optimizer.param_groups[0]["lr"]} | times))
        saving, validating = (
            state.update % every == 0 or state.update == total for every in (config.save_every, validate_every)
        )
        stopping = False
        if saving or validating or state.update % config.log_every == 0:
            stopping = _look(pending, state, batches, accelerator, log, late=time.monotonic() >= deadline)
        if validating:
            validate()
        if saving or stopping:
            save()
        if stopping:
            return


def update(
    model: nn.Module,
    adversarial: nn.Module | None,
    micro_batches: list[MicroBatch],
    state: TrainState,
    config: StageConfig,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Forward and backward over the micro-batches of this process, then one step of each optimiser.

    Args:
        model, adversarial: the objective and the adversarial loss, wrapped for distribution if need be.

    Returns:
        The mean of each loss term over the micro-batches, weighted as it counts, and "grad_norm", the gradient's norm before
        clipping.
    """
    optim, count = config.optim, len(micro_batches)
    weight = config.loss.adversarial_weight if state.update >= config.loss.adversarial_start else 0.0
    autocast = torch.autocast(accelerator.device.type, DTYPES[optim.precision], enabled=optim.precision != "float32")
    found, images = [], []
    for number, (batch, draws) in enumerate(micro_batches, 1):
        # Gradients travel between processes with the last micro-batch only.
        with nullcontext() if number == count else accelerator.no_sync(model):
            with autocast:
                terms, estimate, base = model(batch, draws)
                if state.adversarial is not None and weight:
                    terms = terms | {"adversarial": weight * state.adversarial.term(batch.hr, estimate, base)}
            state.scaler.scale(_sum(terms) / count).backward()
        found.append({name: term.detach() for name, term in terms.items()})
        if adversarial is not None:
            images.append((batch.hr, estimate.detach(), base))
    norm = _step(state.optimizer, state.parameters, state, optim.clip_norm)
    state.ema.step(state.parameters)
    means = {name: torch.stack([terms[name] for terms in found]).mean() for name in found[0]}
    if adversarial is not None:
        means["discriminator"] = _update_discriminator(
            adversarial, images, state, optim.clip_norm, autocast, accelerator
        )
    state.scaler.update()
    return means | {"grad_norm": norm}


def _update_discriminator(
    adversarial: nn.Module,
    images: list[tuple[Tensor, Tensor, Tensor]],
    state: TrainState,
    clip_norm: float | None,
    autocast: torch.autocast,
    accelerator: Accelerator,
) -> Tensor:
    """One step of the discriminator on (hr, estimate, base) of each micro-batch; its loss."""
    assert state.adversarial is not None and state.discriminator_optimizer is not None
    state.adversarial.discriminator.estimate_norms()
    losses = []
    for number, (hr, estimate, base) in enumerate(images, 1):
        with nullcontext() if number == len(images) else accelerator.no_sync(adversarial):
            with autocast:
                loss = adversarial(hr, estimate, base)
            state.scaler.scale(loss / len(images)).backward()
        losses.append(loss.detach())
    _step(state.discriminator_optimizer, list(state.adversarial.discriminator.parameters()), state, clip_norm)
    return torch.stack(losses).mean()


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def _step(optimizer: torch.optim.Optimizer, parameters: list, state: TrainState, clip_norm: float | None) -> Tensor:
    """Clip, step, and forget the gradients; their norm before clipping."""
    state.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf)
    state.scaler.step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    return norm.detach()


def _look(
    pending: list, state: TrainState, batches: Batches, accelerator: Accelerator, log: Log, *, late: bool
) -> bool:
    """Log the updates that wait for it, averaged over the processes. True: one of the processes is `late`, so all must stop.

    The question travels with the losses, as an exchange of its own in each update would let a GPU run dry.

    Raises:
        TrainingError: the loss of one of the updates is not finite, or diverges.
    """
    losses = torch.cat([torch.stack(list(terms.values())) for _, terms, _ in pending])
    means = accelerator.reduce(torch.cat([losses, losses.new_tensor([float(late)])]), "mean")
    *values, lateness = means.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    following = iter(values)
    for number, terms, others in pending:
        record = {name: next(following) for name in terms}
        if not state.watch(number, record):
            values_text = ", ".join(f"{name} {value:.4g}" for name, value in record.items())
            good = checkpoints(log.folder / CHECKPOINTS)
            raise TrainingError(
                f"training diverged at update {number} ({values_text}) on images {', '.join(batches.stems(number - 1))}; "
                f"the last good checkpoint is {good[-1] if good else 'none'}: look at those images, or go on from it "
                f"with a lower optim.learning_rate."
            )
        log.update(number, record | others)
    pending.clear()
    return lateness > 0
