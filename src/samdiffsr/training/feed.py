"""The examples of each update, prepared ahead: which they are depends on (seed, update) alone."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from samdiffsr.data.dataset import Batch
from samdiffsr.errors import ConfigError
from samdiffsr.training.config import DataConfig

AHEAD = 2  # updates prepared beyond those that threads are working on

Part = tuple[Batch, dict[str, Any]]
Draws = Callable[[int, int, int], dict[str, Any]]


class Photos(Protocol):
    """Where examples come from: `PreparedPhotos`, or what draws the same elsewhere."""

    def batch(self, seed: int, first: int, size: int) -> Batch:
        """Examples first .. first + size - 1 of `seed`, on any device."""
        ...

    def stem(self, seed: int, index: int) -> str:
        """The name of the image that example `index` comes from."""
        ...


@dataclass(frozen=True)
class Feed:
    """What one of `processes` processes sees: update u is made of examples u batch .. (u + 1) batch - 1, cut into equal
    runs of examples, one for each process, and each run into `accumulate` parts.

    Args:
        draws: the noise of (seed, first example, count), as `Objective.draws` gives it.

    Raises:
        ConfigError: the batch cannot be cut so.
    """

    photos: Photos
    draws: Draws
    data: DataConfig
    seed: int
    device: torch.device
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.data.batch % (self.processes * self.data.accumulate):
            raise ConfigError(
                f"data.batch is {self.data.batch}, but must be a multiple of {self.processes} processes times "
                f"data.accumulate, {self.data.accumulate}."
            )

    def updates(self, first: int, last: int) -> Iterator[tuple[list[Part], float]]:
        """The parts of updates first .. last - 1, in order whatever the number of threads, and the seconds waited for them."""
        todo = iter(range(first, last))
        with ThreadPoolExecutor(max(1, self.data.workers)) as pool:

            def submit(count: int) -> Iterator[Callable[[], list[Part]]]:
                for update in islice(todo, count):
                    job = partial(self._ahead, update)
                    yield pool.submit(job).result if self.data.workers else job

            queue = deque(submit(self.data.workers + AHEAD))
            try:
                while queue:
                    started = time.perf_counter()
                    parts = queue.popleft()()
                    waited = time.perf_counter() - started
                    queue.extend(submit(1))
                    yield self._to_device(parts), waited
            finally:
                pool.shutdown(cancel_futures=True)

    def stems(self, update: int) -> list[str]:
        """Names of the images in the whole batch of one update."""
        first = update * self.data.batch
        return sorted({self.photos.stem(self.seed, index) for index in range(first, first + self.data.batch)})

    def parts(self, update: int) -> list[Part]:
        """This process's parts of one update, where `photos` and `draws` left them."""
        size = self.data.batch // (self.processes * self.data.accumulate)
        start = update * self.data.batch + self.process * self.data.accumulate * size
        return [
            (self.photos.batch(self.seed, first, size), self.draws(self.seed, first, size))
            for first in range(start, start + self.data.accumulate * size, size)
        ]

    def _ahead(self, update: int) -> list[Part]:
        """`parts` in memory from which a GPU can copy while it computes."""
        parts = self.parts(update)
        return _each_tensor(parts, _pinned) if self.device.type == "cuda" else parts

    def _to_device(self, parts: list[Part]) -> list[Part]:
        return _each_tensor(parts, lambda tensor: tensor.to(self.device, non_blocking=True))


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_cuda else tensor.pin_memory()


def _each_tensor(parts: list[Part], change: Callable[[Tensor], Tensor]) -> list[Part]:
    return [
        (
            Batch(change(batch.hr), change(batch.lr), change(batch.structure)),
            {key: change(value) if isinstance(value, Tensor) else value for key, value in draws.items()},
        )
        for batch, draws in parts
    ]
