"""Pictures of masks for people: regions coloured over the photograph, and a contact sheet of many."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from samdiffsr.images import Picture, read_image, write_image
from samdiffsr.masks.rle import decode_mask, run_lengths

_LONGEST = 1024
"""Longer side of an overlay; large photographs are reduced."""

_COLOURS = np.array(
    [
        *((230, 57, 70), (29, 120, 216), (255, 183, 3), (46, 160, 67), (142, 68, 204), (0, 187, 199)),
        *((255, 112, 31), (227, 66, 160), (152, 208, 52), (30, 58, 138), (0, 128, 116), (255, 158, 187)),
        *((128, 90, 40), (186, 170, 255), (120, 20, 60), (250, 230, 120)),
    ],
    np.float32,
)


def write_preview(rgb: np.ndarray, records: Sequence[dict], path: Path) -> None:
    """Write the overlay of one photograph (uint8 (H, W, 3)) and its mask records as PNG; ImageError if that fails."""
    write_image(Picture(overlay(rgb, records)), path)


def overlay(rgb: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """The photograph with every region tinted and outlined, small regions over large ones; uint8, at most 1024 a side.

    Neighbours get colours far from each other. What is in no region stays as it is, a little darker.
    """
    height, width = rgb.shape[:2]
    factor = min(1.0, _LONGEST / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    photo = np.asarray(Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.LANCZOS), np.float32)
    labels = _label_map(records, (height, width), size)
    tints = np.concatenate([_colours(labels, len(records)), np.zeros((1, 3), np.float32)])[labels]
    grey = photo @ np.array([[0.299], [0.587], [0.114]], np.float32)
    inside = (labels >= 0)[..., None]
    out = np.where(inside, 0.3 * photo + 0.25 * grey + 0.45 * tints, 0.75 * photo)
    edge = _edges(labels)[..., None]
    return np.where(edge, 0.25 * out + 0.75 * 255, out).round().clip(0, 255).astype(np.uint8)


def contact_sheet(pictures: Sequence[Path], path: Path, *, most: int = 48) -> None:
    """Write thumbnails of the overlays, with their names, as one PNG; of more than `most` an even choice. None: no sheet."""
    if not pictures:
        return
    chosen = [pictures[i * len(pictures) // min(most, len(pictures))] for i in range(min(most, len(pictures)))]
    columns = max(1, min(len(chosen), round((1.5 * len(chosen)) ** 0.5)))
    cell, gap, line = 240, 12, 18
    rows = -(-len(chosen) // columns)
    size = gap + columns * (cell + gap), gap + rows * (cell + line + gap)
    sheet = Image.new("RGB", size, (24, 26, 30))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, picture in enumerate(chosen):
        row, column = divmod(number, columns)
        left, top = gap + column * (cell + gap), gap + row * (cell + line + gap)
        image = Image.fromarray(read_image(picture).rgb)
        image.thumbnail((cell, cell), Image.Resampling.LANCZOS)
        sheet.paste(image, (left + (cell - image.width) // 2, top + (cell - image.height) // 2))
        draw.text((left + cell // 2, top + cell + 2), picture.stem[:34], (200, 204, 210), font, anchor="ma")
    write_image(Picture(np.asarray(sheet)), path)


def _label_map(records: Sequence[dict], shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Number of the smallest region over each pixel, -1 for none; sampled at `size`."""
    rows, columns = (((np.arange(n) + 0.5) * full / n).astype(int) for n, full in zip(size, shape, strict=True))
    counts = [record["segmentation"]["counts"] for record in records]
    areas = [run_lengths(text, shape)[1::2].sum() for text in counts]
    labels = np.full(size, -1)
    for number in np.argsort(-np.array(areas, np.int64), kind="stable"):
        labels[decode_mask(counts[number], shape)[rows[:, None], columns]] = number
    return labels


def _colours(labels: np.ndarray, count: int) -> np.ndarray:
    """A colour (3,) for each of `count` regions, far from those of its neighbours; float32 in 0..255."""
    across = np.stack([labels[:, 1:].ravel(), labels[:, :-1].ravel()], 1)
    down = np.stack([labels[1:].ravel(), labels[:-1].ravel()], 1)
    pairs = np.concatenate([across, down])
    pairs = np.unique(pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs.min(1) >= 0)], axis=0)
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for a, b in pairs.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    distance = np.linalg.norm(_COLOURS[:, None] - _COLOURS[None], axis=2)
    chosen, used = np.full(count, -1), np.zeros(len(_COLOURS))
    for number in range(count):
        near = [chosen[other] for other in neighbours[number] if chosen[other] >= 0]
        room = distance[:, near].min(1) if near else np.full(len(_COLOURS), 150.0)
        best = int(np.argmax(np.minimum(room, 150) - 1e-3 * used))  # far enough is enough: then the least used
        chosen[number] = best
        used[best] += 1
    return _COLOURS[chosen].reshape(-1, 3)


def _edges(labels: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour is in another region."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] = labels[:, 1:] != labels[:, :-1]
    edge[:-1] |= labels[1:] != labels[:-1]
    return edge
