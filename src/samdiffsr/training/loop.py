"""The loop both stages share: forward, backward, clip, step, average, log, validate, save."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from samdiffsr.errors import TrainingError
from samdiffsr.training.checkpoint import checkpoints
from samdiffsr.training.config import StageConfig
from samdiffsr.training.feed import Feed
from samdiffsr.training.log import Log
from samdiffsr.training.objective import Objective
from samdiffsr.training.state import TrainState
from samdiffsr.training.step import step


def run(
    objective: Objective,
    state: TrainState,
    feed: Feed,
    config: StageConfig,
    folder: Path,
    *,
    accelerator: Accelerator,
    log: Log,
    validate: Callable[[], None],
    validate_every: int,
    save: Callable[[], None],
    halt: Callable[[], bool],
) -> None:
    """Train `state` from where it stands to the last update, or until `halt`, asked after each update, says so; `save` writes
    checkpoints to `folder`, also before a halt. All processes must hear the same answer.

    Examples and noise are functions of (seed, update), so a resumed run is the run that never stopped; the gradient is the
    mean over the parts of all processes, so that their number does not matter either, but for rounding.

    Raises:
        TrainingError: the loss is not finite, or diverges.
    """
    total = config.optim.updates
    model = accelerator.prepare_model(objective.train())
    rival = None if state.opponent is None else accelerator.prepare_model(state.opponent)
    pending: list[tuple[int, dict[str, Tensor], dict[str, float]]] = []
    for parts, waited in feed.updates(state.update, total):
        started = time.perf_counter()
        state.set_rates()
        terms = step(model, rival, parts, state, config, accelerator)
        state.update += 1
        times = {"seconds": waited + time.perf_counter() - started, "wait": waited}
        pending.append((state.update, terms, {"lr": state.optimizer.param_groups[0]["lr"]} | times))
        halting = halt()
        saving, validating = (
            state.update % every == 0 or state.update == total for every in (config.save_every, validate_every)
        )
        saving |= halting
        if saving or validating or state.update % config.log_every == 0:
            _report(pending, state, feed, accelerator, log, folder)
        if validating:
            validate()
        if saving:
            save()
        if halting:
            return


def _report(pending: list, state: TrainState, feed: Feed, accelerator: Accelerator, log: Log, folder: Path) -> None:
    """Log the updates that wait for it, averaged over the processes; stop the run if one of them went wrong."""
    flat = accelerator.reduce(torch.cat([torch.stack(list(terms.values())) for _, terms, _ in pending]), "mean")
    values = iter(flat.tolist())  # pyright: ignore[reportAttributeAccessIssue]
    for update, terms, others in pending:
        record = {name: next(values) for name in terms}
        if not state.watch(update, record):
            told = ", ".join(f"{name} {value:.4g}" for name, value in record.items())
            good = checkpoints(folder)
            raise TrainingError(
                f"the loss left its course at update {update} ({told}) on images {', '.join(feed.stems(update - 1))}; "
                f"the last good checkpoint is {good[-1] if good else 'none'}: look at those images, or go on from it "
                f"with a lower optim.learning_rate."
            )
        log.update(update, record | others)
    pending.clear()
