"""The user's own LR images beside their photographs: which belong together, whether they fit, how far one is shifted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.images.formats import list_images
from samdiffsr.resize import SCALE, imresize

_WINDOW = 256  # side of the windows that are compared, in LR pixels
_LEAST_SIDE = 32  # of a window: in smaller ones chance decides (measured, docs/log.md)
_LEAST_TEXTURE = 2.0  # standard deviation of the luma in a window, in grey levels
_LOW = 0.25  # cycles a pixel, up to which frequencies count: above them are noise and what a blur took away
_STEP = 0.05  # LR pixels, resolution of the shift


@dataclass(frozen=True)
class Shift:
    """How far the content of one window lies from where it should, in LR pixels to the bottom and to the right.

    `agreement` is the peak of the phase correlation over the sum of its parts: 1 for equal windows; of unrelated ones about
    0.2, more in small windows.
    """

    down: float
    right: float
    agreement: float

    @property
    def size(self) -> float:
        """The larger of both."""
        return max(abs(self.down), abs(self.right))


def find_partners(photos: Path, names: Sequence[str], lr: Path) -> list[Path]:
    """The LR image of each photograph: the picture of the same stem, of any format.

    Raises:
        ConfigError: a photograph without LR image or an LR image without photograph; five are named.
        ImageError: no LR image, or two of one stem.
    """
    found = {path.stem: path for path in list_images(lr, distinct=True)}
    stems = {Path(name).stem for name in names}
    problems = [
        f"photograph {photos / name} has no LR image: {lr / Path(name).stem} of any format does not exist"
        for name in names
        if Path(name).stem not in found
    ]
    problems += [
        f"LR image {path} has no photograph: {photos / stem} of any format does not exist"
        for stem, path in found.items()
        if stem not in stems
    ]
    if problems:
        raise ConfigError(
            "; ".join(problems[:5]) + f"{'; and more' if problems[5:] else ''}. Add them or take them away."
        )
    return [found[Path(name).stem] for name in names]


def check_pair(photo: Path, hr: np.ndarray, partner: Path, lr: np.ndarray, max_shift: float) -> bool:
    """Refuse an LR image that is not a quarter of its photograph's size, shows something else, or is shifted.

    Args:
        hr: uint8 (H, W, 3). lr: uint8 (h, w, 3), to be H // 4 x W // 4.
        max_shift: in LR pixels; infinity accepts any.

    Returns:
        Whether both could be compared: not if they are smaller than 32 LR pixels or plain.

    Raises:
        ImageError: naming both files.
    """
    height, width = hr.shape[0] // SCALE, hr.shape[1] // SCALE
    if lr.shape[:2] != (height, width):
        raise ImageError(
            f"LR image {partner} is {lr.shape[1]}x{lr.shape[0]} pixels, but must be {width}x{height}: a quarter of "
            f"photograph {photo}, which is {hr.shape[1]}x{hr.shape[0]}."
        )
    if max_shift == math.inf:
        return True
    shifts = window_shifts(_luma(imresize(hr[: SCALE * height, : SCALE * width], 1 / SCALE)), _luma(lr))
    least = max(0.25, 16 / min(height, width, _WINDOW))
    clear = [shift for shift in shifts if shift.agreement >= least]
    if shifts and not clear:
        raise ImageError(
            f"LR image {partner} does not show the same picture as photograph {photo}, or is too noisy to say; "
            "look at both, and accept every pair with --max-shift inf if they belong together."
        )
    if clear and (worst := max(clear, key=lambda shift: shift.size)).size > max_shift:
        raise ImageError(
            f"LR image {partner} is shifted against photograph {photo} by {worst.right:+.2f} pixels to the right and "
            f"{worst.down:+.2f} down (of the LR image), more than {max_shift:g}: align both, or raise --max-shift."
        )
    return bool(clear)


def window_shifts(reference: np.ndarray, moved: np.ndarray) -> list[Shift]:
    """The shift of `moved` against `reference`, both (h, w), in the middle and in the corners, where there is texture.

    Several windows, because a lens or another zoom moves the corners and leaves the middle where it is.
    """
    side = min(_WINDOW, *reference.shape)
    if side < _LEAST_SIDE:
        return []
    rows, columns = ((0, length - side) for length in reference.shape)
    places = {(top, left) for top in rows for left in columns} | {(rows[1] // 2, columns[1] // 2)}
    shifts = []
    for top, left in sorted(places):
        one, other = (image[top : top + side, left : left + side] for image in (reference, moved))
        if one.std() >= _LEAST_TEXTURE:
            shifts.append(phase_correlation(one, other))
    return shifts


def phase_correlation(reference: np.ndarray, moved: np.ndarray) -> Shift:
    """The translation between two windows (S, S) (Kuglin and Hines, 1975): the peak of the inverse transform of the phase
    of their cross-power spectrum. Only the lower half of the frequencies counts; the peak is refined by a finer transform
    around it (Guizar-Sicairos et al., Optics Letters 33, 2008)."""
    side = len(reference)
    hann = np.hanning(side + 2)[1:-1]
    window = np.outer(hann, hann)
    one, other = (np.fft.fft2((image - image.mean()) * window) for image in (reference, moved))
    frequency = np.fft.fftfreq(side)
    cross = other * one.conj()
    size = np.abs(cross)
    low = np.hypot(frequency[:, None], frequency) < _LOW
    phase = low * cross / np.maximum(size, 1e-9 * max(size.max(), 1e-300))
    correlation = np.fft.ifft2(phase).real
    place = np.unravel_index(correlation.argmax(), correlation.shape)
    around = np.arange(-1, 1 + _STEP / 2, _STEP)
    down, right = ((int(start) + side // 2) % side - side // 2 + around for start in place)
    waves = [np.exp(2j * np.pi * np.outer(shift, frequency)) for shift in (down, right)]
    fine = (waves[0] @ phase @ waves[1].T).real
    best = np.unravel_index(fine.argmax(), fine.shape)
    agreement = float(fine.max() / max(np.abs(phase).sum(), 1e-300))
    return Shift(round(float(down[best[0]]), 2), round(float(right[best[1]]), 2), agreement)


def _luma(image: np.ndarray) -> np.ndarray:
    return image @ np.array([0.299, 0.587, 0.114])
