"""Files that a URI names, such as s3://bucket/a.png: names, listing, reading, writing.

A URI is `scheme://place/path`, percent-encoded; what stands after a `?` are options of its file system, as in
`s3://bucket/photos?endpoint_override=minio:9000&scheme=http`. pyarrow, which comes with ray[data], knows file, s3, gs, abfs
and hdfs, finds keys and passwords where their own tools do, and tries a request to S3 again for some seconds when it fails.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.files import temporary_name

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ATOMIC = frozenset({"s3", "gcs", "abfs"})  # object stores: what is written appears when it is complete


def is_uri(path: str) -> bool:
    """Whether this is a URI and no path."""
    return _URI.match(path) is not None


def split(path: str) -> tuple[str, str]:
    """A URI without its options, and the options with their `?`; a path as it is."""
    bare, mark, options = path.partition("?") if is_uri(path) else (path, "", "")
    return bare, mark + options


def name_of(path: str) -> str:
    """The last part of a path or URI, in plain text."""
    return unquote(os.path.basename(split(path)[0])) if is_uri(path) else os.path.basename(path)


def join(folder: str, *parts: str) -> str:
    """A path or URI below a folder; the parts are plain text, and empty ones are left out."""
    if not is_uri(folder):
        return os.path.join(folder, *parts)
    bare, options = split(folder)
    return os.path.join(bare, *(quote(part) for part in parts)) + options


def local_path(path: str) -> str | None:
    """The path that a path or a file:// URI names; None if it is elsewhere."""
    if path.startswith("file:///"):
        return unquote(split(path)[0].removeprefix("file://"))
    return None if is_uri(path) else path


def listed(uri: str, *, recursive: bool) -> Iterator[str] | None:
    """The files of a folder, plain text relative to it; None if there is no folder of this name.

    Raises:
        ConfigError: see `connect`.
        ImageError: the folder cannot be listed.
    """
    from pyarrow.fs import FileSelector, FileType

    system, path = _place(uri)
    path = path.rstrip("/")
    try:
        if system.get_file_info(path or "/").type != FileType.Directory:
            return None
        found = system.get_file_info(FileSelector(path or "/", recursive=recursive))
    except OSError as error:
        raise ImageError(f"Cannot list the folder '{uri}': {_reason(error)}.") from error
    return (file.path[len(path) :].lstrip("/") for file in found if file.type == FileType.File)


def stand_in(uri: str, file: Path) -> None:
    """Make an empty file, or a folder, if the URI names a file or a folder; ImageError if that cannot be found out."""
    from pyarrow.fs import FileType

    system, path = _place(uri)
    try:
        kind = system.get_file_info(path).type
    except OSError as error:
        raise ImageError(f"Cannot look for '{uri}': {_reason(error)}.") from error
    if kind == FileType.Directory:
        file.mkdir()
    elif kind != FileType.NotFound:
        file.touch()


def fetch(uri: str, file: Path) -> None:
    """Copy what a URI names to a file; ImageError if it cannot be read."""
    system, path = _place(uri)
    try:
        with system.open_input_stream(path, compression=None) as source, open(file, "wb") as target:
            shutil.copyfileobj(source, target)
    except FileNotFoundError as error:
        raise ImageError(f"'{uri}' does not exist; check the name.") from error
    except OSError as error:
        raise ImageError(f"Cannot read '{uri}': {_reason(error)}.") from error


def store(file: Path, uri: str) -> None:
    """Copy a file to where a URI says, over what is there. It appears whole or not at all; ImageError if it cannot."""
    system, path = _place(uri)
    folder = os.path.dirname(path)
    at_once = system.type_name in _ATOMIC
    written = path if at_once else f"{folder}/{temporary_name()}"
    content = file.read_bytes()
    try:
        if not at_once:  # an object store has no folders
            system.create_dir(folder, recursive=True)
        try:
            with system.open_output_stream(written, compression=None) as target:
                target.write(content)
            if not at_once:
                system.move(written, path)
        except BaseException:  # Ctrl-C as well
            if not at_once:
                with contextlib.suppress(OSError):
                    system.delete_file(written)
            raise
    except OSError as error:
        raise ImageError(f"Cannot write '{uri}': {_reason(error)}; choose another output.") from error


def connect(uri: str) -> None:
    """Make sure that the place of a URI can be reached; a ConfigError says why not. The file itself need not exist."""
    system, path = _place(uri)
    if system.type_name == "s3":
        _find_bucket(_root(uri), path.lstrip("/").partition("/")[0])


@lru_cache(maxsize=64)  # one request for a bucket, not one for each of its million pictures
def _find_bucket(root: str, bucket: str) -> None:
    from pyarrow.fs import FileType

    system, _ = _file_system(root)
    try:
        kind = system.get_file_info(bucket).type
    except OSError as error:
        raise ConfigError(
            f"Cannot reach the bucket '{bucket}' ({_reason(error)}); check the network, the endpoint and the keys."
        ) from error
    if kind == FileType.NotFound:
        raise ConfigError(f"There is no bucket '{bucket}'; check its name and the endpoint.")


def _place(uri: str) -> "tuple[FileSystem, str]":
    """The file system of a URI and its path there."""
    path = split(uri)[0].partition("://")[2].partition("/")[2]
    system, root = _file_system(_root(uri))
    return system, f"{root.rstrip('/')}/{unquote(path)}"


def _root(uri: str) -> str:
    """A URI without its path."""
    bare, options = split(uri)
    scheme, _, rest = bare.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/{options}"


@lru_cache(maxsize=64)  # connecting to a bucket asks for its region
def _file_system(root: str) -> "tuple[FileSystem, str]":
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(root)
    except (OSError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"Cannot use '{root}': {_reason(error)}; URIs are of file, s3, gs, abfs or hdfs.") from error


def _reason(error: Exception) -> str:
    """In one line, without the number that a store gives each request."""
    return re.sub(r" \(Request ID:[^)]*\)", "", " ".join(str(error).split()))[:300].rstrip(".")
