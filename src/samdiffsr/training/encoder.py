"""Stage 1: the LR encoder learns to estimate the HR image itself."""

from typing import Any

from torch import nn

from samdiffsr.data.dataset import Batch
from samdiffsr.resize import SCALE, imresize_tensor
from samdiffsr.training.config import StageConfig
from samdiffsr.training.objective import Objective, Outcome


class EncoderStage(Objective):
    """The loss of the encoder's own estimate."""

    def __init__(self, network: nn.Module, config: StageConfig) -> None:
        super().__init__(config.loss)
        self.network = network
        self.trained, self.rates = {"encoder": network}, {"encoder": 1.0}

    def forward(self, batch: Batch, draws: dict[str, Any]) -> Outcome:
        """To a discriminator the base is MATLAB bicubic."""
        estimate = self.network(batch.lr).float()
        base = imresize_tensor(batch.lr, SCALE) if self.judged else None
        return self._outcome(estimate, batch.hr, estimate=estimate, base=base, hr=batch.hr, phase=draws["phase"])
