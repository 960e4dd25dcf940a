"""A file that ends too early is known as such by its own lengths, and a whole one never is."""

import io

import pytest

from fuzz import seeds
from samdiffsr.errors import ImageError
from samdiffsr.images import read_image
from samdiffsr.images.incomplete import ends_early

UNKNOWN = ("ppm", "tga")  # they say no length that could be compared
WHOLE = {name: content for name, content in seeds().items() if "1x1" not in name}


def is_early(content: bytes) -> bool | None:
    return ends_early(io.BytesIO(content))


def test_no_whole_file_ends_early() -> None:
    assert {name for name, content in WHOLE.items() if is_early(content)} == set()
    assert {name.rpartition(".")[2] for name, content in WHOLE.items() if is_early(content) is None} == set(UNKNOWN)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_every_cut_file_ends_early(part: float) -> None:
    for name, content in WHOLE.items():
        cut = content[: max(16, int(part * len(content)))]
        assert is_early(cut) or name.endswith(UNKNOWN), name
        if part < 0.9:  # the last bytes may hold no pixels
            with pytest.raises(
                ImageError, match=r"is incomplete, for it ends before the picture in it does; copy it again\.$"
            ):
                read_image(name, content=cut)


@pytest.mark.parametrize("length", range(16))
def test_a_few_bytes_are_no_error(length: int) -> None:
    for content in WHOLE.values():
        assert is_early(content[:length]) is not False


def test_a_changed_file_of_full_length_is_damaged() -> None:
    name = "RGB-24x18.jpg"
    content = WHOLE[name].replace(b"\xff\xc0", b"\xff\xc5")  # a kind of JPEG that nobody reads
    with pytest.raises(ImageError, match="damaged"):
        read_image(name, content=content)
    broken = bytearray(WHOLE["RGB-24x18.png"])
    broken[60] ^= 255
    with pytest.raises(ImageError, match=r"^'a\.png' is damaged \(.*\); copy or export it again\.$"):
        read_image("a.png", content=bytes(broken))


@pytest.mark.parametrize(
    ("size", "early"), [(b"\x8a", False), (b"\x8b", True), (b"\xff", None), (b"\x01" + b"\xff" * 7, None)]
)
def test_matroska(size: bytes, early: bool | None) -> None:
    """The length of the segment, in one byte or eight; all ones: nobody knows it yet."""
    assert is_early(b"\x1a\x45\xdf\xa3\x82ab" + b"\x18\x53\x80\x67" + size + bytes(10)) is early


def test_boxes() -> None:
    def box(kind: bytes, content: bytes, length: int | None = None) -> bytes:
        return (8 + len(content) if length is None else length).to_bytes(4) + kind + content

    start, index = box(b"ftyp", b"isom" * 2), box(b"moov", bytes(4))
    assert is_early(start + box(b"mdat", bytes(9))) is True  # a film of which the camera has not written the index
    assert is_early(start + box(b"mdat", bytes(9)) + index) is False
    assert is_early(start + index + box(b"mdat", bytes(9), length=0)) is False  # to the end
    assert is_early(start + index + box(b"mdat", (26).to_bytes(8) + bytes(9), length=1)) is True
    assert is_early(start + index + box(b"mdat", (25).to_bytes(8) + bytes(9), length=1)) is False
    assert is_early(start + index + box(b"mdat", bytes(9), length=3)) is False  # damaged
