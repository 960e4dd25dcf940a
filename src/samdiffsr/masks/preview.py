"""Pictures of masks for people: regions coloured over the photograph, and a contact sheet of many."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from skimage.color import hsv2rgb, label2rgb
from skimage.segmentation import mark_boundaries
from skimage.util import montage

from samdiffsr.images import Picture, read_image, write_image
from samdiffsr.masks.rle import decode_mask, run_lengths

_LONGEST = 1024
"""Longer side of an overlay; large photographs are reduced."""

_GOLDEN = 0.618034
"""Hues this far apart on a circle of 1 stay apart, however many there are."""

_THUMBNAIL, _CAPTION, _GAP = 240, 18, 12  # pixels of a contact sheet
_DARK, _LIGHT = (24, 26, 30), (200, 204, 210)


def write_preview(rgb: np.ndarray, records: Sequence[dict], path: Path) -> None:
    """Write the overlay of one photograph (uint8 (H, W, 3)) and its mask records as PNG; ImageError if that fails."""
    write_image(Picture(overlay(rgb, records)), path)


def overlay(rgb: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """The photograph with every region tinted and outlined, small regions over large ones; uint8, at most 1024 a side.

    Pixels in no region keep their colour.
    """
    height, width = rgb.shape[:2]
    factor = min(1.0, _LONGEST / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    photo = np.asarray(Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.LANCZOS))
    labels = _label_map(records, (height, width), size)
    hues = np.arange(len(records) + 1) * _GOLDEN % 1
    colours = hsv2rgb(np.stack([hues, np.full_like(hues, 0.8), np.ones_like(hues)], axis=1))
    tinted = label2rgb(labels, photo, colours, alpha=0.45, bg_label=0, bg_color=None, saturation=0.6)  # pyright: ignore[reportArgumentType]
    tinted = np.where(labels[..., None] > 0, tinted, photo / 255)
    return (mark_boundaries(tinted, labels, color=(1, 1, 1), mode="inner") * 255).round().astype(np.uint8)


def contact_sheet(pictures: Sequence[Path], path: Path, *, most: int = 48) -> None:
    """Write thumbnails of the overlays, with their names, as one PNG. Of more than `most`, an even choice; of none, no file."""
    if not pictures:
        return
    count = min(most, len(pictures))
    cells = [_thumbnail(pictures[i * len(pictures) // count]) for i in range(count)]
    columns = max(1, min(count, round((1.5 * count) ** 0.5)))
    grid = (-(-count // columns), columns)
    sheet = montage(np.stack(cells), fill=_DARK, grid_shape=grid, padding_width=_GAP, channel_axis=3)
    write_image(Picture(sheet), path)


def _thumbnail(picture: Path) -> np.ndarray:
    """A small copy in the middle of a square, with its name below; uint8 (258, 240, 3)."""
    cell = Image.new("RGB", (_THUMBNAIL, _THUMBNAIL + _CAPTION), _DARK)
    cell.paste(ImageOps.pad(Image.fromarray(read_image(picture).rgb), (_THUMBNAIL, _THUMBNAIL), color=_DARK))
    font = ImageFont.load_default(13)
    ImageDraw.Draw(cell).text((_THUMBNAIL // 2, _THUMBNAIL + 2), picture.stem[:34], _LIGHT, font, anchor="ma")
    return np.asarray(cell)


def _label_map(records: Sequence[dict], shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """1 + the number of the smallest region over each pixel, 0 for none; sampled at `size` (height, width)."""
    rows, columns = (((np.arange(n) + 0.5) * full / n).astype(int) for n, full in zip(size, shape, strict=True))
    counts = [record["segmentation"]["counts"] for record in records]
    areas = [run_lengths(text, shape)[1::2].sum() for text in counts]
    labels = np.zeros(size, int)
    for number in np.argsort(-np.array(areas, np.int64), kind="stable"):
        labels[decode_mask(counts[number], shape)[rows[:, None], columns]] = 1 + number
    return labels
