"""The distance between a prediction and its target."""

import torch.nn.functional as F
from torch import Tensor

from samdiffsr.errors import choose

LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}


def pixel_loss(prediction: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean over all elements: "l1" (released code) or "l2" (paper, Eq. 9)."""
    return choose(kind, LOSSES, "loss")(prediction, target)
