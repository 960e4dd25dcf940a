"""What both stages are to the loop: something that draws its noise, and turns a batch into loss terms."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from samdiffsr.data.dataset import Batch
from samdiffsr.diffusion.loss import pixel_loss
from samdiffsr.training.config import LossConfig
from samdiffsr.training.features import POOLED, FeatureLoss

STREAM = 2  # of each example's random words; those of its crop come from others
WORDS = 8  # of 64 bits for each example


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
        judged: whether a discriminator will see the estimate.
    """

    trained: dict[str, nn.Module]
    rates: dict[str, float]

    def __init__(self, loss: LossConfig) -> None:
        super().__init__()
        self.pixel, self.weight, self.judged = loss.pixel, loss.features_weight, loss.adversarial_weight > 0
        self.features = FeatureLoss(loss.features_file) if loss.features_file else None

    def draws(self, seed: int, first: int, count: int) -> dict[str, Any]:
        """All randomness of examples first .. first + count - 1: small tensors on the CPU, and lists.

        Each example has words of its own in a counter-based random stream (Philox, Salmon et al. 2011), so that its noise
        depends neither on the batch it is in nor on the process that computes it. Noise itself is drawn by `normal`, where
        it is needed, from the seeds among these: making it ahead would take the feeding threads longer than all the rest.
        """
        source = np.random.Philox(key=seed + (STREAM << 64), counter=first * WORDS // 4)
        return self.read(source.random_raw(count * WORDS).reshape(count, WORDS))

    def read(self, words: np.ndarray) -> dict[str, Any]:
        """The draws that uint64 (count, WORDS) random words mean: here "phase", where the feature loss looks."""
        return {"phase": (words[:, :2] % POOLED).tolist()}

    @abstractmethod
    def forward(self, batch: Batch, draws: dict[str, Any]) -> Outcome:
        """The loss of one batch."""

    def _outcome(
        self,
        prediction: Tensor,
        target: Tensor,
        *,
        estimate: Tensor | None,
        base: Tensor | None,
        hr: Tensor,
        phase: list,
    ) -> Outcome:
        terms = {"pixel": pixel_loss(prediction, target, self.pixel)}
        if self.features is not None and estimate is not None:
            terms["features"] = self.weight * self.features(estimate, hr, phase)
        return Outcome(terms, estimate, base)


def uniform(words: np.ndarray) -> np.ndarray:
    """Random words of 64 bits -> float64 in [0, 1)."""
    return (words >> 11) * 2.0**-53


def normal(seeds: list[int], shape: torch.Size, device: torch.device) -> Tensor:
    """Standard normal noise (len(seeds), *shape[1:]), each example's from a generator of its own."""
    generators = (torch.Generator(device).manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randn(shape[1:], generator=one, device=device) for one in generators])
