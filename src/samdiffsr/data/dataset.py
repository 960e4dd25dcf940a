"""Random aligned crops of a prepared folder, repeatable from (seed, index)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from samdiffsr.data.degrade import CLEAN_SHARE, MARGIN_LR, draw, random_of
from samdiffsr.data.degrade import degrade as degrade_crop
from samdiffsr.data.shards import MEMBERS, Example, Shard, read_index, read_manifest, stem_of
from samdiffsr.errors import ConfigError, choose
from samdiffsr.resize import SCALE, imresize
from samdiffsr.structure import position_window

Degrade = Literal["none", "real"]
MADE = (
    4  # the random stream that says which LR crops are made; 0 and 1 draw crops and images, 2 the noise, 3 degradations
)
OPEN_SHARDS = 256  # mapped at once; each holds a file descriptor, of which a process commonly has 1024


@dataclass(frozen=True)
class JointCrop:
    """A square of `crop_lr` LR pixels with its corner at (top_lr, left_lr), then one of the 8 flips and rotations.

    `orientation` 0..7: bit 0 flips left-right, bit 1 flips up-down, bit 2 swaps rows and columns.
    """

    top_lr: int
    left_lr: int
    crop_lr: int
    orientation: int = 0

    @classmethod
    def draw(cls, words: Sequence[int], height_lr: int, width_lr: int, crop_lr: int, *, flips: bool) -> "JointCrop":
        """A place and, if `flips`, an orientation, from three random integers of 32 bits."""
        if crop_lr > min(height_lr, width_lr):
            raise ConfigError(f"crop_lr is {crop_lr}, but an image has only {width_lr}x{height_lr} LR pixels.")
        top, left = words[0] * (height_lr - crop_lr + 1) >> 32, words[1] * (width_lr - crop_lr + 1) >> 32
        return cls(top, left, crop_lr, words[2] >> 29 if flips else 0)

    def window(self, image: np.ndarray, scale: int) -> np.ndarray:
        """Crop an array whose first axes are rows and columns; `scale` is 1 for LR, 4 for HR and structure."""
        top, left, size = self.top_lr * scale, self.left_lr * scale, self.crop_lr * scale
        return image[top : top + size, left : left + size]

    def apply(self, image: np.ndarray, scale: int) -> np.ndarray:
        """`window`, then the orientation; the pixels are a copy.

        Rows are flipped while they are copied, whole rows at once; the rest is a view of the copy. Copying mirrored pixels
        straight out of a large image takes five times as long.
        """
        return self.turn(self.window(image, scale))

    def turn(self, window: np.ndarray) -> np.ndarray:
        """A copy of `window` in the crop's orientation."""
        out = np.array(window[::-1] if self.orientation & 2 else window, order="C")
        if self.orientation & 1:
            out = out[:, ::-1]
        return out.swapaxes(0, 1) if self.orientation & 4 else out

    def with_margin(self, hr: np.ndarray, margin_lr: int) -> np.ndarray:
        """`window` of an HR image and `margin_lr` LR pixels around it; beyond the image's border it is mirrored."""
        corner = np.array([self.top_lr, self.left_lr])
        wanted = SCALE * np.array([corner - margin_lr, corner + self.crop_lr + margin_lr])
        (top, left), (bottom, right) = there = wanted.clip(0, hr.shape[:2])
        before, after = np.abs(there - wanted).tolist()
        return np.pad(hr[top:bottom, left:right], [*zip(before, after, strict=True), (0, 0)], "symmetric")


Crop = tuple[JointCrop, Example]
"""A crop, and the whole image it is to be cut from."""


@dataclass(frozen=True)
class Batch:
    """hr (N, 3, H, W) and lr (N, 3, H / 4, W / 4) float32 in [-1, 1], structure (N, 1, H, W) float32, and level (N,) float32:
    how degraded lr is, from 0 (the exact bicubic reduction of hr) to 1; NaN where nobody knows, for the user's own LR images.
    `targets` has further targets of the encoder, as hr, by name. `position` (N, 1, H, W) is the position map from which
    structure is averaged, if somebody asked for it. `synthetic` (N,) bool: of a folder with the user's own LR images, which
    LR crops are made from hr all the same; None for other folders."""

    hr: Tensor
    lr: Tensor
    structure: Tensor
    level: Tensor
    targets: dict[str, Tensor] = field(default_factory=dict)
    position: Tensor | None = None
    synthetic: Tensor | None = None


class PreparedImages(Sequence[Example]):
    """The images of a prepared folder by number, memory-mapped when asked for; may be used from several threads.

    Args:
        targets: names of further targets of the encoder to read too.

    Attributes:
        size_lr: int64 (N, 2), height and width of each LR image.
        stems: name of each image.
        structure: the arguments of `structure_map` that made the structure maps; None for ready maps, or if there are none.
        own_lr: whether the LR images are the user's own.
        regions: whether there are any.

    Raises:
        ConfigError: the folder is not a finished prepared folder, is not the one its manifest describes, or lacks targets.
    """

    def __init__(self, folder: Path, targets: Sequence[str] = ()) -> None:
        self.folder, self.targets = Path(folder), tuple(targets)
        manifest = read_manifest(self.folder)
        entries, self.structure = manifest["shards"], manifest["structure"]
        self.own_lr, self.regions = manifest.get("lr") == "own", manifest["regions"] != "none"
        for name in targets:
            if name not in (there := manifest.get("targets", [])):
                raise ConfigError(
                    f"folder {folder} has no targets {name!r} (it has {', '.join(map(repr, there)) or 'none'}): "
                    f"prepare the photographs with --targets {name}=DIR in a new folder."
                )
        self.stems: list[str] = []
        sizes, places = [], []
        for number, entry in enumerate(entries):
            rows = read_index(self.folder, entry)
            self.stems += [stem_of(row["key"]) for row in rows]
            sizes.append(np.array([[row["height_lr"], row["width_lr"]] for row in rows]))
            places.append(np.array([[number, *(row[part] for part in (*MEMBERS, *self.targets))] for row in rows]))
        self.size_lr, self._place = np.concatenate(sizes), np.concatenate(places)
        self._names = [f"{entry['name']}.tar" for entry in entries]
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(Shard)

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, number: int) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        (height, width), (shard, *offsets) = self.size_lr[number].tolist(), self._place[number].tolist()
        return self._shard(self.folder / self._names[shard]).example(height, width, offsets)

    def __reduce__(self) -> tuple:
        return PreparedImages, (self.folder, self.targets)  # to another process goes the folder, not what is mapped


class CropDraws:
    """Which image and which place in it each example is drawn from: a function of (seed, index) and of the images' sizes.

    Args:
        size_lr: (N, 2), height and width of each LR image.
        source: what the images are, for an error.
        crop_lr, candidates, crops_per_image: as `PreparedPhotos` has them.

    Raises:
        ConfigError: no image is large enough.
    """

    def __init__(
        self, size_lr: np.ndarray, source: str, *, crop_lr: int, candidates: int, crops_per_image: int
    ) -> None:
        self.candidates, self.crops_per_image = candidates, crops_per_image
        self._large = np.flatnonzero(size_lr.min(axis=1) >= crop_lr)
        self.left_out = len(size_lr) - len(self._large)
        if not self._large.size:
            raise ConfigError(f"{source} has no image of at least {SCALE * crop_lr}x{SCALE * crop_lr} pixels.")
        # Square root of the area: between "each image alike" and "each pixel alike", for large photographs are softer.
        weight = np.sqrt(size_lr[self._large].prod(axis=1))
        self._below = np.cumsum(weight) / weight.sum()

    def images(self, seed: int, first: int, size: int) -> list[int]:
        """The image of each example: a number of the random stream (seed, 1) for each `crops_per_image` examples."""
        group = np.arange(first, first + size) // self.crops_per_image
        words = _blocks(seed, 1, int(group[0]), int(group[-1] - group[0]) + 1)[:, 0]
        chosen = np.searchsorted(self._below, (words >> 11) * 2.0**-53, side="right").clip(max=len(self._large) - 1)
        return self._large[chosen[group - group[0]]].tolist()

    def words(self, seed: int, first: int, size: int) -> list[list[list[int]]]:
        """For each example and candidate what `JointCrop.draw` takes: a block of the random stream (seed, 0)."""
        blocks = _blocks(seed, 0, first * self.candidates, size * self.candidates)
        return blocks.view(np.uint32).reshape(size, self.candidates, 8).tolist()


class PreparedPhotos:
    """Random crops of a folder made by `prepare_folder`. Example `index` of `seed` is the same whatever was asked before.

    Args:
        folder: the prepared folder.
        crop_lr: side of a crop in LR pixels; images smaller than it are left out (counted in `left_out`).
        candidates: crops drawn for each example, of which the one with the most texture is kept; 1 is plain sampling.
        flips: use the 8 flips and rotations.
        crops_per_image: so many examples in a row come from one image.
        position: the encoding of the position maps that batches hold; None: they hold none.
        degrade: "real" makes the LR crops anew, as `samdiffsr.data.degrade` says; HR and structure stay what they are.
        clean_share: the share of examples that "real" leaves exact.
        synthetic: of a folder with the user's own LR images, the share of examples whose LR crop is made from HR all the same.
        targets: names of further targets of the encoder, cut and turned as HR is.

    Raises:
        ConfigError: the folder is not a finished prepared folder, lacks targets, or no image is large enough.
    """

    def __init__(
        self,
        folder: Path,
        *,
        crop_lr: int,
        candidates: int,
        flips: bool,
        crops_per_image: int = 1,
        degrade: Degrade = "none",
        clean_share: float = CLEAN_SHARE,
        synthetic: float = 0.0,
        targets: Sequence[str] = (),
        position: str | None = None,
    ) -> None:
        self._position = position
        self._degrades = choose(degrade, {"none": False, "real": True}, "degrade")
        self.images, self._synthetic = PreparedImages(folder, targets), synthetic
        self._clean_share = clean_share
        self.crop_lr, self.flips = crop_lr, flips
        sampling = {"crop_lr": crop_lr, "candidates": candidates, "crops_per_image": crops_per_image}
        self._draws = CropDraws(self.images.size_lr, f"folder {folder}", **sampling)
        self.left_out = self._draws.left_out

    def stem(self, seed: int, index: int) -> str:
        """The name of the image that example `index` comes from."""
        return self.images.stems[self._draws.images(seed, index, 1)[0]]

    def crop(self, seed: int, index: int) -> Example:
        """Example number `index`: hr (H, W, 3) uint8, lr (H / 4, W / 4, 3) uint8, structure (H, W) float16; targets as hr."""
        ((crop, (hr, lr, structure, *targets)),) = self._drawn(seed, index, 1)
        made, _ = self._lr(crop, hr, seed, index)
        lr = crop.apply(lr, 1) if made is None else made
        return crop.apply(hr, SCALE), lr, *(crop.apply(array, SCALE) for array in (structure, *targets))

    def batch(self, seed: int, first: int, size: int) -> Batch:
        """Examples first .. first + size - 1."""
        crops = self._drawn(seed, first, size)
        batch = collate(crops, self.images.targets, position=self._position)
        for number, (crop, images) in enumerate(crops):
            lr, batch.level[number] = self._lr(crop, images[0], seed, first + number)
            if lr is not None:
                place = batch.lr[number]
                np.copyto(place.numpy(), lr.transpose(2, 0, 1))
                place.sub_(127.5).mul_(1 / 127.5)
        return replace(batch, synthetic=~batch.level.isnan()) if self.images.own_lr else batch

    def _lr(self, crop: JointCrop, hr: np.ndarray, seed: int, index: int) -> tuple[np.ndarray | None, float]:
        """The LR crop (uint8) and its level. The crop is None if it is the one in the folder; the level is NaN if that is the
        user's own."""
        own = self.images.own_lr
        if own and (_blocks(seed, MADE, index, 1)[0, 0] >> 11) * 2.0**-53 >= self._synthetic:
            return None, math.nan
        if self._degrades and draw(random_of(seed, index), self._clean_share).steps:
            lr, level = degrade_crop(crop.with_margin(hr, MARGIN_LR), seed, index, self._clean_share)
        elif own:
            inside = slice(MARGIN_LR, -MARGIN_LR)
            lr, level = imresize(crop.with_margin(hr, MARGIN_LR), 1 / SCALE)[inside, inside], 0.0
        else:  # the exact bicubic reduction, which the folder holds
            return None, 0.0
        return crop.turn(lr), level

    def _drawn(self, seed: int, first: int, size: int) -> list[Crop]:
        """The crop and the image of each example."""
        numbers, words = self._draws.images(seed, first, size), self._draws.words(seed, first, size)
        return [
            choose_crop(self.images[number], draws, crop_lr=self.crop_lr, flips=self.flips)
            for number, draws in zip(numbers, words, strict=True)
        ]


def _blocks(seed: int, stream: int, first: int, count: int) -> np.ndarray:
    """Blocks first .. first + count - 1 of a counter-based random stream, uint64 (count, 4) (Philox, Salmon et al. 2011).

    Any block costs the same, and seeking nothing, unlike seeding one generator an example (7 us each).
    """
    return np.random.Philox(key=seed + (stream << 64), counter=first).random_raw(4 * count).reshape(count, 4)


def choose_crop(example: Example, draws: Sequence[Sequence[int]], *, crop_lr: int, flips: bool) -> Crop:
    """Of the crops drawn from each entry of `draws` the one with the most texture, and the image."""
    lr = example[1]
    drawn = [JointCrop.draw(words, lr.shape[0], lr.shape[1], crop_lr, flips=flips) for words in draws]
    best = max(drawn, key=lambda crop: texture(crop.window(lr, 1))) if len(drawn) > 1 else drawn[0]
    return best, example


def texture(lr: np.ndarray) -> int:
    """Sum of absolute differences of neighbouring pixels of uint8 (H, W, 3), in grey levels of the green channel."""
    green = lr[..., 1].astype(np.int16)
    return int(np.abs(green[1:] - green[:-1]).sum() + np.abs(green[:, 1:] - green[:, :-1]).sum())


def collate(crops: Sequence[Crop], targets: Sequence[str] = (), *, position: str | None = None) -> Batch:
    """Cut the crops out of their images, which hold further `targets` of these names, and out of the position map of an
    encoding, if given; the level is 0."""
    lr = torch.empty(len(crops), 3, crops[0][0].crop_lr, crops[0][0].crop_lr)
    hr = torch.empty(len(crops), 3, SCALE * lr.shape[2], SCALE * lr.shape[3])
    structure = torch.empty(len(crops), 1, *hr.shape[2:])
    further = [torch.empty_like(hr) for _ in targets]
    for number, (crop, images) in enumerate(crops):
        small, encoded = lr[number].numpy(), structure[number]
        for place, image in zip(
            (hr[number], *(target[number] for target in further)), images[:1] + images[3:], strict=True
        ):
            np.copyto(place.numpy(), crop.apply(image, SCALE).transpose(2, 0, 1))
            place.sub_(127.5).mul_(1 / 127.5)  # to [-1, 1], both ends exact; now, while it is in the cache
        np.copyto(small, crop.apply(images[1], 1).transpose(2, 0, 1))
        # torch turns float16 to float32 forty times faster than numpy does
        encoded.copy_(torch.from_numpy(np.ascontiguousarray(crop.apply(images[2], SCALE))))
    lr.sub_(127.5).mul_(1 / 127.5)
    named = dict(zip(targets, further, strict=True))
    return Batch(
        hr, lr, structure, torch.zeros(len(crops)), named, None if position is None else _positions(crops, position)
    )


def _positions(crops: Sequence[Crop], encoding: str) -> Tensor:
    """The position maps of the crops (N, 1, H, W), turned as the crops are."""
    found = []
    for crop, images in crops:
        top, left, side = SCALE * crop.top_lr, SCALE * crop.left_lr, SCALE * crop.crop_lr
        size = (images[0].shape[0], images[0].shape[1])
        window = position_window(encoding, size, slice(top, top + side), slice(left, left + side))
        found.append(torch.from_numpy(np.ascontiguousarray(crop.turn(window))))
    return torch.stack(found)[:, None]
