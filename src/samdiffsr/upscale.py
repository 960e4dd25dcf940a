"""Upscale files and folders: which file becomes which, one after the other, and what became of each.

    jobs = plan(["photos"], "large", suffix="_x4")
    todo, report = sift(jobs, overwrite=False, skip_existing=False)
    upscale_files(load_model("default", "auto"), todo, seed=0, report=report)

Heavy imports (torch, the pipeline) happen inside the functions, so that planning is quick.
"""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.images import ALPHA, MAX_PIXELS, READABLE, WRITABLE, Picture, check_target, peek, read_image, write_image
from samdiffsr.load import find_device as find_device
from samdiffsr.load import load_model as load_model
from samdiffsr.resize import SCALE, imresize

if TYPE_CHECKING:
    from samdiffsr.pipeline import SamDiffSRPipeline

_ANY_SIZE = 2**62  # for looks at the header that leave judging the size to a later check


@dataclass(frozen=True)
class Job:
    """One image to upscale and the file it becomes."""

    source: Path
    target: Path


@dataclass
class Report:
    """What became of every job; filled while the work goes on.

    Attributes:
        done: written.
        skipped: left alone, because the target existed.
        failed: source and one sentence each.
        notes: source and what reading it changed, see `Picture.notes`.
    """

    done: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    notes: list[tuple[Path, str]] = field(default_factory=list)


def plan(inputs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], suffix: str = "_x4") -> list[Job]:
    """Decide what becomes what; writes nothing and reads at most headers.

    Args:
        inputs: files, folders (their images, sorted, without subfolders) or glob patterns. A file that does not exist
            is planned all the same, so that the others are still done.
        output: a folder, or with exactly one image as input a file: whatever ends in a known image extension and is
            not an existing folder. The suffix does not apply to a file.
        suffix: goes between the name and its extension.

    Returns:
        One job per image. In a folder the name is stem + suffix + extension; the extension stays if it can be written
        and can hold the image's transparency, else it is .png.

    Raises:
        ImageError: no image found, two images with one target, or a target that is itself an input.
        ConfigError: a suffix with a path separator.
    """
    output = Path(output)
    if {"/", os.sep, "\0"} & set(suffix):
        raise ConfigError(f"The suffix is {suffix!r}, but it is part of a file name and cannot contain a separator.")
    sources = _sources(inputs)
    if output.suffix.lower() in READABLE and not os.path.isdir(output):
        if len(sources) != 1:
            raise ImageError(f"The output '{output}' is one file, but there are {len(sources)} inputs; give a folder.")
        if output.suffix.lower() not in WRITABLE:
            check_target(output, height=1, width=1, alpha=False)
        jobs = [Job(sources[0], output)]
    else:
        jobs = [Job(source, output / f"{source.stem}{suffix}{_extension(source)}") for source in sources]
    _refuse_collisions(jobs)
    return jobs


def _sources(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """All input files in the order given; a file named twice counts once."""
    if not inputs:
        raise ImageError("There is no input; give an image, a folder or a pattern.")
    found: list[Path] = []
    for given in inputs:
        text, path = os.fspath(given), Path(given)
        if os.path.isdir(path):
            try:
                files = _images(path.iterdir())
            except OSError as error:
                raise ImageError(f"Cannot list the folder '{path}': {error.strerror}.") from error
            if not files:
                known = " ".join(sorted(READABLE))
                raise ImageError(f"There is no image in the folder '{path}'; looked for {known}.")
            found += files
        elif glob.has_magic(text) and not os.path.lexists(path):
            files = _images(map(Path, glob.glob(text)))
            if not files:
                raise ImageError(f"No image matches the pattern '{text}'; check it, or name a file or a folder.")
            found += files
        else:
            found.append(path)
    return list({_place(path): path for path in reversed(found)}.values())[::-1]


def _images(paths: Iterable[Path]) -> list[Path]:
    """The images among `paths`, by extension, sorted. A broken link stays: the report shall name it."""
    return sorted(p for p in paths if p.suffix.lower() in READABLE and p.name[0] != "." and not os.path.isdir(p))


def _place(path: Path) -> Path:
    """A file's own name in its real folder: links to folders are followed, a link to a file stands for itself."""
    return Path(os.path.realpath(path.parent), path.name)


def _extension(source: Path) -> str:
    """The extension of the upscaled file in an output folder."""
    extension = source.suffix.lower()
    if extension not in WRITABLE:
        return ".png"
    if extension in ALPHA:
        return source.suffix
    try:  # a format without alpha as far as we write it, but this file may have one: a BMP, or a PNG named .jpg
        return ".png" if peek(source, max_pixels=_ANY_SIZE).alpha else source.suffix
    except ImageError:  # unreadable: reported when its turn comes
        return source.suffix


def _refuse_collisions(jobs: list[Job]) -> None:
    inputs = {os.path.realpath(job.source): job.source for job in jobs}
    targets: dict[Path, Path] = {}
    for job in jobs:
        place = _place(job.target)
        if place in targets:
            raise ImageError(f"'{targets[place]}' and '{job.source}' would both become '{job.target}'; rename one.")
        targets[place] = job.source
        if (reached := os.path.realpath(job.target)) in inputs:
            victim = "itself" if inputs[reached] == job.source else f"the input '{inputs[reached]}'"
            raise ImageError(f"Upscaling '{job.source}' would overwrite {victim}; choose another output or suffix.")


def sift(
    jobs: Sequence[Job], *, overwrite: bool, skip_existing: bool, max_pixels: int = MAX_PIXELS
) -> tuple[list[Job], Report]:
    """Find everything that can go wrong before the model is needed: read headers, then make the output folders.

    Returns:
        The jobs worth starting, and a report that holds the others as skipped or failed.

    Raises:
        ConfigError: `overwrite` and `skip_existing` together.
        ImageError: an output folder that cannot be made.
    """
    report = Report()
    sized = _sift(jobs, report, overwrite=overwrite, skip_existing=skip_existing, max_pixels=max_pixels)
    return [job for job, _ in sized], report


def _sift(
    jobs: Sequence[Job], report: Report, *, overwrite: bool, skip_existing: bool, max_pixels: int
) -> list[tuple[Job, int]]:
    """`sift` into a given report; the jobs come with their number of input pixels."""
    if overwrite and skip_existing:
        raise ConfigError("--overwrite and --skip-existing contradict each other; give one of them.")
    todo = []
    for job in jobs:
        if skip_existing and os.path.isfile(job.target):
            report.skipped.append(job)
            continue
        try:
            _refuse_target(job.target, overwrite)
            header = peek(job.source, max_pixels=max_pixels)
            height, width = SCALE * header.height, SCALE * header.width
            check_target(job.target, height=height, width=width, alpha=header.alpha)
        except ImageError as error:
            report.failed.append((job.source, str(error)))
        else:
            todo.append((job, header.height * header.width))
    for folder in {job.target.parent: None for job, _ in todo}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"Cannot make the output folder '{folder}': {error.strerror}; choose another.") from error
    return todo


def _refuse_target(target: Path, overwrite: bool) -> None:
    if os.path.isdir(target):
        raise ImageError(f"Cannot write '{target}': it is a folder; choose another output or suffix.")
    if os.path.lexists(target) and not overwrite:
        raise ImageError(f"'{target}' exists already; give --overwrite to replace it or --skip-existing to keep it.")


def upscale_files(
    pipe: "SamDiffSRPipeline",
    jobs: Sequence[Job],
    *,
    seed: int = 0,
    steps: int | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[Path, float], None] | None = None,
    report: Report | None = None,
) -> Report:
    """Upscale every job by 4 and write it; a bad file does not end the batch.

    Each image has its own noise from `seed`, so its result depends neither on the batch nor on its place in it.

    Args:
        pipe: a loaded pipeline, see `load_model`.
        steps: denoising steps, at least 1; None takes what the model was saved with.
        overwrite, skip_existing: what to do with existing targets; with neither, that file fails.
        max_pixels: see `read_image`.
        on_progress: called with the current source and the part of the whole batch done, 0 to 1 and weighted by pixels,
            when an image begins, after each of its steps, and when it ends.
        report: from an earlier `sift`, continued here.

    Raises:
        ConfigError: steps that this model cannot do, or both switches.
        ImageError: an output folder that cannot be made.
    """
    if steps is not None and steps < 1:
        raise ConfigError(f"steps is {steps}, but must be at least 1.")
    report = Report() if report is None else report
    todo = _sift(jobs, report, overwrite=overwrite, skip_existing=skip_existing, max_pixels=max_pixels)
    before, total = 0, sum(pixels for _, pixels in todo)
    for job, pixels in todo:

        def tell(part: float, job: Job = job, before: int = before, pixels: int = pixels) -> None:
            if on_progress is not None:
                on_progress(job.source, (before + pixels * part) / total)

        tell(0.0)
        try:
            picture = read_image(job.source, max_pixels=max_pixels)
            report.notes += [(job.source, note) for note in picture.notes]
            _refuse_target(job.target, overwrite)  # again: the batch may have run for hours
            write_image(_upscaled(pipe, picture, job.source, seed=seed, steps=steps, tell=tell), job.target)
        except ImageError as error:  # other errors are not this image's, but the whole batch's
            report.failed.append((job.source, str(error)))
        else:
            report.done.append(job)
        tell(1.0)
        before += pixels
    return report


def _upscaled(
    pipe: "SamDiffSRPipeline",
    picture: Picture,
    source: Path,
    *,
    seed: int,
    steps: int | None,
    tell: Callable[[float], None],
) -> Picture:
    """The picture at four times its height and width; running out of memory becomes an ImageError."""
    import torch

    def after_step(pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        tell(min(1.0, (step + 1) / len(pipe.scheduler.timesteps)))
        return kwargs

    try:
        rgb = pipe(
            picture.rgb,
            num_inference_steps=steps,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="pil",
            callback_on_step_end=after_step,
        ).images[0]
        alpha = None if picture.alpha is None else imresize(picture.alpha, scale=SCALE)
        return replace(picture, rgb=np.array(rgb), alpha=alpha)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        height, width = picture.rgb.shape[:2]
        device = "memory" if str(pipe.device) == "cpu" else f"memory of {pipe.device}"
        size = f"{width}x{height}"
        raise ImageError(f"Not enough {device} to upscale '{source}' ({size}); use a smaller image.") from error


def _out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU and MPS allocators raise a plain RuntimeError.
    return any(words in str(error).lower() for words in ("can't allocate memory", "not enough memory", "out of memory"))
