"""Training examples cut on the device: all photographs of a pack in its memory, a batch in a few gathers.

`PackedPhotos` draws the examples that `PreparedPhotos` draws from the same photographs, pixel for pixel.
"""

import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from samdiffsr.data.dataset import Batch, CropDraws
from samdiffsr.data.example import training_pixels
from samdiffsr.data.shards import stem_of
from samdiffsr.data.transforms import JointCrop
from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.images import MAX_PIXELS
from samdiffsr.resize import SCALE, imresize_tensor
from samdiffsr.training.config import DataConfig


@dataclass(frozen=True)
class Packed:
    """The photographs of some parts on one device, each as consecutive pixels in reading order.

    Attributes:
        stems, size_lr: name of each, and int64 (N, 2) height and width of its LR image.
        hr, lr: uint8 (pixels, 3) of all of them. structure: float16 (pixels).
        first: for each the number of its first LR pixel; its first HR pixel is 16 times that.
    """

    stems: list[str]
    size_lr: np.ndarray
    hr: Tensor
    lr: Tensor
    structure: Tensor
    first: np.ndarray


class PackedPhotos:
    """Random crops of a pack; `data` says how they are drawn. An example is the same whatever was asked before.

    Raises:
        ConfigError: no photograph is large enough.
    """

    def __init__(self, packed: Packed, data: DataConfig) -> None:
        self.packed, self.crop_lr, self.flips = packed, data.crop_lr, data.flips
        sampling = {key: getattr(data, key) for key in ("crop_lr", "candidates", "crops_per_image")}
        self._draws = CropDraws(packed.size_lr, "the pack", **sampling)

    def stem(self, seed: int, index: int) -> str:
        """The name of the photograph that example `index` comes from."""
        return self.packed.stems[self._draws.images(seed, index, 1)[0]]

    def batch(self, seed: int, first: int, size: int) -> Batch:
        """Examples first .. first + size - 1, on the pack's device; nothing waits for it."""
        packed = self.packed
        places = self._places(seed, first, size)
        if places.shape[1] > 1:
            places = places[torch.arange(size, device=places.device), self._busiest(places)]
        place = places.reshape(size, -1)
        small, large = (self._pixels(place, scale) for scale in (1, SCALE))
        hr, lr = (_signed(source[index]) for source, index in ((packed.hr, large), (packed.lr, small)))
        return Batch(hr, lr, packed.structure[large].float()[:, None])

    def _places(self, seed: int, first: int, size: int) -> Tensor:
        """int64 (size, candidates, 5) of the crops drawn: first LR pixel of the image, its width, top, left, orientation."""
        rows = []
        numbers, words = self._draws.images(seed, first, size), self._draws.words(seed, first, size)
        for number, draws in zip(numbers, words, strict=True):
            height, width = self.packed.size_lr[number].tolist()
            drawn = [JointCrop.draw(one, height, width, self.crop_lr, flips=self.flips) for one in draws]
            begin = int(self.packed.first[number])
            rows.append([(begin, width, crop.top_lr, crop.left_lr, crop.orientation) for crop in drawn])
        return torch.tensor(rows).to(self.packed.hr.device, non_blocking=True)

    def _busiest(self, places: Tensor) -> Tensor:
        """(N,): the candidate with the most texture, the first of equals, as `data.dataset.choose_crop` has it."""
        count = places.shape[1]
        upright = places.flatten(0, 1) * torch.tensor([1, 1, 1, 1, 0], device=places.device)
        green = self.packed.lr[:, 1][self._pixels(upright, 1)].short()
        down, across = green.diff(dim=1).abs(), green.diff(dim=2).abs()
        texture = (down.sum((1, 2)) + across.sum((1, 2))).reshape(-1, count)
        return (texture * count - torch.arange(count, device=places.device)).argmax(1)

    def _pixels(self, place: Tensor, scale: int) -> Tensor:
        """int64 (N, S, S): which pixel stands where in the crops (N, 5), flipped and turned as `JointCrop.apply` does it."""
        begin, width, top, left, orientation = (place[:, column, None] for column in range(5))
        side = self.crop_lr * scale
        along = torch.arange(side, device=place.device)
        row = scale * top + torch.where((orientation & 2) > 0, side - 1 - along, along)
        column = scale * left + torch.where((orientation & 1) > 0, side - 1 - along, along)
        row, swapped = row * (scale * width), (orientation & 4) > 0
        down, across = torch.where(swapped, column, row), torch.where(swapped, row, column)
        return (scale * scale * begin)[:, :, None] + down[:, :, None] + across[:, None, :]


def load_pack(parts: Sequence[Path], device: torch.device, *, threads: int = 1) -> Packed:
    """Decode the photographs of all parts; their LR images are made on the device, bit-equal to MATLAB's bicubic x1/4.

    Raises:
        ConfigError: a part is missing or damaged. ImageError: one of its photographs is.
    """
    stems, sizes, flat = [], [], ([], [], [])
    with ThreadPoolExecutor(threads) as pool:
        for part in parts:
            for stem, pixels, structure in _decoded(part, pool):
                hr = torch.from_numpy(pixels).to(device)
                lr = reduced(hr)
                stems.append(stem)
                sizes.append(lr.shape[:2])
                for found, one in zip(flat, (hr, lr, torch.from_numpy(structure).to(device)), strict=True):
                    found.append(one.flatten(0, 1))
    size_lr = np.array(sizes)
    first = np.concatenate([[0], size_lr.prod(1).cumsum()[:-1]])
    return Packed(stems, size_lr, torch.cat(flat[0]), torch.cat(flat[1]), torch.cat(flat[2]), first)


def reduced(hr: Tensor) -> Tensor:
    """uint8 (H, W, 3) -> (H / 4, W / 4, 3): `imresize` on a device. Rows first, then columns, whole numbers after each."""
    height, width = hr.shape[:2]
    image = hr.permute(2, 0, 1)[None].double()
    for size in ((height // SCALE, width), (height // SCALE, width // SCALE)):
        image = (imresize_tensor(image, size=size).clamp(0, 255) + 0.5).floor()
    return image[0].permute(1, 2, 0).byte()


def _decoded(part: Path, pool: ThreadPoolExecutor) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Stem, hr uint8 (H, W, 3) and structure float16 (H, W) of each photograph of a part."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(part) as tar:
                tar.extractall(folder, filter="data")
                names = dict.fromkeys(Path(member.name).parent.name for member in tar)  # in the order of the part
        except (OSError, tarfile.TarError) as error:
            raise ConfigError(f"part {part} cannot be read ({error}): bring it again.") from None
        yield from pool.map(_decode, [Path(folder) / name for name in names])


def _decode(folder: Path) -> tuple[str, np.ndarray, np.ndarray]:
    try:
        (photo,) = folder.glob("photo.*")
        index, values = np.asarray(Image.open(folder / "index.png")), np.load(folder / "values.npy")
        structure = values[index]
    except (OSError, ValueError, IndexError) as error:
        raise ImageError(f"photograph {folder.name} of the pack is damaged ({error}): pack it again.") from None
    height, width = structure.shape
    return stem_of(folder.name), np.ascontiguousarray(training_pixels(photo, MAX_PIXELS)[:height, :width]), structure


def _signed(pixels: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1], rounded as `data.dataset.collate` does it."""
    return pixels.permute(0, 3, 1, 2).float().sub_(127.5).mul_(1 / 127.5)
