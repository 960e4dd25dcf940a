"""Windows of an image, tensors larger than memory, and tiles that fit it: exact tiled execution is made of them.

docs/tiling.md says why the result does not depend on the tile.
"""

import contextlib
import errno
import math
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from samdiffsr.errors import ImageError

LEAST_TILE_LR = 16  # below, a window is nearly all halo and hardly takes less memory
TILE_BYTES = 640 * 2**20  # what a tile may take on CPU, where larger ones gain nothing
STATE_BYTES = 256 * 2**20  # what state and output of an image may take in memory before they go to files


class Window(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of an image."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def grown(self, halo: int, height: int, width: int) -> "Window":
        """`halo` more on each side, as far as an image of that size reaches."""
        top, left = max(0, self.top - halo), max(0, self.left - halo)
        return Window(top, min(height, self.bottom + halo), left, min(width, self.right + halo))

    def scaled(self, factor: int) -> "Window":
        """The same window of the image at `factor` times the size."""
        return Window(*(factor * side for side in self))

    def cut(self, batch: Tensor, outer: "Window") -> Tensor:
        """This window out of `batch` (N, C, h, w), which shows `outer`."""
        rows = slice(self.top - outer.top, self.bottom - outer.top)
        return batch[:, :, rows, self.left - outer.left : self.right - outer.left]


def tiles(height: int, width: int, side: int, multiple: int = 1) -> Iterator[Window]:
    """Windows that cover an image once, of about equal size, at most `side` rounded up to `multiple` in each direction.

    All start at a multiple of `multiple`. A `side` of 0 is one window.
    """
    longest = -(-side // multiple) * multiple or max(height, width)
    cuts = []
    for length in (height, width):
        count = -(-length // longest)
        step = -(-length // (count * multiple)) * multiple
        cuts.append([*range(0, length, step), length])
    for top, bottom in zip(cuts[0], cuts[0][1:], strict=False):
        for left, right in zip(cuts[1], cuts[1][1:], strict=False):
            yield Window(top, bottom, left, right)


class Canvas:
    """A tensor (count, channels, height, width) that is read and written window by window, in memory or in a file.

    The file is a nameless one of the temporary folder (TMPDIR): the system removes it when the process ends, however it
    ends. It is read and written, never mapped: mapped pages would count as this process's memory. A `count` above 1 is for
    small images and needs memory.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        *,
        count: int = 1,
        dtype: torch.dtype,
        device: torch.device,
        in_file: bool,
    ) -> None:
        assert count == 1 or not in_file, "a file holds one image"
        self.window, self._count = Window(0, height, 0, width), count
        self._channels, self._dtype, self._device = channels, dtype, device
        self._tensor: Tensor | None = None
        self._file = None
        if in_file:
            with _disk():
                self._file = tempfile.TemporaryFile(prefix="samdiffsr-", buffering=0)  # noqa: SIM115

    @property
    def in_file(self) -> bool:
        """Whether it lies in a file."""
        return self._file is not None

    def read(self, window: Window) -> Tensor:
        """A copy (count, channels, h, w), channels last; of the whole canvas in memory no copy, but that itself."""
        if self._file is None:
            assert self._tensor is not None, "read before it was written"
            if window == self.window:
                return self._tensor
            return window.cut(self._tensor, self.window).clone(memory_format=torch.channels_last)
        height, width = window.shape
        pixels = torch.empty(height, width, self._channels, dtype=self._dtype)
        self._each_row(window, pixels, self._file.readinto)
        return pixels.to(self._device).permute(2, 0, 1)[None]

    def write(self, window: Window, batch: Tensor) -> None:
        """Set a window to `batch` (count, channels, h, w); the whole canvas in memory becomes `batch` itself and no copy."""
        if self._file is None:
            if window == self.window:
                self._tensor = batch
                return
            if self._tensor is None:
                shape = (self._count, self._channels, *self.window.shape)
                kind = torch.channels_last
                self._tensor = torch.empty(shape, dtype=self._dtype, device=self._device, memory_format=kind)
            window.cut(self._tensor, self.window).copy_(batch)
            return
        pixels = batch[0].permute(1, 2, 0).to("cpu", self._dtype).contiguous()
        self._each_row(window, pixels, self._file.write)

    def arrays(self) -> list[np.ndarray]:
        """The whole canvas as `count` arrays (height, width, channels); from a file a mapping that lasts as long as the
        array."""
        height, width = self.window.shape
        if self._file is None:
            assert self._tensor is not None, "read before it was written"
            return [np.ascontiguousarray(one.permute(1, 2, 0).cpu().numpy()) for one in self._tensor]
        kind = torch.empty(0, dtype=self._dtype).numpy().dtype
        return [np.memmap(self._file, kind, "r+", shape=(height, width, self._channels))]  # pyright: ignore

    def _each_row(self, window: Window, pixels: Tensor, move: Callable[[memoryview], int | None]) -> None:
        """Read or write contiguous `pixels` (h, w, channels) row by row; the system may move less than it is asked to."""
        assert self._file is not None
        pixel = self._channels * self._dtype.itemsize
        rows = pixels.view(pixels.shape[0], -1).view(torch.uint8).numpy()
        with _disk():
            for y, row in zip(range(window.top, window.bottom), rows, strict=True):
                self._file.seek((y * self.window.right + window.left) * pixel)
                left = memoryview(row)
                while left:
                    moved = move(left)
                    if not moved:
                        raise OSError(errno.EIO, "a temporary file ended early")
                    left = left[moved:]


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    """Turn what goes wrong with the temporary folder into an ImageError."""
    try:
        yield
    except OSError as error:
        raise ImageError(
            f"Cannot keep an image of this size in the temporary folder: {error.strerror or error}; "
            "make room there, or set TMPDIR to a folder with more."
        ) from error


def automatic_tile(
    height: int, width: int, *, halo: int, bytes_per_pixel: int, device: torch.device, free: int | None
) -> int:
    """Side of a tile in LR pixels, 0 for the whole image at once, so that a window takes no more than memory allows.

    A window takes at most half of what is free; on CPU also at most `TILE_BYTES`, unless it would then be mostly halo.

    Args:
        height, width: of the LR image.
        halo: that a window has on each side, LR pixels.
        bytes_per_pixel: what the network takes for an LR pixel of its window.
        device: where it runs.
        free: bytes that can be had there; None if unknown.
    """
    most = math.inf if free is None else free / 2
    wanted = max(TILE_BYTES, (6 * halo) ** 2 * bytes_per_pixel) if device.type == "cpu" else math.inf
    budget = min(most, wanted)
    if budget == math.inf:
        budget = TILE_BYTES
    if height * width * bytes_per_pixel <= budget:
        return 0
    return max(math.isqrt(int(budget / bytes_per_pixel)) - 2 * halo, LEAST_TILE_LR)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, in Python or in one of torch's allocators."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU and MPS allocators raise a plain RuntimeError.
    words = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
    return any(words in str(error).lower() for words in words)
