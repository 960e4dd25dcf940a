"""Images on their way through the networks, tile by tile, with the result of the whole image at once.

Each network runs on a window: a tile and a halo as wide as the network sees. At a true border the window ends with the image,
so padding is what it would be without tiles. When memory runs out the tile halves, and what was at hand is done again.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samdiffsr.devices import empty_cache, free_memory
from samdiffsr.errors import ImageError
from samdiffsr.models.level import takes_level
from samdiffsr.resize import SCALE, imresize_tensor
from samdiffsr.sampling.pixels import OUTPUTS, crop, encode_pixels
from samdiffsr.sampling.precision import networks_in
from samdiffsr.sampling.tiles import (
    LEAST_TILE_LR,
    STATE_BYTES,
    Canvas,
    Window,
    automatic_tile,
    is_out_of_memory,
    tiles,
)
from samdiffsr.structure import position_window

BICUBIC_HALO_LR = 3
OUTPUT_TILE_LR = 256  # of the last, cheap pass
LEVEL_TILE_LR = 256  # always the same, so that the estimated level does not depend on the tiles of the networks


@dataclass(frozen=True)
class Networks:
    """The networks, their device, and the base of the residual; see `SamDiffSRPipeline`."""

    encoder: Any
    denoiser: Any
    device: torch.device
    base: str
    residual_scale: float
    lr_divisor: int
    encoding: str


class TiledModel:
    """The networks on one image, or on several small ones of one size together.

    Args:
        networks: the model.
        images: (h, w, 3) each, of one size and type, see `samdiffsr.sampling.pixels.as_pixels`.
        tile: side of a tile in LR pixels, 0 for none, None to choose by the free memory.
        clean: the level of degradation that networks with this input are given, None to estimate it from the image.
        kind: the type that the networks' convolutions are computed in, see `autocast_type`; None for that of the weights.
        on_passes: called after each tile with the passes of a network over the image that are done, such as 1.25: the
            encoder's, and a quarter of the denoiser's first. It goes back where memory runs out in a pass.
        on_warning: called with a sentence when memory ran out and the work goes on in smaller tiles.

    Attributes:
        level: (N,), the levels that were given or estimated; None for networks without the input.

    Raises:
        FloatingPointError: in a given `kind`, a network's answer is not finite, or one colour for a picture of several.
    """

    def __init__(
        self,
        networks: Networks,
        images: Sequence[np.ndarray],
        *,
        tile: int | None,
        clean: float | None = None,
        kind: torch.dtype | None = None,
        on_passes: Callable[[float], None] = lambda passes: None,
        on_warning: Callable[[str], None],
    ) -> None:
        self._networks, self._images, self._on_warning = networks, images, on_warning
        self._on_passes, self._passes = on_passes, 0
        self.device, self.dtype = networks.device, networks.denoiser.dtype
        self._kind = kind
        self.count, (self.height, self.width) = len(images), images[0].shape[:2]
        multiple, least = networks.denoiser.hr_multiple, networks.denoiser.hr_minimum
        sides = [-(-max(SCALE * side, least) // multiple) * multiple // SCALE for side in (self.height, self.width)]
        self._multiple = -(-multiple // SCALE)
        self._whole = Window(0, sides[0], 0, sides[1])
        encoder, denoiser = networks.encoder, networks.denoiser
        needs = encoder.floats_per_lr_pixel(with_image=networks.base == "encoder")
        self._tiles = {
            "encoder": self._automatic(encoder.halo_lr, needs) if tile is None else tile,
            "denoiser": self._automatic(denoiser.halo_lr, denoiser.floats_per_lr_pixel()) if tile is None else tile,
        }
        self._in_files = self._needs_files()
        self._condition: tuple[Window, Tensor] | None = None  # that of the last window
        self._known: Canvas | None = None  # the condition or the features
        self._keeps_condition = denoiser.condition_scale == 1  # one of HR size is cheaper to compute again than to keep
        self._estimate = self.canvas() if networks.base == "encoder" else None
        self.level = self._level(clean) if takes_level(encoder) else None

    def canvas(self, dtype: torch.dtype | None = None, channels: int = 3) -> Canvas:
        """An empty canvas of all images in the (padded) HR size; without `dtype` of the networks' own."""
        height, width = self._whole.scaled(SCALE).shape
        return self._canvas(channels, height, width, dtype or self.dtype)

    def _canvas(self, channels: int, height: int, width: int, dtype: torch.dtype) -> Canvas:
        kind = {"dtype": dtype, "device": self.device, "in_file": self._in_files}
        return Canvas(channels, height, width, count=self.count, **kind)

    def encode(self, *, with_structure: bool = False) -> Canvas | None:
        """Run the encoder; keep its estimate, if that is the base, and what the denoiser needs.

        Returns:
            The structure map that the denoiser's head sees, if asked for, else None.
        """
        encoder, denoiser = self._networks.encoder, self._networks.denoiser
        beyond = denoiser.condition_halo_lr
        structure = None
        if with_structure:
            structure, beyond = self.canvas(channels=1), max(beyond, denoiser.structure_head.halo_lr)
        halo = self._aligned(encoder.halo_lr + beyond)

        def work(tile: Window) -> None:
            window, hr = tile.grown(halo, *self._whole.shape), tile.scaled(SCALE)
            lr = crop(self._images, window).to(self.device, self.dtype)
            given = {} if self.level is None else {"level": self.level}
            with self.networks():
                features, estimate = encoder.encode(2 * lr - 1, with_image=self._estimate is not None, **given)
                known = denoiser.condition(features) if self._keeps_condition else features
            self._check_finite(known, estimate)
            if self._estimate is not None and estimate is not None:
                self._estimate.write(hr, hr.cut(estimate, window.scaled(SCALE)))
            if structure is not None:
                with self.networks():
                    found = denoiser.structure(features, self._position(window.scaled(SCALE)))
                structure.write(hr, hr.cut(found, window.scaled(SCALE)))
            if self._known is None:
                self._known = self._canvas(known.shape[1], *self._whole.shape, self.dtype)
            self._known.write(tile, tile.cut(known, window))

        self._each_tile("encoder", work)
        return structure

    def denoise(self, predict: Callable[[Window, Tensor], Tensor]) -> Canvas:
        """The answers of `predict` for the whole image: it is called with windows in HR pixels, and the condition in each."""
        halo = self._aligned(self._networks.denoiser.halo_lr)
        prediction = self.canvas()  # a new one, for multistep schedulers may hold on to the last

        def work(tile: Window) -> None:
            window = tile.grown(halo, *self._whole.shape)
            found = predict(window.scaled(SCALE), self._condition_of(window))
            self._check_finite(found)
            prediction.write(tile.scaled(SCALE), tile.scaled(SCALE).cut(found, window.scaled(SCALE)))

        self._each_tile("denoiser", work)
        return prediction

    def spread(self, structures: Sequence[np.ndarray]) -> Canvas:
        """A structure map (4h, 4w) of each image as a canvas; beyond the image its last row and column repeat."""
        canvas = self.canvas(channels=1)
        for tile in tiles(*self._whole.shape, OUTPUT_TILE_LR):
            top, bottom, left, right = tile.scaled(SCALE)
            rows = np.arange(top, bottom).clip(max=SCALE * self.height - 1)
            columns = np.arange(left, right).clip(max=SCALE * self.width - 1)
            window = np.stack([one[rows[:, None], columns].astype(np.float32) for one in structures])
            canvas.write(tile.scaled(SCALE), torch.from_numpy(window)[:, None].to(self.device, self.dtype))
        return canvas

    def gather(self, structure: Canvas) -> list[np.ndarray]:
        """A canvas of one channel as float32 (4h, 4w) of each image, without what lies beyond it."""
        out = np.empty((self.count, SCALE * self.height, SCALE * self.width), np.float32)
        for tile in tiles(self.height, self.width, OUTPUT_TILE_LR):
            top, bottom, left, right = tile.scaled(SCALE)
            out[:, top:bottom, left:right] = structure.read(tile.scaled(SCALE))[:, 0].float().cpu().numpy()
        return list(out)

    def assemble(self, x_0: Canvas | None, output_type: str, *, detail: float = 1.0) -> list[np.ndarray]:
        """sr = detail x_0 / residual_scale + base as (H, W, 3) of each image, in the numbers of an output type; in a file past
        a limit.

        Without `x_0` it is the base alone.
        """
        dtype, _ = OUTPUTS[output_type]
        shape = (3, SCALE * self.height, SCALE * self.width)
        large = self.count == 1 and int(np.prod(shape)) * dtype.itemsize > STATE_BYTES
        out = Canvas(*shape, count=self.count, dtype=dtype, device=torch.device("cpu"), in_file=large)
        least, most = torch.tensor(torch.inf), torch.tensor(-torch.inf)
        for tile in tiles(self.height, self.width, OUTPUT_TILE_LR):
            hr = tile.scaled(SCALE)
            sr = self._bicubic(tile) if self._estimate is None else self._estimate.read(hr)
            if x_0 is not None:
                sr = x_0.read(hr).clamp(-1, 1) * (detail / self._networks.residual_scale) + sr
            sr = sr.clamp(-1, 1)
            if self._kind is not None:
                low, high = sr.amin((1, 2, 3)).cpu(), sr.amax((1, 2, 3)).cpu()
                least, most = torch.minimum(least, low), torch.maximum(most, high)
            out.write(hr, encode_pixels(sr, output_type))
        of_one_colour = (least == most).expand(self.count)
        if any(one and given.min() != given.max() for one, given in zip(of_one_colour, self._images, strict=True)):
            raise FloatingPointError("the result has one colour")
        return out.arrays()

    def networks(self) -> AbstractContextManager:
        """Around each call of a network: its convolutions are computed in `kind`."""
        return networks_in(self._kind, self.device)

    def _check_finite(self, *found: Tensor | None) -> None:
        if self._kind is not None and not all(one is None or bool(one.isfinite().all()) for one in found):
            raise FloatingPointError("a number is not finite")

    def _level(self, clean: float | None) -> Tensor:
        if clean is not None:
            return torch.full((self.count,), float(clean), device=self.device)
        return torch.cat([self._estimated_level(pixels) for pixels in self._images])

    def _estimated_level(self, pixels: np.ndarray) -> Tensor:
        windows = (crop([pixels], tile) for tile in tiles(self.height, self.width, LEVEL_TILE_LR))
        signed = (2 * window.to(self.device, self.dtype) - 1 for window in windows)
        return self._networks.encoder.estimate_level(signed).float()

    def _position(self, window: Window) -> Tensor:
        """The position map in a window of HR pixels for each image, (N, 1, H, W)."""
        size, encoding = (SCALE * self.height, SCALE * self.width), self._networks.encoding
        found = position_window(encoding, size, slice(window.top, window.bottom), slice(window.left, window.right))
        return torch.from_numpy(found)[None, None].to(self.device, self.dtype).expand(self.count, -1, -1, -1)

    def _bicubic(self, tile: Window) -> Tensor:
        """The MATLAB-bicubic base of a tile."""
        window = tile.grown(BICUBIC_HALO_LR, self.height, self.width)
        lr = crop(self._images, window).to(self.device, self.dtype)
        base = 2 * imresize_tensor(lr * (255 / self._networks.lr_divisor), SCALE) - 1
        return tile.scaled(SCALE).cut(base, window.scaled(SCALE))

    def _condition_of(self, window: Window) -> Tensor:
        """The denoiser's condition in a window; the last one is kept, which for one tile is all of them."""
        if self._condition is not None and self._condition[0] == window:
            return self._condition[1]
        self._condition = None  # before the next is made: two would be held
        assert self._known is not None, "encode() comes first"
        known = self._known.read(window)
        with self.networks():
            condition = known if self._keeps_condition else self._networks.denoiser.condition(known)
        self._condition = (window, condition)
        return condition

    def _aligned(self, halo: int) -> int:
        """Rounded up, so that every window starts where the denoiser's coarsest level has a pixel."""
        return -(-halo // self._multiple) * self._multiple

    def _automatic(self, halo: int, floats: int) -> int:
        """The tile for a network with this halo that holds so many numbers for each LR pixel."""
        return automatic_tile(
            *self._whole.shape,
            halo=self._aligned(halo),
            bytes_per_pixel=self.count * floats * self.dtype.itemsize,
            device=self.device,
            free=free_memory(self.device),
        )

    def _needs_files(self) -> bool:
        """Whether features, estimate, state and prediction are more than memory should hold. Several images are small."""
        if self.count > 1:
            return False
        area = self._whole.shape[0] * self._whole.shape[1]
        size = area * (self._networks.encoder.feature_channels + 3 * 3 * SCALE**2) * self.dtype.itemsize
        free = None if self.device.type == "cpu" else free_memory(self.device)
        return size > (STATE_BYTES if free is None else free // 4)

    def _each_tile(self, network: str, work: Callable[[Window], None]) -> None:
        """Do the work for every tile; out of memory, halve the tile and start again: a tile may be done twice."""
        whole = math.prod(self._whole.shape)
        while True:
            area = 0
            try:
                for tile in tiles(*self._whole.shape, self._tiles[network], self._multiple):
                    work(tile)
                    area += math.prod(tile.shape)
                    self._on_passes(self._passes + area / whole)
                self._passes += 1
                return
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._refuse_least(network, error)
            self._condition = None  # outside of the handler: by now the failed pass has let go of its tensors
            empty_cache(self.device)
            tile = max(LEAST_TILE_LR, self._side(network) // 2)
            self._tiles[network] = tile
            self._on_warning(f"memory ran out in the {network}: going on in tiles of {tile}x{tile} pixels of the input")

    def _side(self, network: str) -> int:
        """Of the present tiles; for none, that of the image."""
        longest = max(self._whole.shape)
        return min(self._tiles[network] or longest, longest)

    def _refuse_least(self, network: str, error: Exception) -> None:
        side, device = self._side(network), self.device
        if side <= LEAST_TILE_LR:
            memory = "memory" if device.type == "cpu" else f"memory of {device}"
            raise ImageError(
                f"Not enough {memory} for this {self.width}x{self.height} image, even in tiles of {side}x{side} pixels; "
                "free some, or use another device."
            ) from error
