"""`map` over the processes of this machine, or over a Ray cluster.

On a cluster every machine must see the same files under the same paths (a network file system). The result for an item
depends neither on the machine nor on the order, so the files are the same bytes as those of one machine.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from samdiffsr.devices import available_processors, threads_are_given
from samdiffsr.errors import ConfigError, SamDiffSRError

CONNECT_SECONDS = 10

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Generator[Result, None, None]:
    """`map(function, items)` in so many processes, in order and never far ahead; in this process if `workers` is 1.

    Processes are spawned, so with more than one a script needs the usual `if __name__ == "__main__"`.

    Raises:
        SamDiffSRError: a worker was killed. And whatever the function raises.
    """
    if workers == 1:
        yield from map(function, items)
        return
    threads = None if threads_are_given() else max(1, available_processors() // workers)
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(threads,))
    waiting = deque()
    try:
        for item in items:  # never all at once: there may be ten million
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise SamDiffSRError("a worker was killed, probably for lack of memory; give fewer --workers.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(threads: int | None) -> None:
    """Take so many threads (None: the user chose), leave Ctrl-C to the parent, and end with it instead of waiting for ever."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
        if (torch := sys.modules.get("torch")) is not None:  # which the script has done that this process runs again
            torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class _Worker:
    """One process of the cluster. Items and results travel as pickles, for Ray Data's own columns know only simple types."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            result = self.function(pickle.loads(row["item"]))
        except SamDiffSRError as error:  # Ray would wrap it and print a traceback
            result = error
        return {"number": row["number"], "result": pickle.dumps(result)}


def on_cluster(
    address: str, function: Callable[[Any], Any], items: Sequence[Any], *, gpus: float = 0
) -> Generator[Any, None, None]:
    """`map(function, items)` on the cluster at `address`: results in the order of the items, each as soon as it can be.

    Raises:
        SamDiffSRError: what the function raised for an item, or no cluster.
    """
    with cluster(address):
        early: dict[int, Any] = {}
        wanted = 0
        for number, result in cluster_map(function, items, gpus=gpus):
            early[number] = result
            while wanted in early:
                result = early.pop(wanted)
                if isinstance(result, SamDiffSRError):
                    raise result
                yield result
                wanted += 1


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Join a Ray cluster, and leave it at the end.

    Args:
        address: "auto" (the cluster this machine belongs to), "local" (one of this machine's cores), or a Ray address such as
            "ray://head:10001" or "head:6379".

    Raises:
        ConfigError: there is no such cluster.
    """
    import ray

    if ray.is_initialized():  # the caller's own; not ours to end
        yield
        return
    try:
        _knock(address)
        dashboard = False if address == "local" else None
        ray.init(address=address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"there is no Ray cluster at {address!r} ({reason}); start one with `ray start --head`, or use 'local'."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Try the port of a named address: Ray itself waits for minutes. Raises OSError or ValueError."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def cluster_map(function: Callable[[Any], Any], items: Sequence[Any], *, gpus: float = 0) -> Iterator[tuple[int, Any]]:
    """Apply a function to every item, on the cluster that this process has joined. Worker processes stay from item to item.

    Args:
        function: importable on every machine. items: picklable. gpus: GPUs that each worker process needs.

    Yields:
        (number of the item, result) as they are done, in any order; a `SamDiffSRError` that an item raised is its result.
    """
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and timings are not this program's output
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
    if not rows:
        return
    found = ray.cluster_resources()
    most = int(found.get("GPU", 0) / gpus) if gpus else int(found.get("CPU", 0))
    if most < 1:
        raise ConfigError(f"the cluster has {found.get('GPU', 0):g} GPUs, but each worker needs {gpus:g}.")
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), 16 * most)).map(
        _Worker,  # pyright: ignore[reportArgumentType]
        fn_constructor_args=(function,),
        compute=ray.data.ActorPoolStrategy(size=min(most, len(rows))),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    for row in dataset.iter_rows():
        yield int(row["number"]), pickle.loads(row["result"])
