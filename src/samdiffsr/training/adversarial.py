"""The adversarial terms, written for logits: high for an original, low for an estimate."""

import torch.nn.functional as F
from torch import Tensor, nn

from samdiffsr.errors import choose
from samdiffsr.models.discriminator import PatchDiscriminator

# kind: (what the discriminator minimises, what the estimating network minimises), both of (real, fake) logits.
# softplus: arXiv 1406.2661 in its non-saturating form; hinge: arXiv 1705.02894; relativistic: arXiv 1807.00734, in pairs,
# as the average over the batch would make an example's gradient depend on who else is in the batch.
TERMS = {
    "softplus": (
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda real, fake: F.softplus(-fake).mean(),
    ),
    "hinge": (
        lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        lambda real, fake: -fake.mean(),
    ),
    "relativistic": (
        lambda real, fake: F.softplus(fake - real).mean(),
        lambda real, fake: F.softplus(real - fake).mean(),
    ),
}


class Opponent(nn.Module):
    """The discriminator and its own loss: what the loop trains beside a stage."""

    def __init__(self, network: PatchDiscriminator, kind: str) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, hr: Tensor, estimate: Tensor, base: Tensor) -> Tensor:
        """What the discriminator minimises; no gradient reaches `estimate`. All (N, 3, H, W) in [-1, 1]."""
        real, fake = self.network(hr, base).float(), self.network(estimate.detach(), base).float()
        return choose(self.kind, TERMS, "loss.adversarial")[0](real, fake)

    def term(self, hr: Tensor, estimate: Tensor, base: Tensor) -> Tensor:
        """What the estimating network minimises; gradients reach `estimate` and not the discriminator."""
        self.network.requires_grad_(False)
        fake = self.network(estimate, base).float()
        real = self.network(hr, base).float() if self.kind == "relativistic" else fake
        self.network.requires_grad_(True)
        return choose(self.kind, TERMS, "loss.adversarial")[1](real, fake)
