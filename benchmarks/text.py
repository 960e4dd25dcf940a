"""How legible small text is after enlarging:  python benchmarks/text.py [-m MODEL ...]

Twenty lines of text (Aileron, CC0, which Pillow carries; 20 to 36 pixels, dark or light, on plain grounds and on the pictures
of examples/), reduced to a quarter. RapidOCR's network reads them: of the original, of bicubic interpolation, and of each MODEL
(default: default) at detail 0 and at its own. Printed is the share of characters that are wrong: edit distance over length.
Needs, in an environment of its own or here: pip install rapidocr-onnxruntime
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from rapidocr_onnxruntime import RapidOCR

from samdiffsr import imresize
from samdiffsr.images import Picture
from samdiffsr.load import load_model
from samdiffsr.resize import SCALE
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.settings import Settings

WORDS = """Platform Bakery Tuesday 1984 harbour No.27 Library exit Garden 06:45 quarter Museum of birds Bridge Street invoice
Station 3.50 kg handle with care Opening hours monday-friday Reading room Level 2 ticket office Please ring twice""".split()  # noqa: SIM905
LINES, MARGIN = 20, 12
GROUNDS = Path(__file__).parents[1] / "examples/originals"


def lines() -> list[tuple[str, np.ndarray]]:
    """(text, HR uint8 (H, W, 3)) of each line, always the same."""
    random = np.random.default_rng(0)
    grounds = [Image.open(file).convert("RGB") for file in sorted(GROUNDS.glob("*.*"))]
    found = []
    for number in range(LINES):
        text = " ".join(random.choice(WORDS, 3))
        font = ImageFont.load_default(int(random.integers(20, 37)))
        left, top, right, bottom = font.getbbox(text)
        width, height = (-(-int(side + 2 * MARGIN) // SCALE) * SCALE for side in (right - left, bottom - top))
        dark = bool(random.random() < 0.5)
        if number % 2:
            image = Image.new("RGB", (width, height), "white" if dark else "navy")
        else:
            ground = grounds[number // 2 % len(grounds)].resize((max(width, 512), 512))
            x, y = random.integers(0, ground.width - width + 1), random.integers(0, ground.height - height)
            cut = ground.crop((int(x), int(y), int(x) + width, int(y) + height))
            image = ImageEnhance.Brightness(ImageEnhance.Contrast(cut).enhance(0.5)).enhance(1.6 if dark else 0.4)
        ImageDraw.Draw(image).text((MARGIN - left, MARGIN - top), text, "black" if dark else "white", font)
        found.append((text, np.asarray(image)))
    return found


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's: insertions, deletions and replacements from one to the other."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, wanted in enumerate(other, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (letter != wanted))
    return row[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", action="append", help="as for `samdiffsr upscale`; may be repeated")
    given = parser.parse_args()
    read = RapidOCR()
    ways = {"original": lambda hr, _: hr, "bicubic": lambda _, lr: imresize(lr, SCALE)}
    for name in given.model or ["default"]:
        pipe = load_model(name)
        for detail in (0.0, None):
            way = f"{name}, detail {'as it is' if detail is None else detail}"
            settings = Settings(detail=detail)
            ways[way] = lambda _, lr, pipe=pipe, settings=settings: enlarge(pipe, Picture(lr), settings).rgb
    drawn = [(text, hr, imresize(hr, 1 / SCALE)) for text, hr in lines()]
    for name, way in ways.items():
        wrong = 0
        for text, hr, lr in drawn:
            result, _ = read(np.ascontiguousarray(way(hr, lr)[:, :, ::-1]), use_det=False, use_cls=False)
            wrong += edit_distance(result[0][0].strip() if result else "", text)
        print(f"{name}: {wrong / sum(len(text) for text, _, _ in drawn):.1%} of the characters are wrong", flush=True)


if __name__ == "__main__":
    main()
