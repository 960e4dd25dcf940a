"""The loop both stages share: draw, forward, backward, clip, step, average, log, save."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from samdiffsr.data.dataset import Batch, PreparedPhotos
from samdiffsr.training.checkpoint import load_checkpoint, save_checkpoint
from samdiffsr.training.config import OptimConfig, StageConfig

Loss = Callable[[Batch, int], dict[str, Tensor]]


def learning_rate(update: int, optim: OptimConfig) -> float:
    """Linear warm-up, then cosine decay to zero; `update` counts from 0."""
    if update < optim.warmup:
        return optim.learning_rate * (update + 1) / (optim.warmup + 1)
    done = (update - optim.warmup) / (optim.updates - optim.warmup)
    return optim.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def run(
    network: nn.Module,
    loss: Loss,
    config: StageConfig,
    photos: PreparedPhotos,
    folder: Path,
    *,
    seed: int,
    resume: bool,
    save_ema: Callable[[nn.Module], None],
    progress: Callable[[int, dict[str, float]], None] = lambda update, record: None,
) -> None:
    """Train `network` in place; write checkpoints and metrics.jsonl to `folder` and, by `save_ema`, the averaged weights.

    Crops and noise are functions of (seed, update), so a resumed run is the run that never stopped.
    """
    optim, size = config.optim, config.data.batch
    network.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    adam = torch.optim.AdamW(network.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay)
    ema = EMAModel(network.parameters(), decay=optim.ema_decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    first = 0
    if resume and (state := load_checkpoint(folder)):
        network.load_state_dict(state["network"])
        adam.load_state_dict(state["adam"])
        ema.load_state_dict(state["ema"])
        first = state["update"]
    for update in range(first, optim.updates):
        started = time.perf_counter()
        batch = photos.batch(seed, update * size, size)
        for group in adam.param_groups:
            group["lr"] = learning_rate(update, optim)
        with torch.autocast("cpu", torch.bfloat16, enabled=optim.precision == "bfloat16"):
            terms = loss(batch, seed * 1_000_003 + update)
        total = torch.stack(list(terms.values())).sum()
        adam.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), optim.clip_norm, error_if_nonfinite=True)
        adam.step()
        ema.step(network.parameters())
        record = {name: float(term.detach()) for name, term in terms.items()}
        record |= {"grad_norm": float(norm), "lr": adam.param_groups[0]["lr"], "seconds": time.perf_counter() - started}
        _log(folder, {"update": update + 1} | record)
        progress(update + 1, record)
        if (update + 1) % config.save_every == 0 or update + 1 == optim.updates:
            state = {"network": network.state_dict(), "adam": adam.state_dict(), "ema": ema.state_dict()}
            save_checkpoint(folder, state | {"update": update + 1})
            _save_averaged(network, ema, save_ema)
    if first == optim.updates:  # finished before: only the settings that do not concern training can have changed
        _save_averaged(network, ema, save_ema)


def _save_averaged(network: nn.Module, ema: EMAModel, save_ema: Callable[[nn.Module], None]) -> None:
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    save_ema(network)
    ema.restore(network.parameters())


def _log(folder: Path, record: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
