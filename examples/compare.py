"""Side by side: nearest | bicubic | ours | original.  python examples/compare.py RESULTS  writes RESULTS/comparison.png"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from samdiffsr import imresize

HERE = Path(__file__).parent
WINDOWS = {"astronaut": (60, 170), "cat": (60, 130), "coffee": (150, 230)}  # top and left of what is shown
SIDE, ZOOM, BAND = 144, 2, 22


def panel(image: np.ndarray, name: str) -> Image.Image:
    """The window of an image, enlarged by pixel repetition so that a screen shows what is there."""
    top, left = WINDOWS[name]
    window = Image.fromarray(image[top : top + SIDE, left : left + SIDE])
    return window.resize((SIDE * ZOOM, SIDE * ZOOM), Image.Resampling.NEAREST)


def comparison(results: dict[str, np.ndarray]) -> Image.Image:
    """A row for each example, from its result, uint8 (H, W, 3), by name."""
    columns = ("nearest", "bicubic", "samdiffsr", "original")
    step = SIDE * ZOOM + 4
    sheet = Image.new("RGB", (step * len(columns) - 4, BAND + step * len(WINDOWS) - 4), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((column * step + 6, 3), title, fill="black", font=ImageFont.load_default(14))
    for row, name in enumerate(WINDOWS):
        small = np.asarray(Image.open(HERE / f"{name}.png").convert("RGB"))
        pictures = (
            small.repeat(4, axis=0).repeat(4, axis=1),
            imresize(small, 4),
            results[name],
            np.asarray(Image.open(HERE / "originals" / f"{name}.png").convert("RGB")),
        )
        for column, picture in enumerate(pictures):
            sheet.paste(panel(picture, name), (column * step, BAND + row * step))
    return sheet


def main() -> None:
    folder = Path(sys.argv[1])
    files = {name: folder / f"{name}_x4.png" for name in WINDOWS}
    sheet = comparison({name: np.asarray(Image.open(file).convert("RGB")) for name, file in files.items()})
    sheet.save(folder / "comparison.png")
    print(folder / "comparison.png")


if __name__ == "__main__":
    main()
