"""Many files, one after the other: while one is upscaled, the next is read and the last is written."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.files import make_folder, sweep
from samdiffsr.images import (
    ALPHA,
    Metadata,
    Picture,
    check_target,
    read_image,
    write_image,
)
from samdiffsr.images.animation import MOVING
from samdiffsr.images.formats import XMP
from samdiffsr.upscale.enlarge import check_size, enlarge, with_settings
from samdiffsr.upscale.plan import Job, as_png
from samdiffsr.upscale.settings import FileSettings, Settings

if TYPE_CHECKING:
    from samdiffsr.sampling.upscaler import Upscaler

UNCERTAINTY, STRUCTURE = "_uncertainty", "_structure"  # suffixes of pictures beside a result
_SEEDS = 3  # whose results show the uncertainty
_OVERLAP = 16_000_000  # output pixels up to which a result is written while the next is made


@dataclass
class Report:
    """The outcome of every job, in their order; filled while the work goes on.

    Attributes:
        done: written.
        skipped: left alone, because the target existed.
        failed: source and one sentence each.
        notes: source and what reading or writing changed, see `Picture.notes`.
        levels: source -> the level of degradation that its result was made with, see `Picture.level`.
    """

    done: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    levels: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far a batch is.

    Attributes:
        source: the current image.
        number: its place, from 1.
        total: how many images there are.
        part: of the current image, 0 to 1.
        megapixels: of output made so far.
    """

    source: str
    number: int
    total: int
    part: float
    megapixels: float


def upscale_files(
    load: Callable[[], "Upscaler"],
    jobs: Sequence[Job],
    settings: Settings = Settings(),
    files: FileSettings = FileSettings(),
    *,
    on_progress: Callable[[Progress], None] | None = None,
    report: Report | None = None,
    tidy: bool = True,
) -> Report:
    """Upscale every job and write it; a bad file does not end the batch.

    Each file is opened once. In memory are at most the picture at hand, the next one, and the last result if it is small.

    Args:
        load: gives the pipeline; called once, when the first good picture has been read.
        jobs: from `plan`.
        on_progress: called when an image starts, after each of its steps, and when it ends.
        report: filled while the work goes on, so that it says how far an interrupted batch came.
        tidy: see to each target's folder with `sweep` before the first file is written there.

    Raises:
        CheckpointError, ConfigError: of `load`; steps that the model cannot do, or no structure map to save.
    """
    if files.save_structure and settings.structure == "none":
        raise ConfigError(
            "structure 'none' has no structure map to save; choose another one, or leave out --save-structure."
        )
    report = Report() if report is None else report
    moves, reporter, pipe = _Moves(jobs), _Reporter(on_progress, len(jobs)), None
    with ThreadPoolExecutor(1) as reader, _Writer(report, files, tidy) as writer:
        for job, reading in _ahead(reader, lambda job: _read(job, settings, files, moves), jobs):
            reporter.start(job)
            try:
                ready = reading.result()
                if ready is None:
                    writer.settle()
                    report.skipped.append(job)
                else:
                    reporter.pixels = ready.pixels
                    pipe = _checked(load(), settings, files) if pipe is None else pipe
                    writer.settle(unless_small=True)
                    writer.start(ready, *_enlarged(pipe, ready, settings, files, reporter.report))
            except ImageError as error:  # other errors are not this image's, but the whole batch's
                writer.settle()
                report.failed.append((job.source, str(error)))
            reporter.end()
    return report


def _checked(pipe: "Upscaler", settings: Settings, files: FileSettings) -> "Upscaler":
    """The pipeline, if it can draw what is wanted."""
    if files.save_structure and settings.structure == "auto" and pipe.denoiser.structure_head is None:
        raise ConfigError(
            "this model has no structure head, so there is no structure map to save; "
            "give --structure felzenszwalb, or leave out --save-structure."
        )
    return pipe


class _Reporter:
    """Reports the progress of the batch from the part done of one image."""

    def __init__(self, on_progress: Callable[[Progress], None] | None, total: int) -> None:
        self._on_progress, self._total = on_progress, total
        self._source, self._number, self._made = "", 0, 0
        self.pixels = 0
        """Of the current image's result, once that is known."""

    def start(self, job: Job) -> None:
        self._source, self._number, self.pixels = job.source, self._number + 1, 0
        self.report(0.0)

    def report(self, part: float) -> None:
        if self._on_progress is not None:
            megapixels = (self._made + self.pixels * part) / 1e6
            self._on_progress(Progress(self._source, self._number, self._total, part, megapixels))

    def end(self) -> None:
        self.report(1.0)
        self._made += self.pixels


@dataclass(frozen=True)
class _Ready:
    """A picture that was read, and where its result goes."""

    job: Job
    picture: Picture
    pixels: int


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Job], _Ready | None], jobs: Iterable[Job]
) -> Iterator[tuple[Job, Future]]:
    """Each job with its result to come; the next one is always under way."""
    waiting: deque[tuple[Job, Future]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(function, job)))
        if len(waiting) == 2:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _read(job: Job, settings: Settings, files: FileSettings, moves: "_Moves") -> _Ready | None:
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
    return _Ready(job, picture, height * width)


def _leave_alone(target: str, files: FileSettings) -> bool:
    """Whether an existing target is to be kept; ImageError if it is in the way."""
    if files.skip_existing and os.path.isfile(target):
        return True
    if os.path.isdir(target):
        raise ImageError(f"Cannot write '{target}': it is a folder; choose another output or suffix.")
    if os.path.lexists(target) and not files.overwrite:
        raise ImageError(f"'{target}' exists already; give --overwrite to replace it or --skip-existing to keep it.")
    return False


class _Moves:
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


Beside = list[tuple[str, Picture]]  # pictures about a result, each with the suffix of its file's name


def _enlarged(
    pipe: "Upscaler",
    ready: _Ready,
    settings: Settings,
    files: FileSettings,
    on_progress: Callable[[float], None],
) -> tuple[Picture, Beside]:
    """The result, and the pictures about it that are wanted."""
    beside: Beside = []
    options = {"max_pixels": files.max_pixels, "on_progress": on_progress}
    if files.save_structure:
        options["on_structure"] = lambda drawn: beside.append((STRUCTURE, Picture(drawn)))
    try:
        if files.uncertainty:
            result, uncertainty = _with_uncertainty(pipe, ready.picture, settings, **options)
            beside.append((UNCERTAINTY, uncertainty))
        else:
            result = enlarge(pipe, ready.picture, settings, **options)
    except ImageError as error:
        raise ImageError(f"'{ready.job.source}': {error}") from error
    if files.strip_metadata or os.path.splitext(ready.job.target)[1].lower() not in XMP:
        return result, beside
    return with_settings(result, pipe, settings), beside


def _with_uncertainty(
    pipe: "Upscaler",
    picture: Picture,
    settings: Settings,
    *,
    on_progress: Callable[[float], None],
    on_structure: Callable[[np.ndarray], None] | None = None,
    max_pixels: int,
) -> tuple[Picture, Picture]:
    """The result of the seed, and where it and those of the next two seeds disagree."""
    from samdiffsr.evaluation.blind import as_picture, disagreement

    results = []
    for number in range(_SEEDS):
        another = replace(settings, seed=(settings.seed + number) % 2**63)
        results.append(
            enlarge(
                pipe,
                picture,
                another,
                max_pixels=max_pixels,
                on_progress=lambda part, number=number: on_progress((number + part) / _SEEDS),
                on_structure=None if number else on_structure,
            )
        )
    levels = disagreement([result.rgb for result in results]) / (257 if picture.depth == 16 else 1)
    return results[0], as_picture(levels)


def beside_name(target: str, suffix: str) -> str:
    """The file of a picture about a result."""
    return f"{os.path.splitext(target)[0]}{suffix}.png"


class _Writer:
    """Writes one result at a time in a thread of its own, and enters into the report what became of it."""

    def __init__(self, report: Report, files: FileSettings, tidy: bool) -> None:
        self._report, self._files, self._tidy = report, files, tidy
        self._pool = ThreadPoolExecutor(1)
        self._under_way: tuple[_Ready, Picture, Future] | None = None
        self._swept: set[str] = set()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        """Finish the file at hand, also after Ctrl-C."""
        try:
            self.settle()
        finally:
            self._pool.shutdown()

    def start(self, ready: _Ready, result: Picture, beside: Beside) -> None:
        self.settle()
        self._under_way = ready, result, self._pool.submit(self._write, ready.job.target, result, beside)

    def settle(self, *, unless_small: bool = False) -> None:
        """Wait for the file at hand."""
        if self._under_way is None:
            return
        ready, result, writing = self._under_way
        if unless_small and ready.pixels <= _OVERLAP:
            return
        self._under_way = None
        try:
            notes = writing.result()
        except ImageError as error:
            self._report.failed.append((ready.job.source, str(error)))
            return
        if notes is None:
            self._report.skipped.append(ready.job)
        else:
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
