"""AVIF of more than 8 bits a sample, which Pillow reads as 8: how deep it is, and its pixels by PyAV where there is one."""

import io
from typing import Any

import numpy as np

from samdiffsr.images.picture import to_8_bit

_UNSPECIFIED, _BT601 = 2, 5  # FFmpeg's numbers of matrices; libavif takes the second where a file names none
_EXACT = 4 | 1 << 13 | 1 << 14 | 1 << 18 | 1 << 19  # as for films, see `samdiffsr.upscale.video`
_LIKE = 1.5  # mean difference in grey levels up to which both decoders show the same picture; chroma is enlarged in two ways


def avif_bits(content: bytes) -> int:
    """Bits a sample by the header (`av1C`, AV1-ISOBMFF 2.3): 8, 10 or 12; 8 where it says nothing."""
    place, found = 0, 8
    while place + 8 <= len(content):
        length = int.from_bytes(content[place : place + 4])
        if content[place + 4 : place + 8] == b"meta":
            box = content[place : place + length] if length else content[place:]
            for part in box.split(b"av1C")[1:]:
                if len(part) > 2 and part[2] & 0x40:
                    found = max(found, 12 if part[2] & 0x20 else 10)
            return found
        if length < 8:
            break
        place += length
    return found


def deep_pixels(content: bytes, like: np.ndarray) -> np.ndarray | None:
    """uint16 (H, W, 3), as stored; None without PyAV, or where it does not show what `like`, Pillow's uint8 (H, W, 3), shows.

    FFmpeg reads neither every arrangement of tiles nor premultiplied colours, so Pillow's picture is the measure.
    """
    try:
        import av
    except ImportError:
        return None
    height, width = like.shape[:2]
    try:
        opened: Any = av.open(io.BytesIO(content))
        with opened as file:
            stream = file.streams.video[0]
            # A hostile stream may be larger than its file says.
            stream.codec_context.options = {"max_pixels": str(height * width)}
            frame = next(file.decode(stream))
            if (frame.height, frame.width) != (height, width):
                return None
            matrix = int(frame.colorspace)
            colours: dict[str, Any] = {
                "src_colorspace": _BT601 if matrix == _UNSPECIFIED else matrix,
                "dst_color_range": 2,
            }
            found = frame.to_ndarray(format="rgb48le", interpolation=_EXACT, **colours)
    except (av.FFmpegError, ValueError, IndexError, StopIteration):
        return None
    return found if np.abs(to_8_bit(found).astype(np.int16) - like).mean() <= _LIKE else None
