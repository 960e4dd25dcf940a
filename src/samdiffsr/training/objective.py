"""The losses of both stages: each objective draws its noise and turns a batch into loss terms."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samdiffsr.data.dataset import Batch
from samdiffsr.errors import ConfigError
from samdiffsr.models.level import level_of, takes_level
from samdiffsr.models.structure_head import takes_structure
from samdiffsr.resize import SCALE, imresize_tensor
from samdiffsr.training.config import DiffusionConfig, EncoderConfig, LossConfig
from samdiffsr.training.features import POOLED, EfficientNetFeatures, FeatureLoss, VGGFeatures

STREAM = 2  # of each example's random words; those of its crop come from others
WORDS = 8  # of 64 bits for each example
NEAR = 4  # pixels: how far `borders_map` sees
SMALLEST = 1e-4  # distance from which a loss is measured relatively, where values are in [-1, 1]

PIXEL_LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}
"""Means over all elements: L1 is the released code's, L2 the paper's (Eq. 9)."""


def _position(batch: Batch) -> Tensor:
    assert batch.position is not None
    return batch.position


def constant_map(structure: Tensor) -> Tensor:
    """The root mean square of each map (N, 1, H, W), everywhere in it."""
    return structure.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().expand_as(structure)


def borders_map(structure: Tensor) -> Tensor:
    """How near the next border between regions is in maps (N, 1, H, W): 1 beside it, 0 from `NEAR` pixels away.

    A border is where neighbours differ, so regions of the same value are one.
    """
    low, high = -F.max_pool2d(-structure, 2, 1), F.max_pool2d(structure, 2, 1)  # of each four neighbours
    near = F.max_pool2d(F.pad((low < high).to(structure.dtype), (1, 1, 1, 1)), 2, 1)
    for _ in range(NEAR - 1):
        near = torch.maximum(near, F.max_pool2d(near, 3, 1, 1) - 1 / NEAR)
    return near


def _others(batch: Batch) -> Tensor:
    if len(batch.structure) < 2:
        raise ConfigError(
            "diffusion.structure.map is 'other', but each micro-batch holds one crop; choose a larger diffusion.data.batch."
        )
    return batch.structure.roll(1, dims=0)


MAPS: dict[str, Callable[[Batch], Tensor]] = {
    "regions": lambda batch: batch.structure,
    "position": _position,
    "constant": lambda batch: constant_map(batch.structure),
    "other": _others,
    "borders": lambda batch: borders_map(batch.structure),
}
"""Of `diffusion.structure.map`: what stands for the structure maps of a batch, (N, 1, H, W)."""


class Outcome(NamedTuple):
    """Named loss terms, whose sum is minimised; and, for a discriminator, the HR estimate and its base, (N, 3, H, W) in
    [-1, 1] (None where nobody asks for them)."""

    terms: dict[str, Tensor]
    estimate: Tensor | None
    base: Tensor | None


class Objective(nn.Module, ABC):
    """A loss over `trained` networks. `forward` is a pure function of a batch and what `draws` drew for it.

    Attributes:
        trained: the networks that learn, by name; of the others no gradient is taken.
        rates: learning rate of each, as a factor of the stage's.
        has_discriminator: whether a discriminator will see the estimate.
    """

    trained: dict[str, nn.Module]
    rates: dict[str, float]

    def __init__(self, network: nn.Module, loss: LossConfig) -> None:
        super().__init__()
        self.network = network
        self.at_start = deepcopy(network).requires_grad_(False).eval() if loss.remember else None
        self.pixel_loss, self.level_gain = PIXEL_LOSSES[loss.pixel], loss.level_gain
        self.has_discriminator = loss.adversarial_weight > 0
        self.weights = {"features": loss.features_weight, "efficientnet": loss.efficientnet_weight}
        self.perceptual = nn.ModuleDict()
        if loss.features_file:
            self.perceptual["features"] = FeatureLoss(VGGFeatures(loss.features_file))
        if loss.efficientnet_weight:
            self.perceptual["efficientnet"] = FeatureLoss(EfficientNetFeatures())

    def draws(self, seed: int, first: int, count: int) -> dict[str, Any]:
        """All randomness of examples first .. first + count - 1: small tensors on the CPU, and lists.

        Each example has words of its own in a counter-based random stream (Philox, Salmon et al. 2011), so that its noise
        depends neither on the batch it is in nor on the process that computes it. Noise itself is drawn by `normal`, where
        it is needed, from the seeds among these: making it ahead would take the threads of `Batches` longer than all the rest.
        """
        source = np.random.Philox(key=seed + (STREAM << 64), counter=first * WORDS // 4)
        return self.read(source.random_raw(count * WORDS).reshape(count, WORDS))

    def read(self, words: np.ndarray) -> dict[str, Any]:
        """The draws that uint64 (count, WORDS) random words mean: here "phase", where the feature loss looks."""
        return {"phase": (words[:, :2] % POOLED).tolist()}

    @abstractmethod
    def forward(self, batch: Batch, draws: dict[str, Any]) -> Outcome:
        """The loss of one batch."""

    def _pixels(self, estimate: Tensor, target: Tensor, batch: Batch, *given: Tensor, **more: Tensor) -> Tensor:
        """The pixel loss. With `loss.remember` that of a synthetic example is another: the squared distance from what the
        network at its start answers to the same input, divided by the mean distance of that answer from `target`.

        So the network learns the others without forgetting what it could do (arXiv 1606.09282). A squared distance leaves it
        free to move a little; an absolute one held small networks where they were.
        """
        if self.at_start is None or batch.synthetic is None:
            return self.pixel_loss(estimate, target)
        with torch.no_grad():
            answer = self.at_start(*given, **more).float()
        kept = F.mse_loss(estimate, answer, reduction="none").mean(dim=(1, 2, 3))
        kept = kept / (target - answer).abs().mean(dim=(1, 2, 3)).clamp(min=SMALLEST)
        learned = self.pixel_loss(estimate, target, reduction="none").mean(dim=(1, 2, 3))
        return torch.where(batch.synthetic, kept, learned).mean()

    def _by_level(self, estimate: Tensor, level: Tensor) -> Tensor:
        """The same values, whose gradient is that of `estimate` times 1 + level_gain x level (N,); unknown levels count 0.

        The more an input is damaged, the less its pixels can be right, and the more the result must look like a photograph.
        """
        gain = 1 + self.level_gain * level.nan_to_num(0.0).reshape(-1, 1, 1, 1)
        return estimate.detach() + gain * (estimate - estimate.detach())

    def _feature_terms(self, estimate: Tensor, hr: Tensor, phase: list) -> dict[str, Tensor]:
        return {name: self.weights[name] * loss(estimate, hr, phase) for name, loss in self.perceptual.items()}


class EncoderObjective(Objective):
    """Stage 1: the LR encoder learns to estimate the HR image itself."""

    def __init__(self, network: nn.Module, config: EncoderConfig) -> None:
        super().__init__(network, config.loss)
        self.targets, self.level_weight = config.loss.targets, config.loss.level_weight
        self.trained, self.rates = {"encoder": network}, {"encoder": 1.0}

    def forward(self, batch: Batch, draws: dict[str, Any]) -> Outcome:
        """To a discriminator the base is MATLAB bicubic."""
        level = known_level(self.network, batch)
        given = level_for(self.network, level)
        estimate = self.network(batch.lr, **given).float()
        base = imresize_tensor(batch.lr, SCALE) if self.has_discriminator else None
        further = self.targets.keys() - {"hr"}
        losses = [self.targets[name] * self.pixel_loss(estimate, batch.targets[name]) for name in sorted(further)]
        if "hr" in self.targets:
            losses.append(self.targets["hr"] * self._pixels(estimate, batch.hr, batch, batch.lr, **given))
        terms = {"pixel": torch.stack(losses).sum()}
        if takes_level(self.network):
            found = self.network.level_head(batch.lr).float()  # pyright: ignore[reportCallIssue]
            # Unknown levels teach nothing.
            wanted = torch.where(batch.level.isnan(), found.detach(), batch.level.sqrt())
            terms["level"] = self.level_weight * F.mse_loss(found, wanted)
        estimate = self._by_level(estimate, level)
        return Outcome(terms | self._feature_terms(estimate, batch.hr, draws["phase"]), estimate, base)


class DiffusionObjective(Objective):
    """Stage 2: the denoiser learns the modulated process (Algorithm 1); the encoder is frozen or learns on more slowly."""

    def __init__(self, network: nn.Module, encoder: nn.Module, config: DiffusionConfig) -> None:
        super().__init__(network, config.loss)
        self.config = config
        self.encoder = encoder.requires_grad_(config.encoder_rate > 0)
        self.trained, self.rates = {"denoiser": network}, {"denoiser": 1.0}
        if config.encoder_rate > 0:
            self.trained["encoder"], self.rates["encoder"] = encoder, config.encoder_rate
        else:
            encoder.eval()
        self.process = config.process()

    def read(self, words: np.ndarray) -> dict[str, Any]:
        """Besides "phase": t, seeds of the noise, and which examples start from a rolled-out estimate under which noise."""
        config = self.config
        t = (uniform(words[:, 2]) * config.timesteps).astype(np.int64)
        t[uniform(words[:, 3]) < config.last_step_share] = config.timesteps - 1
        rolled = np.flatnonzero(uniform(words[:, 4]) < config.rollout)
        return super().read(words) | {
            "t": torch.from_numpy(t),
            "noise": (words[:, 5] >> 1).tolist(),
            "rolled": torch.from_numpy(rolled),
            "rollout_noise": (words[rolled, 6] >> 1).tolist(),
        }

    def forward(self, batch: Batch, draws: dict[str, Any]) -> Outcome:
        """Gradients reach the encoder, if it learns, through its features; the base is never part of the graph."""
        scale, t = self.config.residual_scale, draws["t"]
        batch = replace(batch, structure=MAPS[self.config.structure.map](batch), level=known_level(self.encoder, batch))
        with nullcontext() if "encoder" in self.trained else torch.no_grad():
            given = {"with_image": self.config.base == "encoder"} | level_for(self.encoder, batch.level)
            features, image = self.encoder.encode(batch.lr, **given)  # pyright: ignore[reportCallIssue]
        base = imresize_tensor(batch.lr, SCALE) if image is None else image.detach().float()
        x_0 = (scale * (batch.hr - base)).clamp(-1, 1)
        structure, terms = batch.structure, {}
        if self.config.structure_weight:
            found = self.network.structure(features, batch.position).float()  # pyright: ignore[reportCallIssue]
            terms["structure"] = self.config.structure_weight * F.l1_loss(found, batch.structure)
            structure = found.detach()
        start, structure = self._rollout(x_0, features, structure, batch, draws)
        noise = normal(draws["noise"], x_0.shape, x_0.device)
        x_t = self.process.add_noise(start, noise, t, structure)
        given = level_for(self.network, batch.level) | structure_for(self.network, structure)
        prediction = self.network(x_t, t, features, **given).float()
        target = self.process.training_target(noise, t, structure, x_0=x_0)
        terms = {"pixel": self._pixels(prediction, target, batch, x_t, t, features, **given)} | terms
        if not self.has_discriminator and not self.perceptual:
            return Outcome(terms, None, None)
        x_0 = self.process.predict_x0(x_t, prediction, t, structure).clamp(-1, 1)
        estimate = self._by_level((x_0 / scale + base).clamp(-1, 1), batch.level)
        return Outcome(terms | self._feature_terms(estimate, batch.hr, draws["phase"]), estimate, base)

    @torch.no_grad()
    def _rollout(
        self, x_0: Tensor, features: Tensor, seen: Tensor, batch: Batch, draws: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """What x_t is made of: x_0 and E for some examples; for the others what few-step sampling makes it of, the network's
        own estimate from y_T ~ N(0, I) and the structure map `seen` there."""
        chosen = draws["rolled"]
        start, structure = x_0.clone(), batch.structure.clone()
        if len(chosen):
            noise = normal(draws["rollout_noise"], x_0.shape, x_0.device)
            last = torch.full_like(chosen, self.config.timesteps - 1)
            structure[chosen] = seen[chosen]
            x_t = self.process.modulate(noise, last, seen[chosen])
            given = level_for(self.network, batch.level[chosen]) | structure_for(self.network, seen[chosen])
            prediction = self.network(x_t, last, features[chosen], **given).float()
            start[chosen] = self.process.predict_x0(x_t, prediction, last, seen[chosen]).clamp(-1, 1)
        return start, structure


@torch.no_grad()
def known_level(encoder: nn.Module, batch: Batch) -> Tensor:
    """The levels of a batch (N,). Where nobody knows them, an encoder that takes a level is given its own estimate, as when a
    picture is enlarged."""
    unknown = batch.level.isnan()
    if not takes_level(encoder) or not bool(unknown.any()):
        return batch.level
    found = level_of(encoder.level_head(batch.lr).float())  # pyright: ignore[reportCallIssue]
    return torch.where(unknown, found, batch.level)


def level_for(network: nn.Module, level: Tensor) -> dict[str, Tensor]:
    """`level` as an argument of the network, if it takes one."""
    return {"level": level} if takes_level(network) else {}


def structure_for(network: nn.Module, structure: Tensor) -> dict[str, Tensor]:
    """`structure` as an argument of the network, if it takes one."""
    return {"structure": structure} if takes_structure(network) else {}


def uniform(words: np.ndarray) -> np.ndarray:
    """Random words of 64 bits -> float64 in [0, 1)."""
    return (words >> 11) * 2.0**-53


def normal(seeds: list[int], shape: torch.Size, device: torch.device) -> Tensor:
    """Standard normal noise (len(seeds), *shape[1:]), each example's from a generator of its own."""
    generators = (torch.Generator(device).manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randn(shape[1:], generator=one, device=device) for one in generators])
