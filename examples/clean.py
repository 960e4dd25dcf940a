"""The dial `--clean` on one picture, clean and degraded:  python examples/clean.py OUTPUT

Rows: the reduction of examples/originals/cat.png as it is; as a web page shows it (JPEG of quality 60); and as a bad phone
makes it (blur, noise, JPEG of quality 40). Columns: the input, and the results of --clean 0, auto, 0.3 and 0.7.
"""

import io
import sys
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


def inputs() -> dict[str, Image.Image]:
    """The three LR pictures by name."""
    clean = Image.open(SOURCE).convert("RGB")
    noise = np.random.default_rng(0).normal(0, 12, (clean.height, clean.width, 3))
    grainy = np.asarray(clean.filter(ImageFilter.GaussianBlur(0.7)), float) + noise
    phone = Image.fromarray(grainy.clip(0, 255).round().astype(np.uint8))
    return {"as it is": clean, "web": as_jpeg(clean, 60), "bad phone": as_jpeg(phone, 40)}


def main() -> None:
    pipe = load_model("default", "cpu")
    left, top, width, height = WINDOW
    side = ZOOM * width
    cleans: dict[str, float | None] = {"clean 0": 0.0, "auto": None, "clean 0.3": 0.3, "clean 0.7": 0.7}
    rows = inputs()
    sheet = Image.new("RGB", ((side + 4) * (1 + len(cleans)) - 4, BAND + (side + 4) * len(rows) - 4), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("input", *cleans)):
        draw.text((column * (side + 4) + 6, 3), title, fill="black", font=ImageFont.load_default(14))
    for row, image in enumerate(rows.values()):
        shown = image.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(shown, (0, BAND + row * (side + 4)))
        for column, clean in enumerate(cleans.values(), 1):
            result = enlarge(pipe, Picture(np.asarray(image)), Settings(clean=clean)).rgb
            cut = result[ZOOM * top : ZOOM * (top + height), ZOOM * left : ZOOM * (left + width)]
            sheet.paste(Image.fromarray(cut), (column * (side + 4), BAND + row * (side + 4)))
    sheet.save(sys.argv[1], quality=90)


if __name__ == "__main__":
    main()
