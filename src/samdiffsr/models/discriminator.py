"""The opponent of adversarial training: it tells originals from estimates, patch by patch. Used in training only."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

DETAIL_GAIN = 4.0  # brings image - base to the range of the image itself
SLOPE = 0.2  # of the leaky ReLUs


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
