"""Moving pictures: the frames of a GIF, WebP or APNG in, WebP and APNG out."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samdiffsr.errors import TooLargeError
from samdiffsr.images.picture import Animation, Picture

MOVING = frozenset({".png", ".webp"})
"""Extensions that can hold a moving picture of full colour. A GIF, with 256 colours, is read only."""

_READ = frozenset({"GIF", "WEBP", "PNG"})


def is_moving(image: Image.Image) -> bool:
    """Whether an opened image has several frames that follow each other in time."""
    return image.format in _READ and getattr(image, "is_animated", False)


def read_frames(image: Image.Image, first: Picture, max_pixels: int, path: Path) -> Picture:
    """The first frame with all others, each composed of what changed since the one before it.

    Args:
        first: what reading made of the image; its profile and metadata stay.
        max_pixels: of all frames together.

    Raises:
        TooLargeError: more pixels.
        ValueError: a frame that outgrows the first one.
    """
    size = image.size
    count: int = image.n_frames  # type: ignore[attr-defined]
    if count * image.width * image.height > max_pixels:
        raise TooLargeError(
            f"'{path}' has {count} frames of {image.width}x{image.height} pixels, above the limit of {max_pixels}; "
            "raise it with --max-pixels if you trust the file."
        )
    start = 1 if image.info.get("default_image") else 0  # an APNG can have a picture for viewers that show no frames
    four, milliseconds = [], []
    for number in range(start, count):
        try:
            image.seek(number)
        except Image.DecompressionBombError as error:  # a damaged GIF: a later frame can enlarge the canvas
            raise ValueError("a frame outgrows the picture") from error
        if image.size != size:
            raise ValueError("a frame outgrows the picture")
        image.load()
        four.append(np.array(image.convert("RGBA")))
        milliseconds.append(float(image.info.get("duration") or 0))
    loop = image.info.get("loop")
    plays = 1 if loop is None else loop + 1 if image.format == "GIF" and loop else loop  # a GIF says how often again
    seen = any((frame[..., 3] < 255).any() for frame in four)

    def made(frame: np.ndarray) -> Picture:
        rgb = np.ascontiguousarray(frame[..., :3])
        return Picture(rgb, np.ascontiguousarray(frame[..., 3]) if seen else None, icc=first.icc)

    frames = [made(frame) for frame in four]
    animation = Animation(tuple(frames[1:]), tuple(milliseconds), int(plays))
    return Picture(frames[0].rgb, frames[0].alpha, False, first.icc, first.metadata, first.notes, animation)


def encode_frames(picture: Picture, format_: str, options: dict[str, Any]) -> io.BytesIO:
    """An APNG or WebP of all frames. Pillow and libwebp join equal frames to one that is seen for longer.

    Args:
        options: of Pillow for one picture of the format.
    """
    assert picture.animation is not None
    images = list(_images(picture))
    times = [round(time) for time in picture.animation.milliseconds]
    moving = {"save_all": True, "append_images": images[1:], "duration": times, "loop": picture.animation.plays}
    if format_ == "PNG":
        moving |= {"disposal": 0, "blend": 0}
    file = io.BytesIO()
    images[0].save(file, format=format_, **options, **moving)
    return file


def _images(picture: Picture) -> Iterator[Image.Image]:
    assert picture.animation is not None
    for frame in (picture, *picture.animation.later):
        image = Image.fromarray(frame.rgb)
        if frame.alpha is not None:
            image.putalpha(Image.fromarray(frame.alpha))
        yield image
