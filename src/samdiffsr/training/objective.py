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

NOISE = (
    1  # keeps the stream of an example's noise apart from that of its crop, which PreparedPhotos seeds [seed, index]
)


class Outcome(NamedTuple):
    """Named loss terms, whose sum is minimised; the HR estimate (N, 3, H, W) in [-1, 1], if there is one, and its base."""

    terms: dict[str, Tensor]
    estimate: Tensor | None
    base: Tensor


class Objective(nn.Module, ABC):
    """A loss over `trained` networks. `forward` is a pure function of a batch and what `draws` drew for it.

    Attributes:
        trained: the networks that learn, by name; of the others no gradient is taken.
        rates: learning rate of each, as a factor of the stage's.
    """

    trained: dict[str, nn.Module]
    rates: dict[str, float]

    def __init__(self, loss: LossConfig) -> None:
        super().__init__()
        self.pixel, self.weight = loss.pixel, loss.features_weight
        self.features = FeatureLoss(loss.features_file) if loss.features_file else None

    def draws(self, seed: int, first: int, count: int, side_hr: int) -> dict[str, Any]:
        """All randomness of examples first .. first + count - 1: tensors on the CPU, stacked, and lists.

        Every example has a generator of its own, seeded by (seed, number of the example), so that its noise depends
        neither on the batch it is in nor on the process that computes it. NumPy's, because a torch operation in a feeding
        thread would start a second set of OpenMP threads.
        """
        each = [
            self.draw(np.random.default_rng([seed, index, NOISE]), side_hr) for index in range(first, first + count)
        ]
        joined = {name: [one[name] for one in each] for name in each[0]}
        return {name: torch.from_numpy(np.stack(v)) if name != "phase" else v for name, v in joined.items()}

    def draw(self, rng: np.random.Generator, side_hr: int) -> dict[str, Any]:  # noqa: ARG002
        """The draws of one example of `side_hr` HR pixels: here where the feature loss looks, "phase" (top, left)."""
        return {"phase": rng.integers(POOLED, size=2).tolist()}

    @abstractmethod
    def forward(self, batch: Batch, draws: dict[str, Any]) -> Outcome:
        """The loss of one batch."""

    def _outcome(
        self, prediction: Tensor, target: Tensor, *, estimate: Tensor | None, base: Tensor, hr: Tensor, phase: list
    ) -> Outcome:
        terms = {"pixel": pixel_loss(prediction, target, self.pixel)}
        if self.features is not None and estimate is not None:
            terms["features"] = self.weight * self.features(estimate, hr, phase)
        return Outcome(terms, estimate, base)
