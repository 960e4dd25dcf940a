"""Many files over many machines: the work of `upscale_files` in pieces, each a plain function call.

from functools import partial
from samdiffsr.workers import on_cluster

upscale_on_cluster(partial(on_cluster, "auto", upscale_work), plan(["/net/photos"], "s3://bucket/large"))
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.files import sweep
from samdiffsr.load import load_upscaler
from samdiffsr.models.hub import is_hub_name
from samdiffsr.upscale import uris
from samdiffsr.upscale.batch import Progress, Report, upscale_files
from samdiffsr.upscale.plan import Job, as_png
from samdiffsr.upscale.settings import FileSettings, Settings

if TYPE_CHECKING:
    from samdiffsr.sampling.upscaler import Upscaler

Outcomes = Generator[tuple[Report, float], None, None]
"""The results of `upscale_work`, in the order of the works."""


@dataclass(frozen=True)
class Work:
    """Images to upscale together, mostly one.

    Attributes:
        jobs: absolute paths, or URIs. More than one only if they might become the same file.
        settings, files: how each picture and its file are made.
        model, device: see `load_upscaler`.
    """

    jobs: tuple[Job, ...]
    settings: Settings
    files: FileSettings
    model: str
    device: str


def upscale_work(work: Work) -> tuple[Report, float]:
    """Upscale and write; what URIs name passes through a temporary folder (TMPDIR).

    A plain function of a picklable argument, for this process or another machine's. A process keeps the model it has loaded
    while works want the same.

    Returns:
        What became of the jobs, and megapixels of output.

    Raises:
        CheckpointError, ConfigError: what concerns all images, see `upscale_files`.
    """
    jobs, report, megapixels = [], Report(), 0.0

    def follow(now: Progress) -> None:
        nonlocal megapixels
        megapixels = now.megapixels

    with tempfile.TemporaryDirectory(prefix="samdiffsr-") as folder:
        here = _Here(Path(folder), work.files)
        for job in work.jobs:
            try:
                jobs.append(here.fetched(job))
            except ImageError as error:
                report.failed.append((job.source, str(error)))
        made = upscale_files(
            lambda: _pipeline(work.model, work.device),
            jobs,
            work.settings,
            work.files,
            on_progress=follow,
            tidy=False,
        )
        report.skipped += map(here.named, made.skipped)
        report.failed += [(here.names.get(source, source), here.translated(why)) for source, why in made.failed]
        report.notes += [(here.names.get(source, source), note) for source, note in made.notes]
        report.levels |= {here.names.get(source, source): level for source, level in made.levels.items()}
        for job in made.done:
            named = here.named(job)
            try:
                if uris.is_uri(named.target):
                    uris.store(Path(job.target), named.target)
            except ImageError as error:
                report.failed.append((named.source, str(error)))
            else:
                report.done.append(named)
    return report, megapixels


@lru_cache(maxsize=1)
def _pipeline(model: str, device: str) -> "Upscaler":
    return load_upscaler(model, device)


class _Here:
    """Files of a temporary folder in place of those that URIs name.

    What exists at a target stands there as an empty file, so that `upscale_files` decides what to do about it.
    """

    def __init__(self, folder: Path, files: FileSettings) -> None:
        self._folder, self._overwrite = folder, files.overwrite
        self.names: dict[str, str] = {}
        """File here -> URI."""

    def fetched(self, job: Job) -> Job:
        """The job with files of this machine; ImageError if the source cannot be had."""
        there = False
        if uris.is_uri(job.target):
            for target in (job.target, as_png(job).target):
                file = self._file("made", target)  # targets of one work differ in nothing but their extensions
                if str(file) not in self.names:
                    self.names[str(file)] = target
                    uris.stand_in(target, file)
            place = self._file("made", job.target)
            there = place.exists() and not self._overwrite
            job = replace(job, target=str(place))
        if uris.is_uri(job.source):
            file = self._file(f"given{len(self.names)}", job.source)
            self.names[str(file)] = job.source
            if not there:  # otherwise it will not be read
                uris.fetch(job.source, file)
            job = replace(job, source=str(file))
        return job

    def _file(self, stem: str, uri: str) -> Path:
        return self._folder / (stem + os.path.splitext(uris.name_of(uri))[1])

    def named(self, job: Job) -> Job:
        """The job with the names that the caller gave."""
        return Job(self.names.get(job.source, job.source), self.names.get(job.target, job.target), job.fixed)

    def translated(self, sentence: str) -> str:
        """A sentence with URIs in place of the files here."""
        for file, uri in self.names.items():
            sentence = sentence.replace(f"'{file}'", f"'{uri}'")
        return sentence


def upscale_on_cluster(
    run: Callable[[list[Work]], Outcomes],
    jobs: Sequence[Job],
    settings: Settings = Settings(),
    files: FileSettings = FileSettings(),
    *,
    model: str = "default",
    device: str = "cpu",
    on_progress: Callable[[Progress], None] | None = None,
    report: Report | None = None,
) -> Report:
    """Upscale every job somewhere and write it, with the report that `upscale_files` would give.

    Args:
        run: does the works: yields `upscale_work` of each, in order. Wherever it does, paths must mean the same files.
        jobs: from `plan`; relative paths start in this process's working folder.
        model, device: see `load_upscaler`, there.
        on_progress, report: see `upscale_files`; progress comes when an image is done.

    Raises:
        CheckpointError, ConfigError: see `upscale_files`; or URIs of a place that cannot be reached.
    """
    for option, wanted in (("--uncertainty", files.uncertainty), ("--save-structure", files.save_structure)):
        if wanted:
            raise ConfigError(f"{option} saves no pictures on a cluster; leave out {option} or --cluster.")
    report = Report() if report is None else report
    jobs = [Job(_absolute(job.source), _absolute(job.target), job.fixed) for job in jobs]
    _prepare(jobs)
    model = model if model == "default" or is_hub_name(model) else os.path.abspath(model)
    works = [Work(group, settings, files, model, device) for group in _groups(jobs)]
    report_progress = on_progress or (lambda now: None)
    number, megapixels = 0, 0.0
    if works:
        report_progress(Progress(jobs[0].source, 1, len(jobs), 0.0, 0.0))
    with contextlib.closing(run(works)) as outcomes:
        for work, (part, made) in zip(works, outcomes, strict=True):
            report.done += part.done
            report.skipped += part.skipped
            report.failed += part.failed
            report.notes += part.notes
            report.levels |= part.levels
            number, megapixels = number + len(work.jobs), megapixels + made
            report_progress(Progress(work.jobs[-1].source, number, len(jobs), 1.0, megapixels))
    return report


def _absolute(path: str) -> str:
    return path if uris.is_uri(path) else os.path.abspath(path)


def _prepare(jobs: Sequence[Job]) -> None:
    """Look at every place once: a bucket that cannot be reached now, and what killed processes left."""
    for job in jobs:
        for path in filter(uris.is_uri, (job.source, job.target)):
            uris.connect(path)
    for folder in {os.path.dirname(job.target) for job in jobs if not uris.is_uri(job.target)}:
        sweep(folder)


def _groups(jobs: Sequence[Job]) -> list[tuple[Job, ...]]:
    """Jobs that would meet if they had to become PNGs belong together: only one of them may."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(as_png(job).target, []).append(job)
    return [tuple(group) for group in groups.values()]
