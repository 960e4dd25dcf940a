"""The discriminator and the adversarial losses: what an original has and an estimate lacks. Used in training only."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from samdiffsr.errors import choose
from samdiffsr.training.config import LossConfig
from samdiffsr.training.features import EfficientNetFeatures

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


class Discriminator(nn.Module):
    """A patch discriminator of the finest detail and, above it, heads on features of a frozen network, if there are some.

    The patches: seven convolutions at full, half and quarter size. They see the image and, amplified, what the image adds to
    its base: the question is not whether a picture is pretty, but whether these details belong to that base.
    The heads (projected GAN, arXiv 2111.01007) judge the image alone, in terms that somebody else's network already has, so
    that they need a fraction of the updates. Inner convolutions are spectrally normalised (arXiv 1802.05957); there is no
    normalisation over the batch, so examples do not see each other.

    Args:
        width: channels at full size; 2 `width` at half size, and at quarter size.
        maps: channels of each map of features.
    """

    HEAD = 64  # channels of a head

    def __init__(self, width: int = 48, maps: Sequence[int] = ()) -> None:
        super().__init__()
        wide = 2 * width
        self.first = nn.Conv2d(6, width, 3, padding=1)
        self.inner = nn.ModuleList(
            spectral_norm(nn.Conv2d(before, wide, kernel, stride, padding=1, bias=False))
            for before, kernel, stride in ((width, 4, 2), (wide, 3, 1), (wide, 4, 2), (wide, 3, 1), (wide, 3, 1))
        )
        self.last = nn.Conv2d(wide, 1, 3, padding=1)
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(channels, self.HEAD, 1)),
                nn.LeakyReLU(SLOPE),
                spectral_norm(nn.Conv2d(self.HEAD, self.HEAD, 3, padding=1)),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(self.HEAD, 1, 1),
            )
            for channels in maps
        )
        self.eval()

    def forward(self, image: Tensor, base: Tensor, maps: Sequence[Tensor] = ()) -> list[Tensor]:
        """image, base (N, 3, H, W) in [-1, 1], H and W multiples of 4, and maps of the image -> logits, high: original.

        Those of the patches are (N, 1, H / 4, W / 4); those of each head are as large as its map.
        """
        x = torch.cat([image, DETAIL_GAIN * (image - base)], dim=1).contiguous(memory_format=torch.channels_last)
        x = F.leaky_relu(self.first(x), SLOPE)
        for layer in self.inner:
            x = F.leaky_relu(layer(x), SLOPE)
        return [self.last(x), *(head(one) for head, one in zip(self.heads, maps, strict=True))]

    @torch.no_grad()
    def estimate_norms(self) -> None:
        """One power iteration for each spectral norm.

        Called once an update, while `forward` always runs in evaluation mode: otherwise every forward pass would iterate,
        and weights would depend on how often one update looks, that is on accumulation and on the number of processes.
        """
        self.train()
        for layer in self.modules():
            if is_parametrized(layer):
                _ = layer.weight
        self.eval()


class AdversarialLoss(nn.Module):
    """A discriminator with both losses: its own, which `forward` returns, and that of the network it judges. Each is the sum
    over what the discriminator returns, of means over pixels and examples.

    Args:
        kind: "softplus", "hinge" or "relativistic" (see `TERMS`).
        features: the frozen network whose maps the discriminator sees, if it has heads for them.
    """

    def __init__(self, discriminator: Discriminator, kind: str, features: EfficientNetFeatures | None = None) -> None:
        super().__init__()
        self.discriminator, self.kind, self.features = discriminator, kind, features

    def forward(self, hr: Tensor, estimate: Tensor, base: Tensor) -> Tensor:
        """The discriminator's loss; no gradient reaches `estimate`. All (N, 3, H, W) in [-1, 1]."""
        return self._sum(0, self._logits(hr, base), self._logits(estimate.detach(), base))

    def term(self, hr: Tensor, estimate: Tensor, base: Tensor) -> Tensor:
        """The estimating network's loss; gradients reach `estimate` and not the discriminator."""
        self.discriminator.requires_grad_(False)
        fake = self._logits(estimate, base)
        real = self._logits(hr, base) if self.kind == "relativistic" else fake
        self.discriminator.requires_grad_(True)
        return self._sum(1, real, fake)

    def _logits(self, image: Tensor, base: Tensor) -> list[Tensor]:
        return self.discriminator(image, base, () if self.features is None else self.features(image))

    def _sum(self, side: int, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        term = choose(self.kind, TERMS, "loss.adversarial")[side]
        return torch.stack([term(one.float(), other.float()) for one, other in zip(real, fake, strict=True)]).sum()


def new_adversarial_loss(loss: LossConfig, seed: int) -> AdversarialLoss | None:
    """A new discriminator, its weights drawn from `seed`, if the stage has an adversarial term."""
    if not loss.adversarial_weight:
        return None
    features = EfficientNetFeatures() if loss.discriminator == "projected" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maps = () if features is None else tuple(features.BLOCKS.values())
        return AdversarialLoss(Discriminator(loss.discriminator_width, maps), loss.adversarial, features)
