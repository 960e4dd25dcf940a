"""A picture's file before it is decoded: on disk or in memory, and the sentences for whatever is wrong with it."""

import contextlib
import io
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import UnidentifiedImageError

from samdiffsr.errors import ImageError, TooLargeError, UnknownFormatError
from samdiffsr.images.incomplete import ends_early
from samdiffsr.images.metadata import BROKEN, reason


@dataclass(frozen=True)
class File:
    """A file on disk, or the content of one under the name it had."""

    path: Path
    content: bytes | None

    def open(self) -> BinaryIO:
        """Its bytes, from a file that exists, is no folder or device, and is not empty."""
        if self.content is None:
            return regular_file(self.path)
        if not self.content:
            raise _empty(self.path)
        return io.BytesIO(self.content)

    def read(self) -> bytes:
        """All of its bytes."""
        with self.open() as opened:
            return opened.read()

    def stamp(self) -> tuple[int, ...] | None:
        """Differs after somebody wrote to the file; None where it cannot be known."""
        try:
            found = None if self.content is not None else self.path.stat()
        except OSError:
            return None
        return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)


@contextlib.contextmanager
def failures(file: File) -> Iterator[None]:
    """Whatever fails while a file is read becomes an ImageError."""
    path = file.path
    try:
        yield
    except UnidentifiedImageError as error:
        if _ends_early(file):
            raise incomplete(file) from error
        known = "PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, TGA, AVIF, HEIC, JPEG XL or camera raw"
        raise UnknownFormatError(
            f"'{path}' is not an image, of an unknown kind, or its header is damaged; give one of {known}."
        ) from error
    except OSError as error:
        if error.errno is None:
            raise _damaged(file, error) from error
        raise ImageError(f"Cannot read '{path}': {reason(error)}; check the file and its permissions.") from error
    except BROKEN as error:
        raise _damaged(file, error) from error


@contextlib.contextmanager
def unchanged(file: File) -> Iterator[None]:
    """Refuse a picture whose file somebody wrote meanwhile: half of it may be the old one."""
    before = file.stamp()
    try:
        yield
    except ImageError as error:
        if file.stamp() != before:
            raise changed(file.path) from error
        raise
    if file.stamp() != before:
        raise changed(file.path)


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Refuse sizes outside 1..max_pixels; for before anything is decoded."""
    if width < 1 or height < 1:
        raise ImageError(f"'{path}' is {width}x{height} pixels, so there is nothing in it; export it again.")
    if width * height > max_pixels:
        size, limit = f"{width}x{height} = {width * height} pixels", f"limit of {max_pixels}"
        raise TooLargeError(
            f"'{path}' has {size}, above the {limit}; raise it with --max-pixels if you trust the file."
        )


def regular_file(path: Path, what: str = "an image") -> BinaryIO:
    """Open a file that exists, is no folder or device, and is not empty."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"'{path}' does not exist; check the name.") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"'{path}' is a folder, not {what}; give a file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"'{path}' is not a regular file; give {what} file.")
    if status.st_size == 0:
        raise _empty(path)
    return open(path, "rb")


def _empty(path: Path) -> ImageError:
    return UnknownFormatError(f"'{path}' is empty (0 bytes); copy or export it again.")


def changed(path: Path) -> ImageError:
    """The error for a file that somebody wrote to meanwhile."""
    return ImageError(f"'{path}' changed while it was read; try again when nobody writes to it.")


def incomplete(file: File, what: str = "picture") -> ImageError:
    """The error for a file that ends early, as while somebody still writes it."""
    wait = "" if file.content is not None else "wait until it is written, or "
    return ImageError(f"'{file.path}' is incomplete, for it ends before the {what} in it does; {wait}copy it again.")


def _damaged(file: File, error: BaseException) -> ImageError:
    words, early = reason(error), _ends_early(file)
    if early or (early is None and "truncated" in words.lower()):
        return incomplete(file)
    return ImageError(f"'{file.path}' is damaged ({words}); copy or export it again.")


def _ends_early(file: File) -> bool | None:
    """See `ends_early`; None as well for a file that cannot be opened again."""
    with contextlib.suppress(OSError, ImageError), file.open() as opened:
        return ends_early(opened)
    return None
