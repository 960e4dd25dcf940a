"""The cost of a run, before it starts: parameters, operations and memory of one update."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from samdiffsr.data.dataset import Batch
from samdiffsr.resize import SCALE
from samdiffsr.training.adversarial import new_adversarial_loss
from samdiffsr.training.config import StageConfig, further_targets
from samdiffsr.training.loop import DTYPES
from samdiffsr.training.objective import Objective

COPIES = 5  # of each learning parameter in float32: itself, its gradient, two moments (of Muon one), its average


@dataclass(frozen=True)
class Cost:
    """Of one stage.

    Attributes:
        learning, frozen: numbers of parameters; `learning` includes a discriminator.
        flop: operations of one update over all processes, forward and backward; a multiply-add counts two.
        memory: bytes in one process: parameters with all that belongs to them, and what one micro-batch keeps
            for its backward pass. A lower bound: a backend's work space comes on top.
    """

    learning: int
    frozen: int
    flop: int
    memory: int


def estimate_cost(objective: Objective, stage: StageConfig, *, processes: int = 1) -> Cost:
    """Measure one example (random pixels, on the CPU) and multiply."""
    adversarial = new_adversarial_loss(stage.loss, 0)
    side = stage.data.crop_lr
    lr, hr = (torch.rand(1, 3, size, size) * 2 - 1 for size in (side, SCALE * side))
    targets, structure = dict.fromkeys(further_targets(stage), hr), torch.zeros(1, 1, *hr.shape[2:])
    batch = Batch(hr=hr, lr=lr, structure=structure, level=torch.zeros(1), targets=targets, position=structure)
    draws = objective.draws(0, 0, 1)
    own = {p.untyped_storage().data_ptr() for module in (objective, adversarial or objective) for p in _tensors(module)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    precision = stage.optim.precision
    autocast = torch.autocast("cpu", DTYPES[precision], enabled=precision != "float32")
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
            terms, estimate, base = objective(batch, draws)
            total = torch.stack(list(terms.values())).sum()
            if adversarial is not None and estimate is not None:
                total = total + adversarial.term(hr, estimate, base)
        total.backward()
        if adversarial is not None and estimate is not None:
            with autocast:
                verdict = adversarial(hr, estimate, base)
            verdict.backward()
    learning = _count(p for network in objective.trained.values() for p in network.parameters())
    learning += _count(adversarial.discriminator.parameters()) if adversarial else 0
    frozen = _count(_tensors(objective)) - _count(p for net in objective.trained.values() for p in _tensors(net))
    size = stage.data.batch // (processes * stage.data.accumulate)
    frozen += _count(_tensors(adversarial.features)) if adversarial and adversarial.features else 0
    memory = 4 * (COPIES * learning + frozen) + size * sum(kept.values())
    return Cost(learning, frozen, stage.data.batch * counter.get_total_flops(), memory)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _count(tensors) -> int:
    return sum(tensor.numel() for tensor in tensors)
