"""Many files, one after the other; small pictures of one size together."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.images import Picture
from samdiffsr.images.formats import XMP
from samdiffsr.upscale.enlarge import enlarge, enlarge_together, with_settings
from samdiffsr.upscale.overlap import Beside, Moves, Reader, Ready, Writer, read
from samdiffsr.upscale.plan import Job
from samdiffsr.upscale.settings import FileSettings, Settings

if TYPE_CHECKING:
    from samdiffsr.sampling.upscaler import Upscaler

UNCERTAINTY, STRUCTURE = "_uncertainty", "_structure"  # suffixes of pictures beside a result
_SEEDS = 3  # whose results show the uncertainty


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

    Each file is opened once. In memory are at most the picture at hand, the next one, and the last result; or as many small
    ones as are no larger together.

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
    reading = partial(read, settings=settings, files=files, moves=Moves(jobs))
    with Reader(reading, jobs) as reader, Writer(report, files, tidy) as writer:
        batch = _Batch(load, settings, files, report, writer, _Reporter(on_progress, len(jobs)))
        for job, outcome in reader:
            try:
                ready = outcome.result()
            except ImageError as error:
                batch.leave(job, str(error))
            else:
                batch.leave(job) if ready is None else batch.take(ready)
        batch.enlarge()
    return report


class _Batch:
    """Enlarges pictures, and those together that follow each other and can go through the networks together."""

    def __init__(
        self,
        load: Callable[[], "Upscaler"],
        settings: Settings,
        files: FileSettings,
        report: Report,
        writer: Writer,
        reporter: "_Reporter",
    ) -> None:
        self._load, self._pipe = load, None
        self._settings, self._files = settings, files
        self._report, self._writer, self._reporter = report, writer, reporter
        self._group: list[Ready] = []

    def leave(self, job: Job, why: str | None = None) -> None:
        """Enter a job that nothing is to be done about, or that failed for a reason."""
        self.enlarge()
        self._reporter.start([job.source])
        self._writer.settle()
        if why is None:
            self._report.skipped.append(job)
        else:
            self._report.failed.append((job.source, why))
        self._reporter.end()

    def take(self, ready: Ready) -> None:
        """Enlarge a picture, at once or with those that follow."""
        if self._group and not _alike(self._group[0].picture, ready.picture):
            self.enlarge()
        self._group.append(ready)
        if self._pipe is None:
            self._pipe = _checked(self._load(), self._settings, self._files)
        together = 1 if self._files.uncertainty else self._pipe.together(*ready.picture.rgb.shape[:2])
        if len(self._group) >= together or ready.picture.animation is not None:
            self.enlarge()

    def enlarge(self) -> None:
        """Enlarge what was taken, and have it written."""
        group, self._group = self._group, []
        if not group:
            return
        self._reporter.start([ready.job.source for ready in group], group[0].pixels)
        try:
            for ready, (result, beside) in zip(group, self._enlarged(group), strict=True):
                self._writer.start(ready, result, beside)
        except ImageError as error:  # other errors are not these images', but the whole batch's
            self._writer.settle()
            self._report.failed += [(ready.job.source, f"'{ready.job.source}': {error}") for ready in group]
        self._reporter.end()

    def _enlarged(self, group: list[Ready]) -> list[tuple[Picture, Beside]]:
        """The results, and the pictures about them that are wanted."""
        pipe, settings, files = self._pipe, self._settings, self._files
        assert pipe is not None
        beside: list[Beside] = [[] for _ in group]
        options = {"max_pixels": files.max_pixels, "on_progress": self._reporter.report}
        pictures = [ready.picture for ready in group]

        def keep(number: int, drawn: np.ndarray) -> None:
            beside[number].append((STRUCTURE, Picture(drawn)))

        if files.uncertainty:  # then there is one picture, see `take`
            on_structure = partial(keep, 0) if files.save_structure else None
            result, uncertainty = _with_uncertainty(pipe, pictures[0], settings, **options, on_structure=on_structure)
            results = [result]
            beside[0].append((UNCERTAINTY, uncertainty))
        else:
            on_structures = keep if files.save_structure else None
            results = enlarge_together(pipe, pictures, settings, **options, on_structure=on_structures)
        for number, ready in enumerate(group):
            if not files.strip_metadata and os.path.splitext(ready.job.target)[1].lower() in XMP:
                results[number] = with_settings(results[number], pipe, settings)
        return list(zip(results, beside, strict=True))


def _alike(one: Picture, other: Picture) -> bool:
    """Whether two pictures can go through the networks together."""
    return (one.rgb.shape, one.rgb.dtype, None) == (other.rgb.shape, other.rgb.dtype, other.animation)


def _checked(pipe: "Upscaler", settings: Settings, files: FileSettings) -> "Upscaler":
    """The pipeline, if it can draw what is wanted."""
    if files.save_structure and settings.structure == "auto" and pipe.denoiser.structure_head is None:
        raise ConfigError(
            "this model has no structure head, so there is no structure map to save; "
            "give --structure felzenszwalb, or leave out --save-structure."
        )
    return pipe


class _Reporter:
    """Reports the progress of the batch from the part done of the images at hand, as if one came after the other."""

    def __init__(self, on_progress: Callable[[Progress], None] | None, total: int) -> None:
        self._on_progress, self._total = on_progress, total
        self._sources: Sequence[str] = ()
        self._begun, self._made, self._pixels, self._at = 0, 0, 0, 0

    def start(self, sources: Sequence[str], pixels: int = 0) -> None:
        """Images begin, whose results have so many pixels each."""
        self._sources, self._pixels, self._at = sources, pixels, 0
        self._tell(0.0)

    def report(self, part: float) -> None:
        """A part of all images at hand is done."""
        done = part * len(self._sources)
        while self._at < min(int(done), len(self._sources) - 1):
            self._tell(1.0)
            self._at += 1
            self._tell(0.0)
        self._tell(done - self._at)

    def end(self) -> None:
        """All images at hand are done."""
        self.report(1.0)
        self._begun += len(self._sources)
        self._made += self._pixels * len(self._sources)

    def _tell(self, part: float) -> None:
        if self._on_progress is not None:
            megapixels = (self._made + self._pixels * (self._at + part)) / 1e6
            number = self._begun + self._at + 1
            self._on_progress(Progress(self._sources[self._at], number, self._total, part, megapixels))


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
