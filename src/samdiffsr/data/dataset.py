"""Random aligned crops of a prepared folder, repeatable from (seed, index)."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samdiffsr.data import SCHEMA
from samdiffsr.data.transforms import JointCrop
from samdiffsr.errors import ConfigError
from samdiffsr.resize import SCALE

SHARED = 2  # keeps the draw of an image for several crops apart from other streams of [seed, number]


@dataclass(frozen=True)
class Batch:
    """hr (N, 3, H, W) and lr (N, 3, H / 4, W / 4) float32 in [-1, 1], structure (N, 1, H, W) float32."""

    hr: Tensor
    lr: Tensor
    structure: Tensor


def to_signed(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) -> float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 127.5 - 1


class PreparedPhotos:
    """The memory-mapped images of a folder made by `prepare_folder`.

    Args:
        folder: the prepared folder.
        crop_lr: side of a crop in LR pixels; images smaller than it are left out (counted in `left_out`).
        candidates: crops drawn for each example, of which the one with the most texture is kept; 1 is plain sampling.
        flips: use the 8 flips and rotations.
        crops_per_image: so many examples in a row come from one image.

    Raises:
        ConfigError: the folder is not a finished prepared folder, or no image is large enough.
    """

    def __init__(self, folder: Path, *, crop_lr: int, candidates: int, flips: bool, crops_per_image: int = 1) -> None:
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"folder {folder} is not a prepared data set ({error}); prepare it first.") from None
        if manifest.get("schema") != SCHEMA or "images" not in manifest:
            raise ConfigError(f"folder {folder} is of another version or unfinished; prepare it again.")
        self.crop_lr, self.candidates, self.flips = crop_lr, candidates, flips
        self.crops_per_image = crops_per_image
        parts = ("hr", "lr", "structure")
        every = [
            [np.load(folder / f"{stem}.{part}.npy", mmap_mode="r") for part in parts] for stem in manifest["images"]
        ]
        large = [min(image[1].shape[:2]) >= crop_lr for image in every]
        self.images = [image for image, fits in zip(every, large, strict=True) if fits]
        self.stems = [stem for stem, fits in zip(manifest["images"], large, strict=True) if fits]
        self.left_out = len(every) - len(self.images)
        if not self.images:
            raise ConfigError(f"folder {folder} has no image of at least {SCALE * crop_lr}x{SCALE * crop_lr} pixels.")
        # Square root of the area: between "each image alike" and "each pixel alike", for large photographs are softer.
        weight = np.sqrt([image[1].shape[0] * image[1].shape[1] for image in self.images])
        self.probability = weight / weight.sum()

    def _draw(self, seed: int, index: int) -> tuple[np.random.Generator, int]:
        """The generator of example `index`, and the number of its image."""
        rng = np.random.default_rng([seed, index])
        shared = np.random.default_rng([seed, index // self.crops_per_image, SHARED])
        chooser = rng if self.crops_per_image == 1 else shared
        return rng, int(chooser.choice(len(self.images), p=self.probability))

    def stem(self, seed: int, index: int) -> str:
        """The name of the image that example `index` comes from."""
        return self.stems[self._draw(seed, index)[1]]

    def crop(self, seed: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Example number `index`: hr (H, W, 3) uint8, lr (H / 4, W / 4, 3) uint8, structure (H, W) float16."""
        rng, number = self._draw(seed, index)
        hr, lr, structure = self.images[number]
        drawn = [
            JointCrop.draw(rng, lr.shape[0], lr.shape[1], self.crop_lr, flips=self.flips)
            for _ in range(self.candidates)
        ]
        best = max(drawn, key=lambda crop: _texture(crop.apply(lr, 1))) if len(drawn) > 1 else drawn[0]
        return best.apply(hr, SCALE), best.apply(lr, 1), best.apply(structure, SCALE)

    def batch(self, seed: int, first: int, size: int) -> Batch:
        """Examples first .. first + size - 1."""
        crops = [self.crop(seed, index) for index in range(first, first + size)]
        return Batch(
            hr=torch.stack([to_signed(hr) for hr, _, _ in crops]),
            lr=torch.stack([to_signed(lr) for _, lr, _ in crops]),
            structure=torch.stack([torch.from_numpy(e[None].astype(np.float32)) for _, _, e in crops]),
        )


def _texture(lr: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels, in grey levels."""
    grey = lr.mean(axis=2)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())
