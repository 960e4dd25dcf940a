"""Files and folders that appear completely or not at all.

Nothing else here writes or removes unfinished ones, but for results at a URI, downloads by torch.hub, and export/run_onnx.py.

Each is written under a temporary name beside its place, brought to the disk, and renamed. If the work fails, nothing is
left; if the process is killed, the temporary name is left, and a later `sweep` of the folder removes it.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from samdiffsr.errors import SamDiffSRError

IDLE_SECONDS = 600
"""A temporary file that nobody has touched for so long was left by a killed process."""

_TEMPORARY = re.compile(r"\.samdiffsr-[0-9a-f]{16}\.tmp")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def temporary_name() -> str:
    """A new name for something unfinished; short, because the final name may have 255 bytes."""
    return f".samdiffsr-{secrets.token_hex(8)}.tmp"


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` gave this name."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def whole_file(path: Path, *, error: type[SamDiffSRError] = SamDiffSRError) -> Iterator[BinaryIO]:
    """A file to write, which takes the name `path` when the block ends, over a file of that name.

    Args:
        error: the class of the error for a file that cannot be written.

    Raises:
        SamDiffSRError: no such folder, no permission, full disk: any OSError of the block counts as one of these.
    """
    temporary = path.parent / temporary_name()
    try:
        with _explained(path, error):
            file = open(temporary, "xb")  # noqa: SIM115 - closed before it is renamed
        with _explained(path, error), file:  # closing it may fail too
            yield file
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the bytes do
        with _explained(path, error):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(content: bytes | memoryview, path: Path, *, error: type[SamDiffSRError] = SamDiffSRError) -> None:
    """Write a file of this content; see `whole_file`."""
    with whole_file(path, error=error) as file:
        file.write(content)


def write_json(value: object, path: Path, *, indent: int | None = None) -> None:
    """Write a JSON file with a line feed at its end; see `whole_file`."""
    write_whole((json.dumps(value, indent=indent) + "\n").encode(), path)


@contextmanager
def whole_folder(folder: Path, *, add: bool = False, error: type[SamDiffSRError] = SamDiffSRError) -> Iterator[Path]:
    """A new folder to fill, which takes the name `folder` when the block ends, in place of a folder of that name.

    Folders above it are made. If the process is killed between the two renames of a replacement, the next call for the same
    folder puts the former one back.

    Args:
        add: move the new files into the folder that exists instead, one after the other, and keep what else is there.
        error: the class of the error for a folder that cannot be written.

    Raises:
        SamDiffSRError: no permission, full disk: any OSError of the block counts as one of these.
    """
    folder = Path(folder).absolute()
    fresh, former = folder.parent / temporary_name(), folder.with_name(f".{folder.name}.old")
    try:
        with _explained(folder, error):
            folder.parent.mkdir(parents=True, exist_ok=True)
            sweep(folder.parent)
            if former.exists() and not folder.exists():  # killed between the two renames below
                os.replace(former, folder)
            fresh.mkdir()
        with _explained(folder, error):
            yield fresh
            for file in filter(Path.is_file, fresh.rglob("*")):
                _to_disk(file)
        with _explained(folder, error):
            if add and folder.exists():
                for file in sorted(fresh.iterdir()):
                    os.replace(file, folder / file.name)
            else:
                shutil.rmtree(former, ignore_errors=True)
                if folder.exists():
                    os.replace(folder, former)
                os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def check_place(path: Path, *, is_folder: bool, error: type[SamDiffSRError] = SamDiffSRError) -> None:
    """Refuse a place where nothing can be written, before the work whose result goes there.

    The nearest folder above it that exists gets a temporary file for a moment: permissions alone do not say what a read-only
    disk or a folder of the system refuses.

    Args:
        path: of a file, or of a folder of files; it and the folders above it need not exist.
        error: the class of the error.

    Raises:
        SamDiffSRError: a file is where a folder must be, no permission, read-only, full disk.
    """
    there = path if is_folder else path.parent
    while not os.path.lexists(there):  # also False behind a file, and where nobody may look
        there = there.parent
    if not there.is_dir():
        raise error(f"Cannot write to '{path}': '{there}' is not a folder; choose another output.")
    trial = there / temporary_name()
    try:
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as cause:
        advice = "free some space" if cause.errno in _FULL else "choose another output"
        reason = f"no file can be made in '{there}' ({cause.strerror})"
        raise error(f"Cannot write to '{path}': {reason}; {advice}.") from cause


def make_folder(folder: Path, *, error: type[SamDiffSRError] = SamDiffSRError) -> None:
    """Make a folder and those above it, where they do not exist.

    Raises:
        SamDiffSRError: a file is in its place, no permission, full disk.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        in_the_way = isinstance(cause, FileExistsError | NotADirectoryError)
        reason = "a file is in its place" if in_the_way else cause.strerror
        advice = "free some space" if cause.errno in _FULL else "choose another output"
        raise error(f"Cannot make the folder '{folder}': {reason}; {advice}.") from cause


def sweep(folder: str | os.PathLike[str], *, idle_seconds: float = IDLE_SECONDS) -> None:
    """Remove what killed processes left in a folder: temporary files and folders that nobody has touched for a while."""
    with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
        for entry in filter(lambda entry: is_temporary(entry.name), entries):
            with contextlib.suppress(OSError):  # another process may remove it at the same time
                if time.time() - _last_touched(Path(entry)) < idle_seconds:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    os.unlink(entry)


def _last_touched(path: Path) -> float:
    """Of a folder: when anything in it was."""
    return max(one.lstat().st_mtime for one in (path, *path.rglob("*")))


@contextmanager
def _explained(path: Path, error: type[SamDiffSRError]) -> Iterator[None]:
    """An error of the system becomes one sentence."""
    try:
        yield
    except FileNotFoundError as cause:
        if path.parent.is_dir():
            raise error(f"Cannot write '{path}': {cause.strerror}; choose another output.") from cause
        raise error(f"Cannot write '{path}': the folder '{path.parent}' does not exist; make it first.") from cause
    except OSError as cause:
        advice = "free some space" if cause.errno in _FULL else "choose another output"
        raise error(f"Cannot write '{path}': {cause.strerror or cause}; {advice}.") from cause


def _to_disk(file: Path) -> None:
    with open(file, "r+b") as stream:  # Windows flushes only what is open for writing
        os.fsync(stream.fileno())
