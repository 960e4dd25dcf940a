"""A bounded queue of pictures before one worker a device, and what becomes of each."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from samdiffsr.errors import ConfigError, ImageError, SamDiffSRError
from samdiffsr.web.engine import Engine, Result, StoppedError, Wanted, check_header
from samdiffsr.web.limits import Limits
from samdiffsr.web.problems import Problem, problem_of
from samdiffsr.web.receive import Upload

_log = logging.getLogger("uvicorn.error")

State = Literal["waiting", "running", "done", "failed", "cancelled"]

KEEP_SECONDS = 600
KEEP_BYTES = 512 * 2**20
"""For how long, and how much in sum, results of jobs wait to be fetched; the newest one stays whatever its size."""


class Job:
    """One picture on its way. All but the worker's thread use it in the event loop only.

    Attributes:
        width, height: of the upload, by its header.
        progress: the part done, 0 to 1.
        result: when `state` is "done".
        problem: when it is "failed".
    """

    def __init__(self, upload: Upload, size: tuple[int, int], wanted: Wanted) -> None:
        self.id = secrets.token_urlsafe(16)
        self.upload, self.wanted = upload, wanted
        self.width, self.height = size
        self.state: State = "waiting"
        self.progress = 0.0
        self.result: Result | None = None
        self.problem: Problem | None = None
        self.created = time.monotonic()
        self.started = self.created
        self.stop: Callable[[], None] = lambda: None
        self._changed = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether nothing more will change."""
        return self.state in ("done", "failed", "cancelled")

    def change(self, **values: Any) -> None:
        """Set attributes and wake who waits for a change."""
        vars(self).update(values)
        before, self._changed = self._changed, asyncio.Event()
        before.set()

    async def changes(self) -> AsyncIterator[None]:
        """An item at once and after each change, until the job is over."""
        while True:
            changed, last = self._changed, self.over  # what changes while an item is used has one of its own
            yield
            if last:
                return
            await changed.wait()

    async def finished(self) -> None:
        """Wait until the job is over."""
        async for _ in self.changes():
            pass


class JobQueue:
    """All jobs of a server.

    Args:
        engines: each works on one picture at a time.
    """

    def __init__(self, engines: Sequence[Engine], limits: Limits) -> None:
        self.engines, self.limits = engines, limits
        self._waiting: deque[Job] = deque()
        self._running: dict[Engine, Job] = {}
        self._jobs: dict[str, Job] = {}
        self._more = asyncio.Condition()
        self._workers: list[asyncio.Task] = []

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Run the workers; at the end stop them and whatever they are at."""
        pools = [ThreadPoolExecutor(1, thread_name_prefix=f"samdiffsr-{engine.device}") for engine in self.engines]
        pairs = zip(self.engines, pools, strict=True)
        self._workers = [asyncio.create_task(self._serve(engine, pool)) for engine, pool in pairs]
        try:
            yield
        finally:
            for job in [*self._waiting, *self._running.values()]:
                await self.cancel(job)
            for worker in self._workers:
                worker.cancel()
            for pool in pools:
                pool.shutdown(wait=False, cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether every worker runs."""
        return bool(self._workers) and not any(worker.done() for worker in self._workers)

    @property
    def counts(self) -> dict[str, int]:
        """Pictures that wait and that are being made."""
        return {"waiting": len(self._waiting), "running": len(self._running)}

    def refuse_if_full(self) -> None:
        """Raise the problem 503 if no picture can be taken; its Retry-After is the time until a place will be free."""
        if len(self._waiting) < self.limits.queue:
            return
        left = [self._left(job) for job in self._running.values()]
        seconds = round(min([60.0, *(one for one in left if one is not None)])) + 1
        detail = f"All {self.limits.queue} places of the queue are taken; try again in {seconds} s."
        raise Problem(503, detail, {"Retry-After": str(seconds)})

    async def submit(self, upload: Upload, wanted: Wanted, *, keep: bool) -> Job:
        """Check a picture's header and queue it.

        Args:
            keep: the job can be found by its id afterwards.

        Raises:
            Problem: 503 the queue is full, 413 too many pixels, 415 no picture.
        """
        try:
            size = await asyncio.to_thread(_size, upload, self.limits.max_pixels)
            job = Job(upload, size, wanted)
            async with self._more:
                self.refuse_if_full()
                self._waiting.append(job)
                self._more.notify()
        except BaseException:
            upload.file.close()
            raise
        if keep:
            self._jobs[job.id] = job
        return job

    def find(self, identity: str) -> Job:
        """The job of that id; the problem 404 otherwise."""
        if identity not in self._jobs:
            minutes = KEEP_SECONDS // 60
            raise Problem(404, f"There is no job {identity!r}; results are kept for {minutes} minutes.")
        return self._jobs[identity]

    async def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or stop its worker."""
        if job.state == "waiting":
            self._waiting.remove(job)
            self._end(job, state="cancelled")
        elif job.state == "running":
            job.stop()

    async def forget(self, job: Job) -> None:
        """Cancel a job, and drop its result."""
        await self.cancel(job)
        self._jobs.pop(job.id, None)

    def seconds_left(self, job: Job) -> float | None:
        """Until the job is done; None if that cannot be known yet."""
        if job.over:
            return 0.0
        if job.state == "running":
            return self._left(job)
        ahead = list(self._waiting)
        ahead = ahead[: ahead.index(job) + 1] if job in ahead else [job]
        parts = [self._estimate(one) for one in ahead] + [self._left(one) for one in self._running.values()]
        return None if None in parts else sum(part or 0.0 for part in parts) / len(self.engines)

    def place(self, job: Job) -> int:
        """How many pictures are before it in the queue."""
        return self._waiting.index(job) if job in self._waiting else 0

    def _estimate(self, job: Job) -> float | None:
        try:
            return self.engines[0].seconds(job.width, job.height, job.wanted)
        except (ConfigError, ImageError):  # a size that does not suit; the worker will say so
            return 0.0

    def _left(self, job: Job) -> float | None:
        spent, whole = time.monotonic() - job.started, self._estimate(job)
        if job.progress > 0:
            return spent * (1 / job.progress - 1)
        return None if whole is None else max(whole - spent, 0.0)

    async def _serve(self, engine: Engine, pool: ThreadPoolExecutor) -> None:
        """The worker of one device."""
        while True:
            async with self._more:
                await self._more.wait_for(lambda: self._waiting)
                job = self._waiting.popleft()
            self._running[engine] = job
            try:
                await self._run(engine, pool, job)
            finally:
                del self._running[engine]

    async def _run(self, engine: Engine, pool: ThreadPoolExecutor, job: Job) -> None:
        loop, late = asyncio.get_running_loop(), False

        def too_late() -> None:
            nonlocal late
            late = True
            engine.stop()

        def progress(part: float) -> None:
            loop.call_soon_threadsafe(lambda: job.over or job.change(progress=part))

        engine.prepare()
        job.change(state="running", started=time.monotonic(), stop=engine.stop)
        alarm = loop.call_later(self.limits.timeout, too_late)
        try:
            content = await asyncio.to_thread(_content, job.upload)
            call = (engine.work, job.upload.name, content, job.wanted, progress)
            self._end(job, state="done", progress=1.0, result=await loop.run_in_executor(pool, *call))
        except StoppedError:
            seconds = f"{self.limits.timeout:g} seconds"
            detail = f"'{job.upload.name}' took more than the {seconds} of this server; send a smaller picture."
            self._end(job, **({"state": "failed", "problem": Problem(504, detail)} if late else {"state": "cancelled"}))
        except SamDiffSRError as error:
            self._end(job, state="failed", problem=problem_of(error))
        except Exception:  # noqa: BLE001 - logged; a fault at one picture must not end the worker
            _log.exception("The server failed at '%s'.", job.upload.name)
            detail = f"The server failed at '{job.upload.name}', which its log describes; please report it."
            self._end(job, state="failed", problem=Problem(500, detail))
        finally:
            alarm.cancel()

    def _end(self, job: Job, **values: Any) -> None:
        job.upload.file.close()
        job.change(stop=lambda: None, **values)
        if job.id in self._jobs:
            asyncio.get_running_loop().call_later(KEEP_SECONDS, self._jobs.pop, job.id, None)
            self._make_room()

    def _make_room(self) -> None:
        """Drop the oldest results while they are too many bytes."""
        kept = [job for job in self._jobs.values() if job.result is not None]
        sizes = [job.result.content.nbytes for job in kept if job.result is not None]
        while len(kept) > 1 and sum(sizes) > KEEP_BYTES:
            del self._jobs[kept.pop(0).id], sizes[0]


def _size(upload: Upload, max_pixels: int) -> tuple[int, int]:
    return check_header(upload.name, _content(upload), max_pixels)


def _content(upload: Upload) -> bytes:
    upload.file.seek(0)
    return upload.file.read()
