"""The micro-batches of each update, prepared ahead: which examples they hold depends on (seed, update) alone."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from samdiffsr.data.dataset import Batch, PreparedPhotos
from samdiffsr.errors import ConfigError
from samdiffsr.training.config import DataConfig

AHEAD = 2  # updates prepared beyond those that threads are working on

MicroBatch = tuple[Batch, dict[str, Any]]
"""The examples that one process computes at once, and what `Objective.draws` drew for them."""


@dataclass(frozen=True)
class Batches:
    """The share of one of `processes` processes: update u is made of examples u batch .. (u + 1) batch - 1, cut into equal
    runs of examples, one for each process, and each run into `accumulate` micro-batches.

    Args:
        draws: the noise of (seed, first example, count), as `Objective.draws` gives it.

    Raises:
        ConfigError: the batch cannot be cut so.
    """

    photos: PreparedPhotos
    draws: Callable[[int, int, int], dict[str, Any]]
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

    def updates(self, first: int, last: int) -> Iterator[tuple[list[MicroBatch], float]]:
        """The micro-batches of updates first .. last - 1, in order whatever the number of threads, and the seconds waited for
        them."""
        todo = iter(range(first, last))
        with ThreadPoolExecutor(max(1, self.data.workers)) as pool:

            def submit(count: int) -> Iterator[Callable[[], list[MicroBatch]]]:
                for update in islice(todo, count):
                    work = partial(self._ahead, update)
                    yield pool.submit(work).result if self.data.workers else work

            queue = deque(submit(self.data.workers + AHEAD))
            try:
                while queue:
                    started = time.perf_counter()
                    micro_batches = queue.popleft()()
                    waited = time.perf_counter() - started
                    queue.extend(submit(1))
                    yield _each_tensor(micro_batches, self._to_device), waited
            finally:
                pool.shutdown(cancel_futures=True)

    def stems(self, update: int) -> list[str]:
        """Names of the images in the whole batch of one update."""
        first = update * self.data.batch
        return sorted({self.photos.stem(self.seed, index) for index in range(first, first + self.data.batch)})

    def micro_batches(self, update: int) -> list[MicroBatch]:
        """This process's micro-batches of one update, on the CPU."""
        size = self.data.batch // (self.processes * self.data.accumulate)
        start = update * self.data.batch + self.process * self.data.accumulate * size
        return [
            (self.photos.batch(self.seed, first, size), self.draws(self.seed, first, size))
            for first in range(start, start + self.data.accumulate * size, size)
        ]

    def _ahead(self, update: int) -> list[MicroBatch]:
        """`micro_batches` in memory from which a GPU can copy while it computes."""
        micro_batches = self.micro_batches(update)
        return _each_tensor(micro_batches, Tensor.pin_memory) if self.device.type == "cuda" else micro_batches

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def _each_tensor(micro_batches: list[MicroBatch], change: Callable[[Tensor], Tensor]) -> list[MicroBatch]:
    return [
        (
            Batch(
                change(batch.hr),
                change(batch.lr),
                change(batch.structure),
                change(batch.level),
                {name: change(target) for name, target in batch.targets.items()},
                *(None if one is None else change(one) for one in (batch.position, batch.synthetic)),
            ),
            {key: change(value) if isinstance(value, Tensor) else value for key, value in draws.items()},
        )
        for batch, draws in micro_batches
    ]
