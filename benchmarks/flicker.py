"""How much a film flickers: the same noise for each frame, as `samdiffsr upscale` takes it, against new noise for each.

    python benchmarks/flicker.py                    # the embedded model, 12 frames of 64x48 pixels
    python benchmarks/flicker.py -m run/model --photo photo.png

Two clips of one photograph: one stands still, one pans by a pixel of the input a frame. Flicker is the root mean square of the
change from one result to the next along the motion, in grey levels of 255; what lies outside of either frame does not count.
The change of a bicubic enlargement stands beside it: it is what the motion alone makes.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np

from samdiffsr.images import Picture, read_image
from samdiffsr.load import load_model
from samdiffsr.resize import SCALE, imresize
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.settings import Settings

PHOTO = Path(__file__).parents[1] / "examples/originals/coffee.png"
HEIGHT, WIDTH = 48, 64


def clip(photo: np.ndarray, frames: int, speed: int) -> list[np.ndarray]:
    """Frames (48, 64, 3) from the middle of a photograph that is SCALE times as large, so the motion is exact."""
    need = (HEIGHT * SCALE, (WIDTH + speed * (frames - 1)) * SCALE)
    if photo.shape[0] < need[0] or photo.shape[1] < need[1]:
        raise SystemExit(
            f"The photograph has {photo.shape[1]}x{photo.shape[0]} pixels, but must have {need[1]}x{need[0]}."
        )
    top, left = (photo.shape[0] - need[0]) // 2, (photo.shape[1] - need[1]) // 2
    starts = [left + SCALE * speed * number for number in range(frames)]
    large = [photo[top : top + need[0], start : start + WIDTH * SCALE] for start in starts]
    return [imresize(one, size=(HEIGHT, WIDTH)) for one in large]


def flicker(results: list[np.ndarray], moved: int) -> float:
    """Of uint8 results whose content moves to the left by `moved` pixels a frame."""
    width = results[0].shape[1] - moved
    changes = [
        ((after[:, :width].astype(float) - before[:, moved:]) ** 2).mean() for before, after in pairwise(results)
    ]
    return float(np.sqrt(np.mean(changes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--detail", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    given = parser.parse_args()
    pipe, photo = load_model(given.model, "cpu"), read_image(given.photo).rgb
    print("| clip | detail | same noise | new noise | bicubic |\n|---|---|---|---|---|")
    for name, speed in (("still", 0), ("panning", 1)):
        frames, moved = clip(photo, given.frames, speed), SCALE * speed
        plain = flicker([imresize(frame, SCALE) for frame in frames], moved)
        level = enlarge(pipe, Picture(frames[0]), Settings(steps=1)).level  # once for the clip, as for a film
        for detail in given.detail:
            found = []
            for seeds in ([0] * len(frames), range(len(frames))):
                settings = [Settings(seed=seed, detail=detail, clean=level) for seed in seeds]
                pairs = zip(frames, settings, strict=True)
                found.append(flicker([enlarge(pipe, Picture(frame), one).rgb for frame, one in pairs], moved))
            same, new = found
            print(f"| {name} | {detail:g} | {same:.2f} | {new:.2f} | {plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
