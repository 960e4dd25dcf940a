"""Whether small faces stay who they are:  python benchmarks/faces.py PHOTOS [-m MODEL ...] [--sheet faces.png]

The first twenty faces that dlib's detector finds in the pictures of a folder, by name. A picture whose face is more than 96
pixels high is reduced until it is 96. A square of two face heights around it is reduced to a quarter (faces of 12 to 24 pixels)
and enlarged by bicubic interpolation and by each MODEL (default: default), at detail 0 and at its own. dlib's network for
recognising faces turns each result, with the landmarks of the original, into 128 numbers. Printed is the mean distance to those
of the original, how many results lie below 0.6, where dlib takes two faces for one person, and how many are nearer to their own
original than to any other of the twenty.

Needs, in an environment of its own or here: pip install dlib-bin face_recognition_models "setuptools<81"
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import dlib
import face_recognition_models
import numpy as np
from PIL import Image

from samdiffsr import imresize
from samdiffsr.images import Picture, list_images, read_image
from samdiffsr.load import load_model
from samdiffsr.resize import SCALE
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.settings import Settings

FACES, HEIGHT, LEAST = 20, 96, 48
SURE = 0.4  # score of the detector


class Recogniser:
    """dlib's detector, landmarks and embedding."""

    def __init__(self) -> None:
        self._detect = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(face_recognition_models.pose_predictor_five_point_model_location())
        self._embed = dlib.face_recognition_model_v1(face_recognition_models.face_recognition_model_location())

    def boxes(self, rgb: np.ndarray) -> list[dlib.rectangle]:
        found, _, _ = self._detect.run(rgb, 0, SURE)
        return [box for box in found if box.height() >= LEAST]

    def landmarks(self, rgb: np.ndarray, box: dlib.rectangle) -> dlib.full_object_detection:
        return self._landmarks(rgb, box)

    def embed(self, rgb: np.ndarray, landmarks: dlib.full_object_detection) -> np.ndarray:
        return np.array(self._embed.compute_face_descriptor(np.ascontiguousarray(rgb), landmarks))


def faces(folder: Path, recogniser: Recogniser) -> Iterator[tuple[str, np.ndarray, dlib.full_object_detection]]:
    """(name, HR uint8 (S, S, 3), landmarks in it) of each face."""
    for file in list_images(folder):
        whole = read_image(file).rgb
        for box in recogniser.boxes(whole):
            factor = min(1.0, HEIGHT / box.height())
            size = (round(whole.shape[0] * factor), round(whole.shape[1] * factor))
            reduced = whole if factor == 1 else imresize(whole, size=size)
            left, top, right, bottom = (
                round(side * factor) for side in (box.left(), box.top(), box.right(), box.bottom())
            )
            side = min(2 * (bottom - top), *size) // SCALE * SCALE
            y = min(max(0, (top + bottom - side) // 2), size[0] - side)
            x = min(max(0, (left + right - side) // 2), size[1] - side)
            hr = np.ascontiguousarray(reduced[y : y + side, x : x + side])
            box_in_hr = dlib.rectangle(left - x, top - y, right - x, bottom - y)
            yield file.name, hr, recogniser.landmarks(hr, box_in_hr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("-m", "--model", action="append", help="as for `samdiffsr upscale`; may be repeated")
    parser.add_argument("--sheet", type=Path, help="a picture of all: a row for each face, original and results")
    given = parser.parse_args()
    recogniser = Recogniser()
    ways = {"bicubic": lambda lr: imresize(lr, SCALE)}
    for name in given.model or ["default"]:
        pipe = load_model(name)
        for detail in (0.0, None):
            way = f"{name}, detail {'as it is' if detail is None else detail}"
            settings = Settings(detail=detail)
            ways[way] = lambda lr, pipe=pipe, settings=settings: enlarge(pipe, Picture(lr), settings).rgb
    chosen = list(islice(faces(given.photos, recogniser), FACES))
    print(f"{len(chosen)} faces: {', '.join(name for name, _, _ in chosen)}")
    lrs = [imresize(hr, 1 / SCALE) for _, hr, _ in chosen]
    own = np.array([recogniser.embed(hr, landmarks) for _, hr, landmarks in chosen])
    rows = [[hr] for _, hr, _ in chosen]
    for name, way in ways.items():
        results = [way(lr) for lr in lrs]
        for row, result in zip(rows, results, strict=True):
            row.append(result)
        of_results = np.array([recogniser.embed(sr, one[2]) for sr, one in zip(results, chosen, strict=True)])
        distance = np.linalg.norm(of_results[:, None] - own[None], axis=2)
        same, first = distance.diagonal(), distance.argmin(axis=1) == np.arange(len(chosen))
        print(
            f"{name}: distance {same.mean():.3f}, {np.sum(same < 0.6)} below 0.6, {first.sum()} nearest to their own",
            flush=True,
        )
    if given.sheet:
        tiles = [
            [np.asarray(Image.fromarray(one).resize((192, 192), Image.Resampling.BICUBIC)) for one in row]
            for row in rows
        ]
        Image.fromarray(np.vstack([np.hstack(row) for row in tiles])).save(given.sheet)


if __name__ == "__main__":
    main()
