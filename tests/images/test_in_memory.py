"""Files that are in memory already: read and made without a disk."""

from pathlib import Path

import numpy as np
import pytest

from samdiffsr.errors import ImageError, TooLargeError, UnknownFormatError
from samdiffsr.images import Picture, encode_image, image_size, read_image, write_image
from support import RGB, WIDE


def test_content_is_read_as_the_file_would_be(tmp_path: Path) -> None:
    for name, rgb, alpha in (("a.png", RGB, None), ("deep.png", WIDE[..., :3], WIDE[..., 3])):
        write_image(Picture(np.ascontiguousarray(rgb), alpha), tmp_path / name)
        content = (tmp_path / name).read_bytes()
        of_file, of_content = (
            read_image(path, content=given, keep_16_bit=True)
            for path, given in ((tmp_path / name, None), (tmp_path / "nowhere", content))
        )
        assert of_content.rgb.dtype == of_file.rgb.dtype and (of_content.rgb == of_file.rgb).all()
        assert alpha is None or (of_content.alpha == alpha).all()
        assert image_size("nowhere", content=content) == (7, 5)


def test_sentences_name_the_content() -> None:
    for content in (b"", b"text", b"\x89PN"):
        with pytest.raises(ImageError, match=r"'letter\.txt'") as caught:
            read_image("letter.txt", content=content)
        assert isinstance(caught.value, UnknownFormatError)


def test_too_many_pixels_are_an_error_of_their_own() -> None:
    content = bytes(encode_image(Picture(RGB), "a.png")[0])
    with pytest.raises(TooLargeError, match="7x5"):
        image_size("a.png", content=content, max_pixels=34)


def test_encoded_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    for ending, quality in ((".png", None), (".jpg", 40), (".tif", None), (".webp", None)):
        picture = Picture(WIDE[..., :3].copy())
        notes = write_image(picture, tmp_path / f"a{ending}", quality=quality)
        content, same = encode_image(picture, f"nowhere/a{ending}", quality=quality)
        assert bytes(content) == (tmp_path / f"a{ending}").read_bytes() and same == notes
