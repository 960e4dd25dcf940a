"""Picture files: read, write, and everything that survives in between."""

from samdiffsr.images.formats import ALPHA, READABLE, SIXTEEN_BIT, WRITABLE, check_target, is_picture_name
from samdiffsr.images.picture import Metadata, Picture, to_8_bit, to_16_bit
from samdiffsr.images.reading import MAX_PIXELS, image_size, read_image
from samdiffsr.images.writing import encode_image, write_image

__all__ = [
    "ALPHA",
    "MAX_PIXELS",
    "READABLE",
    "SIXTEEN_BIT",
    "WRITABLE",
    "Metadata",
    "Picture",
    "check_target",
    "encode_image",
    "image_size",
    "is_picture_name",
    "read_image",
    "to_8_bit",
    "to_16_bit",
    "write_image",
]
