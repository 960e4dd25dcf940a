"""Scores of a half-trained model on a folder of HR images, and a panel of pictures to look at."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from samdiffsr.errors import ConfigError
from samdiffsr.evaluation.metrics import SqueezeDistance, psnr_y, ssim_y
from samdiffsr.images import list_images, read_image
from samdiffsr.resize import SCALE, imresize
from samdiffsr.training.config import ValidationConfig

PANEL_SIDE = 256  # HR pixels; larger ones would fill the disk over a long run

Upscale = Callable[[np.ndarray], np.ndarray]


def centre(image: np.ndarray, side: int) -> np.ndarray:
    """The central square of `side` pixels of (H, W, 3), or what there is of it, cut to multiples of 4."""
    height, width = (min(length, side) // SCALE * SCALE for length in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


class Validation:
    """The first images of a folder, by name; their LR is the exact MATLAB bicubic x1/4.

    Raises:
        ImageError: no such folder, or no image in it.
        ConfigError: an image is smaller than 32x32.
    """

    def __init__(self, config: ValidationConfig, photos: Path) -> None:
        self.config = config
        files = list_images(photos)[: config.images]
        self.hr = [centre(read_image(file).rgb, config.side) for file in files]
        for file, hr in zip(files, self.hr, strict=True):
            if min(hr.shape[:2]) < 32:
                raise ConfigError(f"image {file} of validation.photos is too small: it needs 32x32 pixels.")
        self.distance = SqueezeDistance() if config.distance else None

    def __call__(self, upscale: Upscale, accelerator: Accelerator) -> tuple[dict[str, float], np.ndarray | None]:
        """Mean scores and the panel, of `upscale`: uint8 (h, w, 3) -> (4h, 4w, 3). The processes share the images."""
        mine = range(accelerator.process_index, len(self.hr), accelerator.num_processes)
        found = dict(gather_object([(number, self._judge(upscale, self.hr[number], number)) for number in mine]))
        scores = [found[number][0] for number in range(len(self.hr))]
        rows = [row for number in range(len(self.hr)) if (row := found[number][1]) is not None]
        return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}, _stack(rows)

    def better(self, scores: dict[str, float], best: float | None) -> bool:
        """Whether `scores` beat the best so far."""
        score = scores[self.config.best]
        return best is None or (score < best if self.config.best == "distance" else score > best)

    def _judge(self, upscale: Upscale, hr: np.ndarray, number: int) -> tuple[dict[str, float], np.ndarray | None]:
        lr = imresize(hr, 1 / SCALE)
        sr = upscale(lr)
        scores = {"psnr_y": psnr_y(sr, hr), "ssim_y": ssim_y(sr, hr)}
        if self.distance is not None:
            scores["distance"] = self.distance(sr, hr)
        nearest = lr.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        row = np.hstack([centre(image, PANEL_SIDE) for image in (nearest, sr, hr)])
        return scores, row if number < self.config.panel else None


def _stack(rows: list[np.ndarray]) -> np.ndarray | None:
    """The rows below each other, the narrower ones filled with white."""
    width = max((row.shape[1] for row in rows), default=0)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.vstack(padded) if padded else None
