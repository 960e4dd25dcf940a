"""The discriminator and the adversarial losses: what an original has and an estimate lacks. Used in training only."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from samdiffsr.errors import choose
from samdiffsr.training.config import LossConfig

DETAIL_GAIN = 4.0  # brings image - base to the range of the image itself
SLOPE = 0.2  # of the leaky ReLUs

# kind: (what the discriminator minimises, what the estimating network minimises), both of (real, fake) logits, which are
# high for an original and low for an estimate.
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


class PatchDiscriminator(nn.Module):
    """Seven convolutions at full, half and quarter size; the inner ones spectrally normalised (arXiv 1802.05957).

    It sees the image and, amplified, what the image adds to its base: the question is not whether a picture is pretty, but
    whether these details belong to that base. No normalisation over the batch, so examples do not see each other.

    Args:
        width: channels at full size; 2 `width` at half size, and at quarter size.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        wide = 2 * width
        self.first = nn.Conv2d(6, width, 3, padding=1)
        self.inner = nn.ModuleList(
            spectral_norm(nn.Conv2d(before, wide, kernel, stride, padding=1, bias=False))
            for before, kernel, stride in ((width, 4, 2), (wide, 3, 1), (wide, 4, 2), (wide, 3, 1), (wide, 3, 1))
        )
        self.last = nn.Conv2d(wide, 1, 3, padding=1)
        self.eval()

    def forward(self, image: Tensor, base: Tensor) -> Tensor:
        """image, base (N, 3, H, W) in [-1, 1], H and W multiples of 4 -> logits (N, 1, H / 4, W / 4), high: original."""
        x = torch.cat([image, DETAIL_GAIN * (image - base)], dim=1).contiguous(memory_format=torch.channels_last)
        x = F.leaky_relu(self.first(x), SLOPE)
        for layer in self.inner:
            x = F.leaky_relu(layer(x), SLOPE)
        return self.last(x)

    @torch.no_grad()
    def estimate_norms(self) -> None:
        """One power iteration for each spectral norm.

        Called once an update, while `forward` always runs in evaluation mode: otherwise every forward pass would iterate,
        and weights would depend on how often one update looks, that is on accumulation and on the number of processes.
        """
        self.train()
        for layer in self.inner:
            _ = layer.weight
        self.eval()


class AdversarialLoss(nn.Module):
    """A discriminator with both losses: its own, which `forward` returns, and that of the network it judges.

    Args:
        kind: "softplus", "hinge" or "relativistic" (see `TERMS`).
    """

    def __init__(self, discriminator: PatchDiscriminator, kind: str) -> None:
        super().__init__()
        self.discriminator, self.kind = discriminator, kind

    def forward(self, hr: Tensor, estimate: Tensor, base: Tensor) -> Tensor:
        """The discriminator's loss; no gradient reaches `estimate`. All (N, 3, H, W) in [-1, 1]."""
        real, fake = self.discriminator(hr, base).float(), self.discriminator(estimate.detach(), base).float()
        return choose(self.kind, TERMS, "loss.adversarial")[0](real, fake)

    def term(self, hr: Tensor, estimate: Tensor, base: Tensor) -> Tensor:
        """The estimating network's loss; gradients reach `estimate` and not the discriminator."""
        self.discriminator.requires_grad_(False)
        fake = self.discriminator(estimate, base).float()
        real = self.discriminator(hr, base).float() if self.kind == "relativistic" else fake
        self.discriminator.requires_grad_(True)
        return choose(self.kind, TERMS, "loss.adversarial")[1](real, fake)


def new_adversarial_loss(loss: LossConfig, seed: int) -> AdversarialLoss | None:
    """A new discriminator, its weights drawn from `seed`, if the stage has an adversarial term."""
    if not loss.adversarial_weight:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AdversarialLoss(PatchDiscriminator(loss.discriminator_width), loss.adversarial)
