"""Whether a file ends before the picture or film in it does, by the lengths that the file itself gives."""

import os
from collections.abc import Callable
from typing import BinaryIO

_PNG, _EBML, _SEGMENT = b"\x89PNG\r\n\x1a\n", b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_CONTENT = frozenset({b"meta", b"moov", b"moof", b"jxlc", b"jxlp"})  # boxes without which nothing can be shown
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # of the types of TIFF
_PLACES = {273: 279, 324: 325}  # tags of TIFF: where strips and tiles are, how many bytes they have
_DIRECTORIES = 100
_TAIL = 64  # bytes in which a JPEG's end is looked for: some programs add a few


def ends_early(file: BinaryIO) -> bool | None:
    """Whether a file, open for reading, is shorter than its own structure says; None where that cannot be known.

    Made for files that no decoder takes: it looks at lengths and at nothing else. It knows PNG, JPEG, GIF, WebP and other
    RIFF, BMP, TIFF and most camera raw, files of boxes (AVIF, HEIC, JPEG XL, MP4, MOV) and of EBML (MKV, WebM).
    """
    size = file.seek(0, os.SEEK_END)
    head = _at(file, 0, 16)
    if len(head) < 4:
        return None
    for starts, check in _KINDS:
        if starts(head):
            return check(file, size)
    return None


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _png(file: BinaryIO, size: int) -> bool:
    place = len(_PNG)
    while place + 12 <= size:  # length, kind, content, checksum
        chunk = _at(file, place, 8)
        place += 12 + int.from_bytes(chunk[:4])
        if chunk[4:] == b"IEND":
            return place > size
    return True


def _jpeg(file: BinaryIO, size: int) -> bool:
    return b"\xff\xd9" not in _at(file, max(2, size - _TAIL), _TAIL)


def _gif(file: BinaryIO, size: int) -> bool:
    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 128 else 0

    def after(place: int) -> int:
        """The place behind the pieces of a block, each of which says how long it is; 0 is the last."""
        while length := int.from_bytes(_at(file, place, 1)):
            place += 1 + length
        return place + 1

    place = 13 + table(int.from_bytes(_at(file, 10, 1)))
    while (kind := _at(file, place, 1)) in (b"!", b","):
        place = after(place + 2) if kind == b"!" else after(place + 11 + table(int.from_bytes(_at(file, place + 9, 1))))
    return place >= size


def _riff(file: BinaryIO, size: int) -> bool:
    return size < 12 or 8 + int.from_bytes(_at(file, 4, 4), "little") > size


def _bmp(file: BinaryIO, size: int) -> bool:
    return size < 26 or int.from_bytes(_at(file, 2, 4), "little") > size


def _boxes(file: BinaryIO, size: int) -> bool:
    place, shown = 0, False
    while place + 8 <= size:
        box = _at(file, place, 16)
        length = int.from_bytes(box[:4])
        length = int.from_bytes(box[8:]) if length == 1 else length or size - place  # 0: to the end of the file
        shown |= box[4:8] in _CONTENT
        if length < 8:
            return False  # no length at all, so another damage
        place += length
    return place != size or not shown


def _tiff(file: BinaryIO, size: int) -> bool:
    order = "little" if _at(file, 0, 2) == b"II" else "big"

    def number(place: int, count: int) -> int:
        return int.from_bytes(_at(file, place, count), order)

    def values(entry: int) -> list[int]:
        width, count = _BYTES.get(number(entry + 2, 2), 1), number(entry + 4, 4)
        place = entry + 8 if width * count <= 4 else number(entry + 8, 4)
        content = _at(file, place, min(width * count, size))
        return [int.from_bytes(content[at : at + width], order) for at in range(0, len(content), width)]

    place = number(4, 4)
    for _ in range(_DIRECTORIES):
        count = number(place, 2)
        if place + 2 + 12 * count + 4 > size:
            return True
        entries = {number(entry, 2): entry for entry in range(place + 2, place + 2 + 12 * count, 12)}
        for entry in entries.values():
            length = _BYTES.get(number(entry + 2, 2), 1) * number(entry + 4, 4)
            if length > 4 and number(entry + 8, 4) + length > size:
                return True
        for places, lengths in _PLACES.items():
            if places in entries and lengths in entries:
                pieces = zip(values(entries[places]), values(entries[lengths]), strict=False)
                if any(start + length > size for start, length in pieces):
                    return True
        place = number(place + 2 + 12 * count, 4)
        if place == 0:
            break
    return False


def _ebml(file: BinaryIO, size: int) -> bool | None:
    place, length = _element(file, 0, 4)
    place += length
    if place + 12 > size:
        return True
    if _at(file, place, 4) != _SEGMENT:
        return None
    content, length = _element(file, place, 4)
    unknown = length == 2 ** (7 * (content - place - 4)) - 1  # as of a film that is still being written
    return None if unknown else content + length > size


def _element(file: BinaryIO, place: int, name: int) -> tuple[int, int]:
    """Where the content of an EBML element begins, and how long it is; `name` is how many bytes its name has."""
    first = int.from_bytes(_at(file, place + name, 1))
    width = 9 - first.bit_length() if first else 8
    length = int.from_bytes(_at(file, place + name, width)) & (1 << 7 * width) - 1
    return place + name + width, length


_KINDS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], bool | None]], ...] = (
    (lambda head: _PNG.startswith(head[:8]), _png),
    (lambda head: head.startswith(b"\xff\xd8\xff"), _jpeg),
    (lambda head: head.startswith((b"GIF87a", b"GIF89a")), _gif),
    (lambda head: head.startswith(b"RIFF"), _riff),
    (lambda head: head.startswith(b"BM"), _bmp),
    (lambda head: head[4:8] in (b"ftyp", b"JXL "), _boxes),
    (lambda head: head.startswith((b"II*\0", b"MM\0*")), _tiff),
    (lambda head: head.startswith(_EBML), _ebml),
)
