"""All pictures of the documentation, made anew with the embedded model:  python examples/gallery.py [FOLDER]

Writes into FOLDER, or else into docs/: `comparison.jpg` (compare.py), `clean.jpg` (clean.py), and in `gallery/` for each
picture the input (`NAME-before.webp`, lossless, small as it is) and the result (`NAME-after.webp`) of `samdiffsr upscale`.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from clean import as_by_phone, as_jpeg, dial, upscaler
from compare import WINDOWS, comparison
from PIL import Image

from samdiffsr.upscale.settings import Settings

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


def write(upscale: Callable[[Image.Image, Settings], np.ndarray], folder: Path) -> None:
    """Write all pictures, with a function from an LR picture and settings to its result, uint8 (4h, 4w, 3)."""
    (folder / "gallery").mkdir(parents=True, exist_ok=True)
    examples = {name: Image.open(HERE / f"{name}.png").convert("RGB") for name in WINDOWS}
    more = {"coffee-phone": as_by_phone(examples["coffee"]), "astronaut-web": as_jpeg(examples["astronaut"], 60)}
    results = {}
    for name, image in (examples | more).items():
        results[name] = upscale(image, Settings())
        image.save(folder / f"gallery/{name}-before.webp", lossless=True, method=6)
        Image.fromarray(results[name]).save(folder / f"gallery/{name}-after.webp", quality=88, method=6)
    comparison(results).save(folder / "comparison.jpg", quality=88)
    dial(upscale).save(folder / "clean.jpg", quality=90)


if __name__ == "__main__":
    write(upscaler(), Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
