"""Picture files: read, write, and everything that survives in between.

Names are imported on first use: the limits in `formats` need neither numpy nor Pillow.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from samdiffsr.images.formats import (
    ALPHA,
    MAX_PIXELS,
    QUALITY,
    READABLE,
    SIXTEEN_BIT,
    WRITABLE,
    check_target,
    is_picture_name,
    list_images,
)

if TYPE_CHECKING:
    from samdiffsr.images.picture import Metadata, Picture, to_8_bit, to_16_bit
    from samdiffsr.images.reading import image_size, read_image
    from samdiffsr.images.writing import encode_image, write_image

_HOME = {
    **dict.fromkeys(("Metadata", "Picture", "to_8_bit", "to_16_bit"), "samdiffsr.images.picture"),
    **dict.fromkeys(("image_size", "read_image"), "samdiffsr.images.reading"),
    **dict.fromkeys(("encode_image", "write_image"), "samdiffsr.images.writing"),
}

__all__ = [
    "ALPHA",
    "MAX_PIXELS",
    "QUALITY",
    "READABLE",
    "SIXTEEN_BIT",
    "WRITABLE",
    "Metadata",
    "Picture",
    "check_target",
    "encode_image",
    "image_size",
    "is_picture_name",
    "list_images",
    "read_image",
    "to_8_bit",
    "to_16_bit",
    "write_image",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'samdiffsr.images' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
