"""Random aligned crops a second of one core's time, from a prepared folder and from PNGs:  python benchmarks/data.py PREPARED

Crops of 160x160 HR pixels, orientated at random, as float tensors in [-1, 1] with LR and structure: what training gets.
The PNGs are some of the same images, written to a temporary folder first; there is no structure map to read with them.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from samdiffsr.data.dataset import JointCrop, PreparedPhotos, collate

BATCH = 16


def rate(examples: Callable[[int], object], batches: int) -> float:
    """Examples a second of processor time: the median of five rounds of `batches` batches, numbered on and on."""
    seconds = []
    for turn in range(5):
        started = time.process_time()
        for number in range(batches):
            examples((turn * batches + number) * BATCH)
        seconds.append(time.process_time() - started)
    return batches * BATCH / float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crop-lr", type=int, default=40)
    parser.add_argument("--pngs", type=int, default=32, help="images written as PNG for comparison")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def photos(candidates: int) -> PreparedPhotos:
        return PreparedPhotos(arguments.folder, crop_lr=arguments.crop_lr, candidates=candidates, flips=True)

    plain, textured = photos(1), photos(4)
    for number in range(len(plain.images)):  # read every byte once: a warm cache, as in all but the first epoch
        for array in plain.images[number]:
            array.max()
    from_shards = rate(lambda first: plain.batch(0, first, BATCH), 200)
    print(f"shards, plain sampling:         {from_shards:8.0f} crops/s")
    print(f"shards, best texture of 4:      {rate(lambda first: textured.batch(0, first, BATCH), 100):8.0f} crops/s")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number in np.random.default_rng(0).choice(len(plain.images), arguments.pngs).tolist():
            files.append(tuple(Path(folder) / f"{len(files)}.{part}.png" for part in ("hr", "lr")))
            for file, array in zip(files[-1], plain.images[number], strict=False):
                Image.fromarray(array).save(file)
        rng = np.random.default_rng(0)

        def from_pngs(first: int) -> None:
            crops = []
            for number in range(first, first + BATCH):
                hr, lr = (np.asarray(Image.open(file)) for file in files[number % len(files)])
                words = rng.integers(0, 2**32, 3).tolist()
                crop = JointCrop.draw(words, lr.shape[0], lr.shape[1], arguments.crop_lr, flips=True)
                crops.append((crop, (hr, lr, np.zeros(hr.shape[:2], np.float16))))
            collate(crops)

        png = rate(from_pngs, 4)
    print(f"PNGs of the same images:        {png:8.0f} crops/s: {from_shards / png:.0f} times slower")


if __name__ == "__main__":
    main()
