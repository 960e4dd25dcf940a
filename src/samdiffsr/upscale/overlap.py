"""While pictures are enlarged the next ones are read and the last ones written, each in a thread of its own."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from samdiffsr.errors import ImageError
from samdiffsr.files import make_folder, sweep
from samdiffsr.images import ALPHA, Metadata, Picture, check_target, read_image, write_image
from samdiffsr.images.animation import MOVING
from samdiffsr.upscale.enlarge import check_size
from samdiffsr.upscale.plan import Job, as_png
from samdiffsr.upscale.settings import FileSettings, Settings

if TYPE_CHECKING:
    from samdiffsr.upscale.batch import Report

AHEAD = 2**20  # input pixels of small pictures that wait; of larger ones there is one
LEAST = AHEAD // 32  # what a picture counts at least, so that never more than 32 wait
BEHIND = 16_000_000  # output pixels that wait for being written while the next pictures are made

Beside = list[tuple[str, Picture]]  # pictures about a result, each with the suffix of its file's name


@dataclass(frozen=True)
class Ready:
    """A picture that was read, and where its result goes."""

    job: Job
    picture: Picture
    pixels: int
    """Of the result."""


class Reader:
    """Reads pictures in their order: always one ahead, and as long as they are small more.

    Args:
        read: of a job; None if there is nothing to do. It may raise ImageError.
    """

    def __init__(self, read: Callable[[Job], Ready | None], jobs: Iterable[Job]) -> None:
        self._read, self._jobs = read, iter(jobs)
        self._pool = ThreadPoolExecutor(1)
        self._lock = threading.RLock()
        self._waiting: deque[tuple[Job, Future]] = deque()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        """Read no more, also after Ctrl-C."""
        with self._lock:
            self._jobs = iter(())
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Job, Future]]:
        """Each job with its result, which may still be to come."""
        self._go_on()
        while self._waiting:
            with self._lock:
                job, reading = self._waiting.popleft()
            self._go_on()
            yield job, reading

    def _go_on(self) -> None:
        """Start to read the next picture, if there is room; again when it has been read."""
        with self._lock:
            if not self._has_room():
                return
            job = next(self._jobs, None)
            if job is None:
                return
            reading = self._pool.submit(self._read, job)
            self._waiting.append((job, reading))
        reading.add_done_callback(lambda done: self._go_on())

    def _has_room(self) -> bool:
        readings = [reading for _, reading in self._waiting]
        if not all(reading.done() and not reading.cancelled() for reading in readings):
            return False
        pictures = [None if reading.exception() else reading.result() for reading in readings]
        return sum(LEAST + _inputs(ready) for ready in pictures) < AHEAD


def _inputs(ready: Ready | None) -> int:
    """Pixels that a picture takes while it waits."""
    if ready is None:
        return 0
    return AHEAD if ready.picture.animation is not None else ready.picture.rgb[..., 0].size


def read(job: Job, settings: Settings, files: FileSettings, moves: "Moves") -> Ready | None:
    """The picture, if nothing known before the work stands against it; None if its target must stay as it is."""
    if _leave_alone(job.target, files):
        return None
    try:
        moving = os.path.splitext(job.target)[1].lower() in MOVING
        picture = read_image(job.source, keep_16_bit=True, all_frames=moving, max_pixels=files.max_pixels)
        height, width = check_size(picture.rgb.shape[0], picture.rgb.shape[1], settings.output_size, files.max_pixels)
    except MemoryError as error:
        raise ImageError(f"Not enough memory to read '{job.source}'; use a smaller image.") from error
    except ImageError as error:
        if job.source in str(error):
            raise
        raise ImageError(f"'{job.source}': {error}") from error
    if picture.alpha is not None and not job.fixed and os.path.splitext(job.target)[1].lower() not in ALPHA:
        job = moves.to_png(job)  # a BMP, or a PNG named .jpg
        if _leave_alone(job.target, files):
            return None
    check_target(job.target, height=height, width=width, alpha=picture.alpha is not None)
    make_folder(Path(job.target).parent, error=ImageError)
    if files.strip_metadata:
        picture = replace(picture, metadata=Metadata())
    return Ready(job, picture, height * width)


def _leave_alone(target: str, files: FileSettings) -> bool:
    """Whether an existing target is to be kept; ImageError if it is in the way."""
    if files.skip_existing and os.path.isfile(target):
        return True
    if os.path.isdir(target):
        raise ImageError(f"Cannot write '{target}': it is a folder; choose another output or suffix.")
    if os.path.lexists(target) and not files.overwrite:
        raise ImageError(f"'{target}' exists already; give --overwrite to replace it or --skip-existing to keep it.")
    return False


class Moves:
    """Targets that change because a picture turned out to be transparent."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._taken: dict[str, str] | None = None

    def to_png(self, job: Job) -> Job:
        moved = as_png(job)
        if self._taken is None:
            self._taken = {other.target: other.source for other in self._jobs}
        other = self._taken.setdefault(moved.target, job.source)
        if other != job.source:
            raise ImageError(f"'{other}' and '{job.source}' would both become '{moved.target}'; rename one.")
        return moved


def beside_name(target: str, suffix: str) -> str:
    """The file of a picture about a result."""
    return f"{os.path.splitext(target)[0]}{suffix}.png"


class Writer:
    """Writes the results in their order, and enters into the report what became of them.

    Args:
        report: filled.
        tidy: see to each target's folder with `sweep` before the first file is written there.
    """

    def __init__(self, report: "Report", files: FileSettings, tidy: bool) -> None:
        self._report, self._files, self._tidy = report, files, tidy
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[Ready, Picture, Future]] = deque()
        self._swept: set[str] = set()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        """Finish the files at hand, also after Ctrl-C."""
        try:
            self.settle()
        finally:
            self._pool.shutdown()

    def start(self, ready: Ready, result: Picture, beside: Beside) -> None:
        """Write a result when those before it are written."""
        self._waiting.append((ready, result, self._pool.submit(self._write, ready.job.target, result, beside)))
        self.settle(BEHIND)

    def settle(self, most: int = 0) -> None:
        """Wait until so many pixels, or fewer, are still to be written."""
        while sum(ready.pixels for ready, _, _ in self._waiting) > most:
            ready, result, writing = self._waiting.popleft()
            try:
                notes = writing.result()
            except ImageError as error:
                self._report.failed.append((ready.job.source, str(error)))
                continue
            if notes is None:
                self._report.skipped.append(ready.job)
                continue
            self._report.notes += [(ready.job.source, note) for note in (*result.notes, *notes)]
            if result.level is not None:
                self._report.levels[ready.job.source] = result.level
            self._report.done.append(ready.job)

    def _write(self, target: str, result: Picture, beside: Beside) -> tuple[str, ...] | None:
        """Notes on losses in writing; None if the target has meanwhile appeared and is to be left alone."""
        folder = os.path.dirname(target)
        if self._tidy and folder not in self._swept:
            sweep(folder)
            self._swept.add(folder)
        if _leave_alone(target, self._files):  # again: the batch may have run for hours
            return None
        try:
            for suffix, picture in beside:
                if not _leave_alone(beside_name(target, suffix), self._files):
                    write_image(picture, beside_name(target, suffix))
            return write_image(result, target, quality=self._files.quality)
        except MemoryError as error:
            raise ImageError(f"Not enough memory to write '{target}'; use a smaller image.") from error
