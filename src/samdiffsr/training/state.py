"""Everything that a run changes as it goes: networks, optimisers, averages, counters. All of it is in a checkpoint."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from samdiffsr.errors import CheckpointError
from samdiffsr.models.level import LevelHead
from samdiffsr.models.structure_head import StructureHead
from samdiffsr.training.adversarial import AdversarialLoss
from samdiffsr.training.config import LossConfig, OptimConfig, StageConfig
from samdiffsr.training.objective import Objective

BETA1 = 0.9
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # what optimisers keep beside a parameter
HEADS = (LevelHead, StructureHead)  # learn by AdamW
SMOOTH = 0.99  # decay of the averaged loss that is watched for divergence
DISCRIMINATOR_BETA1 = 0.5  # usual for discriminators: the estimates they judge change under way


def schedule_factor(update: int, optim: OptimConfig) -> float:
    """The factor of the learning rate: linear warm-up, then cosine to zero, steps, or 1; `update` counts from 0."""
    if update < optim.warmup:
        return (update + 1) / (optim.warmup + 1)
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (update - optim.warmup) / (optim.updates - optim.warmup)))
    if optim.step_every is not None:
        return optim.step_factor ** (update // optim.step_every)
    return 1.0


class TrainState:
    """The state of one stage, on its device.

    Attributes:
        update: updates done.
        average, lowest: of the pixel loss, averaged over about 100 updates.
        best: the best validation score so far.
    """

    def __init__(
        self, objective: Objective, adversarial: AdversarialLoss | None, config: StageConfig, device: torch.device
    ) -> None:
        self.trained, self.adversarial, self.optim = objective.trained, adversarial, config.optim
        for module in (objective, *([adversarial] if adversarial else [])):
            module.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.parameters = [p for network in self.trained.values() for p in network.parameters()]
        self.optimizer = OPTIMIZERS[config.optim.optimizer](self.trained, objective.rates, config.optim)
        self.discriminator_optimizer = (
            None if adversarial is None else _discriminator_adamw(adversarial, config.loss, config.optim.beta2)
        )
        self.ema = EMAModel(
            self.parameters,
            decay=config.optim.ema_decay,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
            foreach=device.type != "cpu",
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.optim.precision == "float16")
        self.update = 0
        self.average, self.lowest = 0.0, math.inf
        self.best: float | None = None

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """That of the trained networks and, if there is one, of the discriminator."""
        return [self.optimizer, *([self.discriminator_optimizer] if self.discriminator_optimizer else [])]

    def set_rates(self) -> None:
        """Learning rates of the update to come."""
        for group in (group for optimizer in self.optimizers() for group in optimizer.param_groups):
            group["lr"] = group["base"] * schedule_factor(self.update, self.optim)

    def watch(self, update: int, record: dict[str, float]) -> bool:
        """Take in the loss terms after `update` updates. False: one is not finite, or the averaged pixel loss has risen
        `optim.divergence` times above its lowest value."""
        values = dict(record)
        if self.scaler.is_enabled():
            values.pop("grad_norm")  # an overflow: the scaler skips that step, as it should
        self.average = SMOOTH * self.average + (1 - SMOOTH) * record["pixel"]
        unbiased = self.average / (1 - SMOOTH**update)
        self.lowest = min(self.lowest, unbiased)
        return all(map(math.isfinite, values.values())) and unbiased <= self.optim.divergence * self.lowest

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The trained networks carry their averaged weights inside this block."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        modes = {name: network.training for name, network in self.trained.items()}
        for network in self.trained.values():
            network.eval()
        try:
            yield
        finally:
            self.ema.restore(self.parameters)
            for name, network in self.trained.items():
                network.train(modes[name])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: weights, their averages, the optimisers' moments. They share memory with the state."""
        found: dict[str, Tensor] = {}
        for name, module in self._modules().items():
            found |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
        names = [f"{name}.{key}" for name, network in self.trained.items() for key, _ in network.named_parameters()]
        found |= {f"ema.{key}": tensor for key, tensor in zip(names, self.ema.shadow_params, strict=True)}
        for key, parameter, optimizer in self._slots():
            for part, value in optimizer.state[parameter].items():
                found[f"adam.{key}.{part}"] = value
        return found

    def numbers(self) -> dict:
        """The rest, ready for JSON."""
        return {
            "update": self.update,
            "optimizer": self.optim.optimizer,
            "average": self.average,
            "lowest": self.lowest,
            "best": self.best,
            "ema_steps": self.ema.optimization_step,
            "optimizer_steps": [group.get("step") for group in self.optimizer.param_groups],
            "scaler": self.scaler.state_dict(),
        }

    def load(self, tensors: dict[str, Tensor], numbers: dict) -> None:
        """Take over what `tensors` and `numbers` once returned.

        Raises:
            CheckpointError: another optimiser's, or one that Muon and AdamW shared in another way; or a tensor is missing, left
                over or of another shape: the networks are not those of the run.
        """
        if (kind := numbers.get("optimizer", self.optim.optimizer)) != self.optim.optimizer:
            raise CheckpointError(f"optim.optimizer is {self.optim.optimizer!r}, but the checkpoint is of {kind!r}.")
        self._check_optimizer_of_each(tensors)
        for key, parameter, optimizer in self._slots():
            # Made with the strides of the parameter: sums of other strides may differ in their last bit.
            optimizer.state[parameter] = {
                part: torch.empty_like(parameter) if part != "step" else torch.empty(())
                for part in MOMENTS
                if f"adam.{key}.{part}" in tensors
            }
        mine = self.tensors()
        for name in sorted(mine.keys() | tensors.keys()):
            if name not in mine or name not in tensors or mine[name].shape != tensors[name].shape:
                raise CheckpointError(f"tensor {name} of the checkpoint does not fit the configured networks.")
        with torch.no_grad():
            for name, tensor in tensors.items():
                mine[name].copy_(tensor)
        self.update, self.best = numbers["update"], numbers["best"]
        self.average, self.lowest = numbers["average"], numbers["lowest"]
        self.ema.optimization_step = numbers["ema_steps"]
        for group, count in zip(self.optimizer.param_groups, numbers.get("optimizer_steps", []), strict=False):
            if count is not None:  # Muon counts in its groups, AdamW beside each parameter
                group["step"] = count
        self.scaler.load_state_dict(numbers["scaler"])

    def _check_optimizer_of_each(self, tensors: dict[str, Tensor]) -> None:
        """Refuse moments of the other half of Muon and AdamW: those of an older version, or of networks with other heads."""
        muon = {id(one) for group in self.optimizer.param_groups if group.get("use_muon") for one in group["params"]}
        for key, parameter, _ in self._slots():
            now, former = ("Muon", "AdamW") if id(parameter) in muon else ("AdamW", "Muon")
            if f"adam.{key}.{'exp_avg' if now == 'Muon' else 'momentum_buffer'}" in tensors:
                raise CheckpointError(
                    f"the checkpoint has {key} trained by {former}, but optim.optimizer {self.optim.optimizer!r} now trains "
                    f"it by {now}: start anew in another output folder, from the saved weights if you like ('start')."
                )

    def _modules(self) -> dict[str, nn.Module]:
        return self.trained | ({"discriminator": self.adversarial.discriminator} if self.adversarial else {})

    def _slots(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
        """Each learning parameter with its name and its optimiser."""
        for name, module in self._modules().items():
            optimizer = self.discriminator_optimizer if name == "discriminator" else self.optimizer
            assert optimizer is not None
            for key, parameter in module.named_parameters():
                yield f"{name}.{key}", parameter, optimizer


def _adamw(networks: dict[str, nn.Module], rates: dict[str, float], optim: OptimConfig) -> torch.optim.Optimizer:
    rate = optim.learning_rate
    groups = [{"params": list(network.parameters()), "base": rate * rates[name]} for name, network in networks.items()]
    return torch.optim.AdamW(groups, lr=rate, betas=(BETA1, optim.beta2), weight_decay=optim.weight_decay)


def _muon(networks: dict[str, nn.Module], rates: dict[str, float], optim: OptimConfig) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for the convolutions between the first and the last of each network, whose rows are the
    output channels; AdamW for the rest. The length of a step is scaled to AdamW's (arXiv 2502.16982, section 2.2).

    Heads are small networks of their own and count apart: with or without them the rest learns alike."""
    from pytorch_optimizer import Muon  # takes a second to import: only who uses it waits

    groups = []
    for name, network in networks.items():
        of_heads = {id(part) for head in network.modules() if isinstance(head, HEADS) for part in head.modules()}
        proper = (module for module in network.modules() if id(module) not in of_heads)
        hidden = [module.weight for module in proper if isinstance(module, nn.Conv2d)][1:-1]
        chosen = {id(weight) for weight in hidden}
        rest = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
        common = {"base": optim.learning_rate * rates[name], "weight_decay": optim.weight_decay}
        groups += [
            common | {"params": hidden, "use_muon": True, "use_adjusted_lr": True},
            common | {"params": rest, "use_muon": False, "betas": (BETA1, optim.beta2), "eps": 1e-8},
        ]
    return Muon([group for group in groups if group["params"]], lr=optim.learning_rate)


OPTIMIZERS = {"adamw": _adamw, "muon": _muon}


def _discriminator_adamw(adversarial: AdversarialLoss, loss: LossConfig, beta2: float) -> torch.optim.Optimizer:
    groups = [{"params": list(adversarial.discriminator.parameters()), "base": loss.discriminator_rate}]
    return torch.optim.AdamW(groups, lr=loss.discriminator_rate, betas=(DISCRIMINATOR_BETA1, beta2), weight_decay=0.0)
