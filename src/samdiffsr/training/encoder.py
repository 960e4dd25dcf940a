"""Stage 1: the LR encoder learns to estimate the HR image itself."""

import torch
from torch import Tensor, nn

from samdiffsr.data.dataset import Batch
from samdiffsr.diffusion.loss import pixel_loss
from samdiffsr.training.config import StageConfig
from samdiffsr.training.features import FeatureLoss


class EncoderStage:
    """The loss of one update of the encoder."""

    def __init__(self, network: nn.Module, config: StageConfig) -> None:
        self.network = network
        self.pixel = config.loss.pixel
        self.weight = config.loss.features_weight
        self.features = FeatureLoss(config.loss.features_file) if config.loss.features_file else None

    def __call__(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Named loss terms; their sum is minimised. `seed` places the feature loss."""
        estimate = self.network(batch.lr).float()
        terms = {"pixel": pixel_loss(estimate, batch.hr, self.pixel)}
        if self.features is not None:
            terms["features"] = self.weight * self.features(estimate, batch.hr, torch.Generator().manual_seed(seed))
        return terms
