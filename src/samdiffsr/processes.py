"""`map` over processes of this machine."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from samdiffsr.errors import SamDiffSRError

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
    threads = max(1, (os.cpu_count() or 1) // workers)
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


def _start(threads: int) -> None:
    """Share the processor, leave Ctrl-C to the parent, and end when the parent is killed instead of waiting for ever."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # read when torch is imported, which is later
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
