"""One image on its way through the networks, tile by tile, with the result of the whole image at once.

Each network runs on a window: a tile and a halo as wide as the network sees. At a true border the window ends with the image,
so padding is what it would be without tiles. When memory runs out the tile halves, and what was at hand is done again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samdiffsr.errors import ImageError
from samdiffsr.resize import SCALE, imresize_tensor
from samdiffsr.sampling.pixels import OUTPUTS, crop, encode_pixels
from samdiffsr.sampling.tiles import (
    LEAST_TILE_LR,
    STATE_BYTES,
    Canvas,
    Window,
    automatic_tile,
    free_memory,
    is_out_of_memory,
    tiles,
)

BICUBIC_HALO_LR = 3
OUTPUT_TILE_LR = 256  # of the last, cheap pass


@dataclass(frozen=True)
class Recipe:
    """What to run, and how its parts make a picture; see `SamDiffSRPipeline`."""

    encoder: Any
    denoiser: Any
    device: torch.device
    base: str
    residual_scale: float
    lr_divisor: int
    detail: float


class Execution:
    """An image between its pixels and its upscaled pixels.

    Args:
        recipe: the model.
        pixels: (h, w, 3), see `samdiffsr.sampling.pixels.as_pixels`.
        tile: side of a tile in LR pixels, 0 for none, None to choose by the free memory.
        note: told in a sentence when memory ran out and the work goes on in smaller tiles.
    """

    def __init__(self, recipe: Recipe, pixels: np.ndarray, *, tile: int | None, note: Callable[[str], None]) -> None:
        self._recipe, self._pixels, self._note = recipe, pixels, note
        self._dtype = recipe.denoiser.dtype
        self.height, self.width = pixels.shape[:2]
        multiple, least = recipe.denoiser.hr_multiple, recipe.denoiser.hr_minimum
        sides = [-(-max(SCALE * side, least) // multiple) * multiple // SCALE for side in (self.height, self.width)]
        self._multiple = -(-multiple // SCALE)
        self._whole = Window(0, sides[0], 0, sides[1])
        encoder, denoiser = recipe.encoder, recipe.denoiser
        needs = encoder.floats_per_lr_pixel(with_image=recipe.base == "encoder")
        self._tiles = {
            "encoder": self._automatic(encoder.halo_lr, needs) if tile is None else tile,
            "denoiser": self._automatic(denoiser.halo_lr, denoiser.floats_per_lr_pixel()) if tile is None else tile,
        }
        self._in_files = self._needs_files()
        self._condition: tuple[Window, Tensor] | None = None  # that of the last window
        self._known: Canvas | None = None  # the condition or the features
        self._keeps_condition = denoiser.condition_scale == 1  # one of HR size is cheaper to compute again than to keep
        self._estimate = self.canvas(self._dtype) if recipe.base == "encoder" else None
        self.state, self.prediction = self.canvas(self._dtype), self.canvas(self._dtype)

    def canvas(self, dtype: torch.dtype) -> Canvas:
        """An empty canvas of the (padded) HR size with three channels."""
        height, width = self._whole.scaled(SCALE).shape
        return Canvas(3, height, width, dtype=dtype, device=self._recipe.device, in_file=self._in_files)

    def encode(self) -> None:
        """Run the encoder; keep its estimate, if that is the base, and what the denoiser needs."""
        encoder, denoiser = self._recipe.encoder, self._recipe.denoiser
        halo = self._aligned(encoder.halo_lr + denoiser.condition_halo_lr)

        def work(tile: Window) -> None:
            window = tile.grown(halo, *self._whole.shape)
            lr = crop(self._pixels, window).to(self._recipe.device, self._dtype)
            features, estimate = encoder.encode(2 * lr - 1, with_image=self._estimate is not None)
            if self._estimate is not None and estimate is not None:
                self._estimate.write(tile.scaled(SCALE), tile.scaled(SCALE).cut(estimate, window.scaled(SCALE)))
            known = denoiser.condition(features) if self._keeps_condition else features
            if self._known is None:
                kind = {"dtype": self._dtype, "device": self._recipe.device, "in_file": self._in_files}
                self._known = Canvas(known.shape[1], *self._whole.shape, **kind)
            self._known.write(tile, tile.cut(known, window))

        self._each_tile("encoder", work)

    def predict(self, timestep: Tensor, scale_input: Callable[[Tensor], Tensor]) -> None:
        """Run the denoiser on the state; `scale_input` is the scheduler's wish."""
        denoiser = self._recipe.denoiser
        halo = self._aligned(denoiser.halo_lr)
        t = torch.full((1,), int(timestep), device=self._recipe.device)
        self.prediction = self.canvas(self._dtype)  # a new one, for multistep schedulers may hold on to the last

        def work(tile: Window) -> None:
            window = tile.grown(halo, *self._whole.shape)
            x_t = scale_input(self.state.read(window.scaled(SCALE)))
            x_t = x_t.contiguous(memory_format=torch.channels_last)
            prediction = denoiser(x_t, t, None, self._condition_of(window))
            self.prediction.write(tile.scaled(SCALE), tile.scaled(SCALE).cut(prediction, window.scaled(SCALE)))

        self._each_tile("denoiser", work)

    def assemble(self, output_type: str) -> np.ndarray:
        """sr = detail x_0 / residual_scale + base as (H, W, 3) in the numbers of an output type; in a file past a limit."""
        dtype, _ = OUTPUTS[output_type]
        shape = (3, SCALE * self.height, SCALE * self.width)
        large = int(np.prod(shape)) * dtype.itemsize > STATE_BYTES
        out = Canvas(*shape, dtype=dtype, device=torch.device("cpu"), in_file=large)
        for tile in tiles(self.height, self.width, OUTPUT_TILE_LR):
            hr = tile.scaled(SCALE)
            base = self._bicubic(tile) if self._estimate is None else self._estimate.read(hr)
            x_0 = self.state.read(hr).clamp(-1, 1)
            sr = (x_0 * (self._recipe.detail / self._recipe.residual_scale) + base).clamp(-1, 1)
            out.write(hr, encode_pixels(sr, output_type))
        return out.array()

    def _bicubic(self, tile: Window) -> Tensor:
        """The MATLAB-bicubic base of a tile."""
        window = tile.grown(BICUBIC_HALO_LR, self.height, self.width)
        lr = crop(self._pixels, window).to(self._recipe.device, self._dtype)
        base = 2 * imresize_tensor(lr * (255 / self._recipe.lr_divisor), SCALE) - 1
        return tile.scaled(SCALE).cut(base, window.scaled(SCALE))

    def _condition_of(self, window: Window) -> Tensor:
        """The denoiser's condition in a window; the last one is kept, which for one tile is all of them."""
        if self._condition is not None and self._condition[0] == window:
            return self._condition[1]
        self._condition = None  # before the next is made: two would be held
        assert self._known is not None, "encode() comes first"
        known = self._known.read(window)
        condition = known if self._keeps_condition else self._recipe.denoiser.condition(known)
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
            bytes_per_pixel=floats * self._dtype.itemsize,
            device=self._recipe.device,
            free=free_memory(self._recipe.device),
        )

    def _needs_files(self) -> bool:
        """Whether features, estimate, state and prediction are more than memory shall hold."""
        area = self._whole.shape[0] * self._whole.shape[1]
        size = area * (self._recipe.encoder.feature_channels + 3 * 3 * SCALE**2) * self._dtype.itemsize
        free = None if self._recipe.device.type == "cpu" else free_memory(self._recipe.device)
        return size > (STATE_BYTES if free is None else free // 4)

    def _each_tile(self, network: str, work: Callable[[Window], None]) -> None:
        """Do the work for every tile; out of memory, halve the tile and begin again, for doing a tile twice harms nothing."""
        while True:
            try:
                for tile in tiles(*self._whole.shape, self._tiles[network], self._multiple):
                    work(tile)
                return
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._refuse_least(network, error)
            self._condition = None  # outside of the handler: by now the failed pass has let go of its tensors
            if self._recipe.device.type == "cuda":
                torch.cuda.empty_cache()
            tile = max(LEAST_TILE_LR, self._side(network) // 2)
            self._tiles[network] = tile
            self._note(f"memory ran out in the {network}: going on in tiles of {tile}x{tile} pixels of the input")

    def _side(self, network: str) -> int:
        """Of the present tiles; for none, that of the image."""
        longest = max(self._whole.shape)
        return min(self._tiles[network] or longest, longest)

    def _refuse_least(self, network: str, error: Exception) -> None:
        side, device = self._side(network), self._recipe.device
        if side <= LEAST_TILE_LR:
            memory = "memory" if device.type == "cpu" else f"memory of {device}"
            raise ImageError(
                f"Not enough {memory} for this {self.width}x{self.height} image, even in tiles of {side}x{side} pixels; "
                "free some, or use another device."
            ) from error
