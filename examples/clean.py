"""The dial `--clean` on one picture, clean and degraded:  python examples/clean.py OUTPUT

Rows: the reduction of examples/originals/cat.png as it is; as a web page shows it (JPEG of quality 60); and as a bad phone
makes it (blur, noise, JPEG of quality 40). Columns: the input, and the results of --clean 0, auto, 0.3 and 0.7.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from samdiffsr.images import Picture
from samdiffsr.load import load_model
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.settings import Settings

SOURCE = Path(__file__).parent / "cat.png"
WINDOW = (8, 10, 64, 64)  # left, top, width and height in LR pixels
ZOOM, BAND = 4, 22


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compressed and read again."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def as_by_phone(image: Image.Image) -> Image.Image:
    """Blurred, with noise and strong JPEG."""
    noise = np.random.default_rng(0).normal(0, 12, (image.height, image.width, 3))
    grainy = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), float) + noise
    return as_jpeg(Image.fromarray(grainy.clip(0, 255).round().astype(np.uint8)), 40)


def dial(upscale: Callable[[Image.Image, Settings], np.ndarray]) -> Image.Image:
    """The sheet, drawn with a function from an LR picture and settings to its result, uint8 (4h, 4w, 3)."""
    clean = Image.open(SOURCE).convert("RGB")
    left, top, width, height = WINDOW
    side = ZOOM * width
    cleans: dict[str, float | None] = {"clean 0": 0.0, "auto": None, "clean 0.3": 0.3, "clean 0.7": 0.7}
    rows = {"as it is": clean, "web": as_jpeg(clean, 60), "bad phone": as_by_phone(clean)}
    sheet = Image.new("RGB", ((side + 4) * (1 + len(cleans)) - 4, BAND + (side + 4) * len(rows) - 4), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("input", *cleans)):
        draw.text((column * (side + 4) + 6, 3), title, fill="black", font=ImageFont.load_default(14))
    for row, image in enumerate(rows.values()):
        shown = image.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(shown, (0, BAND + row * (side + 4)))
        for column, level in enumerate(cleans.values(), 1):
            result = upscale(image, Settings(clean=level))
            cut = result[ZOOM * top : ZOOM * (top + height), ZOOM * left : ZOOM * (left + width)]
            sheet.paste(Image.fromarray(cut), (column * (side + 4), BAND + row * (side + 4)))
    return sheet


def upscaler() -> Callable[[Image.Image, Settings], np.ndarray]:
    """The embedded model as `dial` and the gallery want it."""
    pipe = load_model("default", "cpu")
    return lambda image, settings: enlarge(pipe, Picture(np.asarray(image)), settings).rgb


def main() -> None:
    dial(upscaler()).save(sys.argv[1], quality=90)


if __name__ == "__main__":
    main()
