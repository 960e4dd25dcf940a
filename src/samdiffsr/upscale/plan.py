"""Which file becomes which: files, folders, trees, patterns and URIs in, names out. Nothing is opened here.

Paths are text and every folder is resolved once, so that a million files take seconds and a few hundred bytes each.
"""

import codecs
import functools
import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from samdiffsr.errors import ConfigError, ImageError, choose
from samdiffsr.images import READABLE, WRITABLE, check_target, is_picture_name
from samdiffsr.upscale import uris
from samdiffsr.upscale.settings import FORMATS

_FOREIGN = frozenset({".jp2", ".psd", ".svg", ".pdf"})
"""Extensions of an output that is meant as a file, though it can be neither written nor read."""


@dataclass(frozen=True, slots=True)
class Job:
    """One image to upscale and the file it becomes.

    Attributes:
        source, target: paths; or URIs, which `upscale_on_cluster` takes.
        fixed: the target's format was asked for; otherwise an image that turns out transparent may become a PNG.
    """

    source: str
    target: str
    fixed: bool = False


def plan(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    suffix: str = "_x4",
    *,
    listed: Sequence[str] = (),
    recursive: bool = False,
    format: str = "auto",
    skip_existing: bool = False,
) -> list[Job]:
    """Decide what becomes what.

    Args:
        inputs: files, folders (their images, sorted) or glob patterns (`**` crosses folders; what they match below the
            output folder is left out, unless they start there). A file that does not exist is planned all the same, so
            that the others are still done. Or URIs of files and folders.
        output: a folder, or with exactly one image as input a file: whatever ends in a known image extension and is
            not an existing folder. Suffix and format do not apply to a file. Or a URI of either.
        suffix: goes between the name and its extension.
        listed: more inputs, such as those of `read_list`; here `*`, `?` and brackets are parts of names.
        recursive: take the folders within input folders too, and mirror them in the output. Links to folders, hidden
            folders and the output folder itself are left out.
        format: "auto" keeps the extension if it can be written and takes .png otherwise; else one of `FORMATS`.
        skip_existing: what a folder or pattern has and another image would become is an earlier result: leave it out.

    Returns:
        One job per image.

    Raises:
        ImageError: no image found, two images with one target, a target that is itself an input, or an output file of a
            format that cannot be written.
        ConfigError: a suffix with a path separator, an unknown format, or a format that contradicts the output file.
    """
    output = os.fspath(output)
    if not output:
        raise ConfigError("The output has an empty name; give a folder, or a file for one input.")
    if {"/", os.sep, "\0"} & set(suffix):
        raise ConfigError(f"The suffix is {suffix!r}, but it is part of a file name and cannot contain a separator.")
    choose(format, dict.fromkeys(FORMATS), "format")
    wanted = "" if format == "auto" else f".{format}"
    sources = _sources([*((given, True) for given in inputs), *((given, False) for given in listed)], output, recursive)
    extension = os.path.splitext(uris.split(output)[0])[1].lower()
    if extension in _FOREIGN and len(sources) == 1 and sources[0].named and not os.path.lexists(output):
        check_target(output, height=1, width=1, alpha=False)
    if extension in READABLE and not os.path.isdir(output):
        if len(sources) != 1:
            raise ImageError(f"The output '{output}' is one file, but there are {len(sources)} inputs; give a folder.")
        if extension not in WRITABLE:
            check_target(output, height=1, width=1, alpha=False)
        if wanted and WRITABLE[extension] != WRITABLE[wanted]:
            raise ConfigError(f"The output '{output}' contradicts --format {format}; leave one of them out.")
        jobs = [Job(sources[0].path, output, True)]
    else:
        if os.path.lexists(output) and not os.path.isdir(output):
            raise ImageError(
                f"Cannot write to '{output}': it is not a folder, and pictures can be written to a file only if its name "
                f"ends in one of {', '.join(WRITABLE)}; choose another output."
            )
        jobs = [
            Job(source.path, uris.join(output, source.folder, result_name(source.path, suffix, wanted)), bool(wanted))
            for source in sources
        ]
    found = {source.path for source in sources if not source.named}
    if skip_existing:
        jobs = _without_results(jobs, found)
    _refuse_collisions(jobs, found)
    return jobs


def result_name(source: str, suffix: str, wanted: str) -> str:
    """The name of what a file becomes: `wanted` is an extension, or "" for its own where that can be written."""
    stem, extension = os.path.splitext(uris.name_of(source))
    return stem + suffix + (wanted or (extension if extension.lower() in WRITABLE else ".png"))


def read_list(file: str | os.PathLike[str]) -> list[str]:
    """The lines of a file ("-" is stdin) that are not empty: one path or URI each.

    Raises:
        ConfigError: it cannot be read, or has NUL bytes.
    """
    try:
        content = sys.stdin.buffer.read() if os.fspath(file) == "-" else Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"Cannot read the list '{file}': {error.strerror}; check the name.") from error
    if b"\0" in content:
        raise ConfigError(
            f"The list '{file}' has NUL bytes, as from 'find -print0' or UTF-16; give one path a line, in UTF-8."
        )
    text = os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [line for line in lines if line]


@dataclass(slots=True)
class _Source:
    """An input file, its folder inside the output, and whether it was named itself, not found in a folder or by a pattern."""

    path: str
    folder: str
    named: bool


def _sources(inputs: Sequence[tuple[str | os.PathLike[str], bool]], output: str, recursive: bool) -> list[_Source]:
    """All input files in the order given; a file named twice counts once.

    Inputs come with whether they may be patterns.
    """
    if not inputs:
        raise ImageError("There is no input; give an image, a folder or a pattern.")
    if not all(os.fspath(given) for given, _ in inputs):
        raise ImageError("An input has an empty name; give an image, a folder or a pattern.")
    place = _places()
    found: dict[str, _Source] = {}
    for given, pattern in inputs:
        name = os.fspath(given)
        for path, folder in _expanded(name, output, recursive, pattern):
            source = found.setdefault(place(path), _Source(path, folder, False))
            source.named |= path == name
    return list(found.values())


def _expanded(given: str, output: str, recursive: bool, pattern: bool) -> Iterable[tuple[str, str]]:
    if uris.is_uri(given):
        files = _of_uri(given, output, recursive)
    elif os.path.isdir(given):
        files = list(_in_folder(given, output, recursive))
    elif pattern and glob.has_magic(given) and not os.path.lexists(given):
        files = [(path, "") for path in _matches(given, output)]
    else:
        files = [(given, "")]
    if not files:
        hint = "" if recursive else " (not in its folders, which takes --recursive)"
        known = " ".join(sorted(READABLE))
        raise ImageError(f"There is no image in the folder '{given}'{hint}; looked for {known}.")
    return files


def _matches(pattern: str, output: str) -> list[str]:
    """The images that a pattern matches, sorted; those below the output folder only if the pattern starts there."""
    found = sorted(path for path in glob.iglob(pattern, recursive=True) if is_picture_name(os.path.basename(path)))
    found = [path for path in found if not os.path.isdir(path)]
    if not found:
        raise ImageError(f"No image matches the pattern '{pattern}'; check it, or name a file or a folder.")
    base, place = pattern, _places()
    while glob.has_magic(base):
        base = os.path.dirname(base)
    avoid = os.path.join(os.path.realpath(output), "")
    if os.path.join(os.path.realpath(base), "").startswith(avoid):
        return found
    kept = [path for path in found if not place(path).startswith(avoid)]
    if not kept:
        raise ImageError(f"The pattern '{pattern}' matches images in the output folder only; choose another output.")
    return kept


def _of_uri(given: str, output: str, recursive: bool) -> list[tuple[str, str]]:
    """The images of a folder as `_in_folder` has them. What ends like an image is taken for one: a list may have millions."""
    if is_picture_name(uris.name_of(given)):
        return [(given, "")]
    names = uris.listed(given, recursive=recursive)
    if names is None:
        return [(given, "")]
    avoid = uris.split(output)[0].rstrip("/") + "/"
    files = []
    for name in names:
        *folders, last = name.split("/")
        source = uris.join(given, *folders, last)
        if is_picture_name(last) and not any(folder[0] == "." for folder in folders) and not source.startswith(avoid):
            files.append((folders, last, source))
    return [(source, "/".join(folders)) for folders, _, source in sorted(files)]


def _in_folder(folder: str, output: str, recursive: bool) -> Iterator[tuple[str, str]]:
    """The images of a folder, sorted; of its folders too, each with its place below."""

    def refuse(error: OSError) -> None:
        raise ImageError(f"Cannot list the folder '{error.filename}': {error.strerror}.") from error

    avoid = os.path.realpath(output)
    for here, folders, names in os.walk(folder, onerror=refuse):
        below = os.path.relpath(here, folder) if here != folder else ""
        for name in sorted(filter(is_picture_name, names)):  # a broken link too: the report names it
            yield os.path.join(here, name), below
        folders[:] = sorted(
            name
            for name in folders
            if recursive and name[0] != "." and os.path.realpath(os.path.join(here, name)) != avoid
        )


def _places():
    """A function path -> its own name in its real folder: links to folders are followed, a link to a file stands for itself."""
    real = functools.cache(os.path.realpath)

    def place(path: str) -> str:
        here = uris.local_path(path)
        return path if here is None else os.path.join(real(os.path.dirname(here) or "."), os.path.basename(here))

    return place


def _without_results(jobs: list[Job], found: set[str]) -> list[Job]:
    """The jobs less those of `found` inputs that another job makes."""
    place = _places()
    makers = {place(job.target): job.source for job in jobs}
    return [job for job in jobs if job.source not in found or makers.get(place(job.source), job.source) == job.source]


def _refuse_collisions(jobs: list[Job], found: set[str]) -> None:
    place = _places()
    inputs = {place(job.source): job.source for job in jobs}
    inputs |= {os.path.realpath(job.source): job.source for job in jobs if os.path.islink(job.source)}
    targets: dict[str, str] = {}
    for job in jobs:
        spot = place(job.target)
        if spot in targets:
            raise ImageError(f"'{targets[spot]}' and '{job.source}' would both become '{job.target}'; rename one.")
        targets[spot] = job.source
        reached = os.path.realpath(spot) if os.path.islink(spot) else spot
        if reached in inputs:
            victim, advice = inputs[reached], "choose another output or suffix"
            if victim == job.source:
                overwritten = "itself"
            elif victim in found:
                overwritten = f"'{victim}', which is found among the inputs"
                advice += ", or give --skip-existing if that is an earlier result"
            else:
                overwritten = f"the input '{victim}'"
            raise ImageError(f"Upscaling '{job.source}' would overwrite {overwritten}; {advice}.")


def as_png(job: Job) -> Job:
    """The same job with a PNG as its target."""
    target, options = uris.split(job.target)
    return Job(job.source, os.path.splitext(target)[0] + ".png" + options, job.fixed)
