"""Pictures of text and line drawings, to learn from beside photographs:

    python runs/text_pictures.py PHOTOS FONTS OUTPUT [--count 60]

PHOTOS: a folder of photographs, the grounds of a part of the pictures. FONTS: a folder of .ttf and .otf files, searched with
its subfolders. Writes OUTPUT/text_000.png and so on, SIDE x SIDE pixels; words are those of this repository's documentation.
The same folders give the same pictures. Regions are not known: prepare them with --missing-masks zero.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from samdiffsr import imresize
from samdiffsr.files import whole_file
from samdiffsr.images import is_picture_name

SIDE, FINE = 512, 2  # drawn FINE times as large and reduced, so that edges fall between pixels as in a scan
DOCS = Path(__file__).parents[1] / "docs"

Colour = tuple[int, int, int]


def colours(random: np.random.Generator) -> tuple[Colour, Colour]:
    """Of the ground and of the ink: half of the time near black and white, else any two that differ in brightness."""
    while True:
        pair = random.integers(0, 256, (2, 3))
        if random.random() < 0.5:
            pair = np.stack([random.integers(225, 256, 3), random.integers(0, 40, 3)])[:: random.choice((1, -1))]
        if abs(float(pair[0].mean() - pair[1].mean())) > 90:
            return tuple(map(int, pair[0])), tuple(map(int, pair[1]))


def ground(random: np.random.Generator, colour: Colour, photographs: list[Path]) -> Image.Image:
    """Plain, a gradient, or a pale piece of a photograph."""
    side, kind = SIDE * FINE, random.integers(4)
    if kind == 0:
        with Image.open(photographs[random.integers(len(photographs))]) as file:
            photograph = file.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        return Image.blend(photograph, Image.new("RGB", (side, side), colour), random.uniform(0.6, 0.9))
    pixels = np.broadcast_to(np.asarray(colour, np.float64), (side, side, 3))
    if kind == 1:
        ramp = np.linspace(-1, 1, side) * random.uniform(5, 40)
        pixels = pixels + (ramp[:, None, None] if random.random() < 0.5 else ramp[None, :, None])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_lines(
    random: np.random.Generator, image: Image.Image, ink: Colour, fonts: list[Path], words: list[str]
) -> None:
    """Lines of words from top to bottom, a new font and size every few lines, some pieces turned."""
    side, y = image.width, random.uniform(0, 20) * FINE
    while y < side:
        size = FINE * math.exp(random.uniform(math.log(9), math.log(44)))
        font = ImageFont.truetype(str(fonts[random.integers(len(fonts))]), round(size))
        for _ in range(random.integers(1, 5)):
            first = random.integers(len(words) - 40)
            line = " ".join(words[first : first + 40])
            line = line.upper() if random.random() < 0.15 else line
            ImageDraw.Draw(image).text((random.uniform(-60, 40) * FINE, y), line, ink, font)
            y += size * random.uniform(1.1, 1.5)


def draw_shapes(random: np.random.Generator, image: Image.Image, ink: Colour) -> None:
    """A few rules, boxes, circles and zigzags of thin lines, as plans, tables and diagrams have them."""
    drawing, side = ImageDraw.Draw(image), image.width
    for _ in range(random.integers(4, 14)):
        width, (left, right), (top, bottom) = (
            int(random.integers(1, 7)),
            *np.sort(random.integers(0, side, (2, 2))).tolist(),
        )
        match random.integers(5):
            case 0:
                drawing.line((left, top, right, bottom), ink, width)
            case 1:
                drawing.rectangle((left, top, right, bottom), None, ink, width)
            case 2:
                drawing.ellipse((left, top, right, bottom), None, ink, width)
            case 3:
                pitch = int(random.integers(5, 40)) * FINE
                for x in range(left, right, pitch):
                    drawing.line((x, top, x, bottom), ink, width)
            case _:
                points = np.stack([np.linspace(left, right, 9), random.uniform(top, bottom + 1, 9)], axis=1)
                drawing.line([tuple(point) for point in points.tolist()], ink, width, joint="curve")


def picture(random: np.random.Generator, photographs: list[Path], fonts: list[Path], words: list[str]) -> np.ndarray:
    """uint8 (SIDE, SIDE, 3)."""
    paper, ink = colours(random)
    image = ground(random, paper, photographs)
    kind = random.integers(4)
    if kind != 0:
        write_lines(random, image, ink, fonts, words)
    if kind in (0, 1):
        draw_shapes(random, image, ink)
    if random.random() < 0.3:  # turned, and cut again where nothing is missing
        angle = random.uniform(-30, 30)
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=paper)
    return imresize(np.asarray(image), 1 / FINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("photos", "fonts", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--count", type=int, default=60)
    given = parser.parse_args()
    photographs = sorted(file for file in given.photos.iterdir() if is_picture_name(file.name))
    fonts = sorted(file for ending in ("ttf", "otf") for file in given.fonts.rglob(f"*.{ending}"))
    if not photographs or not fonts:
        parser.error(
            f"no {'fonts' if photographs else 'photographs'} in {given.fonts if photographs else given.photos}"
        )
    words = " ".join(file.read_text(encoding="utf-8") for file in sorted(DOCS.glob("*.md"))).split()
    given.output.mkdir(parents=True, exist_ok=True)
    for number in range(given.count):
        pixels = picture(np.random.default_rng(number), photographs, fonts, words)
        with whole_file(given.output / f"text_{number:03}.png") as file:
            Image.fromarray(pixels).save(file, "PNG")


if __name__ == "__main__":
    main()
