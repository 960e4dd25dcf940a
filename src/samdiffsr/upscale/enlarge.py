"""One picture larger: colours and transparency, any factor, the same mean colour."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from samdiffsr.errors import TooLargeError
from samdiffsr.images import MAX_PIXELS, Picture, to_8_bit, to_16_bit
from samdiffsr.images.metadata import with_run
from samdiffsr.resize import SCALE, imresize, imresize_rows
from samdiffsr.structure import draw_structure
from samdiffsr.upscale.settings import Settings
from samdiffsr.upscale.size import OutputSize, passes

if TYPE_CHECKING:
    from samdiffsr.sampling.upscaler import Upscaler

_LEVELS = 65_536
_ROUNDS = 12  # of back-projection
_STRIP = 2**21  # pixels of the result that are projected at once, but no fewer than `_BESIDE` rows of the input
_BESIDE = 24  # rows of the input that are seen on both sides of a strip
_ROWS = 256  # rows at once, where a copy of the whole picture is not needed
_PLAIN = 8.0  # standard deviation in grey levels below which a frame does not show how degraded a moving picture is


def enlarge(
    pipe: "Upscaler",
    picture: Picture,
    settings: Settings = Settings(),
    *,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[float], None] = lambda part: None,
    on_structure: Callable[[np.ndarray], None] | None = None,
) -> Picture:
    """The picture, larger, with the same depth, profile and metadata, the level of degradation that it was made with, and
    notes of what happened on the way.

    The network enlarges by 4, a second time if that is too little; bicubic reduction (MATLAB's, antialiased) leads from there
    to the size. The mean of each colour channel equals the input's, as far as black and white allow: the network's
    own is off by up to 1.1 levels of 255 (measured). Colours that no alpha shows are replaced by visible ones before.

    Args:
        max_pixels: the largest picture on the way can have 16 times as many pixels.
        on_progress: called with the part done, 0 to 1, after each tile of each network.
        on_structure: called with the structure map of the last enlargement, drawn as uint8 (H, W, 3) in the size of the
            result; of a moving picture with that of the first frame.

    Raises:
        ImageError: a size that does not suit the picture; TooLargeError: too many pixels or too little memory.
        ConfigError: no structure map where one is wanted, or steps that the model's scheduler cannot do.
    """
    shown = None if on_structure is None else lambda number, drawn: on_structure(drawn)
    given = {"max_pixels": max_pixels, "on_progress": on_progress, "on_structure": shown}
    return enlarge_together(pipe, [picture], settings, **given)[0]


def enlarge_together(
    pipe: "Upscaler",
    pictures: Sequence[Picture],
    settings: Settings = Settings(),
    *,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[float], None] = lambda part: None,
    on_structure: Callable[[int, np.ndarray], None] | None = None,
) -> list[Picture]:
    """`enlarge` for one picture, or for still ones of one size and depth, which the networks see together if they are small.

    `on_progress` gets the part of all of them that is done, `on_structure` the number of the picture too, from 0.
    """
    if pictures[0].animation is not None:
        of_first = None if on_structure is None else partial(on_structure, 0)
        return [_animated(pipe, pictures[0], settings, max_pixels, on_progress, of_first)]
    height, width = pictures[0].rgb.shape[:2]
    size = check_size(height, width, settings.output_size, max_pixels)
    lrs = [one.rgb if one.alpha is None else bleed(one.rgb, one.alpha) for one in pictures]
    warned: list[str] = []
    results = []
    try:
        arguments = settings.pipeline_arguments() | {"on_warning": warned.append}
        arguments["return_structure"] = on_structure is not None
        times = passes(height, width, size)
        made, structures, levels = _repeated(pipe, lrs, times, settings.seed, arguments, on_progress)
        for number, (picture, lr, level) in enumerate(zip(pictures, lrs, levels, strict=True)):
            if on_structure is not None:
                drawn = draw_structure(structures[number])
                on_structure(number, drawn if drawn.shape[:2] == size else imresize(drawn, size=size))
            rgb = made.pop(0)  # a large one is held by nothing else
            if rgb.shape[:2] != size:
                rgb = imresize(rgb, size=size)
            rgb = with_mean_of(lr, rgb)
            if settings.consistency:
                rgb = consistent(lr, rgb)
            alpha = None if picture.alpha is None else imresize(picture.alpha, size=size)
            rgb = rgb if picture.depth == 16 else to_8_bit(rgb)
            notes = tuple(dict.fromkeys((*picture.notes, *warned)))
            results.append(replace(picture, rgb=rgb, alpha=alpha, notes=notes, level=level))
        return results
    except (MemoryError, RuntimeError) as error:
        from samdiffsr.sampling.tiles import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        device = "memory" if str(pipe.device) == "cpu" else f"memory of {pipe.device}"
        raise TooLargeError(f"Not enough {device} to upscale {width}x{height} pixels; use a smaller image.") from error


def _animated(
    pipe: "Upscaler",
    picture: Picture,
    settings: Settings,
    max_pixels: int,
    on_progress: Callable[[float], None],
    on_structure: Callable[[np.ndarray], None] | None,
) -> Picture:
    """Every frame by itself, with the same noise and, where it is estimated, the level of the first frame that is not plain:
    equal frames stay equal. Nothing else ties one frame to the next."""
    assert picture.animation is not None
    frames = (replace(picture, animation=None), *picture.animation.later)
    head = next((number for number, frame in enumerate(frames) if is_telling(frame.rgb)), 0)
    results: dict[int, Picture] = {}
    for number in sorted(range(len(frames)), key=lambda number: number != head):
        results[number] = enlarge(
            pipe,
            frames[number],
            settings,
            max_pixels=max_pixels,
            on_progress=lambda part: on_progress((len(results) + part) / len(frames)),
            on_structure=None if number else on_structure,
        )
        if settings.clean is None and not settings.consistency:
            settings = replace(settings, clean=results[head].level)
    later = tuple(results[number] for number in range(1, len(frames)))
    notes = tuple(dict.fromkeys(note for result in (results[0], *later) for note in result.notes))
    return replace(results[0], notes=notes, animation=replace(picture.animation, later=later))


def is_telling(rgb: np.ndarray) -> bool:
    """Whether a frame (H, W, 3), uint8 or uint16, shows enough for its level of degradation to be estimated."""
    return bool(rgb.std() >= _PLAIN * np.iinfo(rgb.dtype).max / 255)


def shown_level(level: float | None) -> float | None:
    """A level of degradation as people and programs read it, in XMP, JSON and headers: to four decimals."""
    return None if level is None else round(level, 4)


def with_settings(picture: Picture, pipe: "Upscaler", settings: Settings) -> Picture:
    """The result with its settings in its XMP, see `used_settings`."""
    from samdiffsr import __version__

    values = {
        name: f"{value:g}" if isinstance(value, float) else value
        for name, value in used_settings(picture, pipe, settings).items()
    }
    return replace(picture, metadata=with_run(picture.metadata, f"samdiffsr {__version__}", values))


def used_settings(picture: Picture, pipe: "Upscaler", settings: Settings) -> dict[str, Any]:
    """The settings of a result by name; steps, detail, clean and precision as they were chosen where the settings leave it
    open. Those that do not apply are left out."""
    from samdiffsr.sampling.precision import type_name

    said = {
        "scale": settings.output_size.scale,
        "size": settings.size,
        "seed": settings.seed,
        "steps": settings.steps or pipe.config["steps"],
        "clean": shown_level(picture.level),
        "consistency": settings.consistency or None,
        "precision": type_name(pipe.computed_in(settings.precision)),
        "detail": pipe.config["detail"] if settings.detail is None else settings.detail,
    }
    return {name: value for name, value in said.items() if value is not None}


def check_size(height: int, width: int, output_size: OutputSize, max_pixels: int) -> tuple[int, int]:
    """Height and width of the result; TooLargeError if it, or what the network makes on the way, is too large."""
    size = output_size.of(height, width)
    times = SCALE ** passes(height, width, size)
    if height * width * times**2 > SCALE**2 * max_pixels:
        made, limit = f"{width * times}x{height * times}", f"16 times the limit of {max_pixels}"
        raise TooLargeError(
            f"Enlarging {width}x{height} pixels to {size[1]}x{size[0]} goes through {made}, above {limit}; "
            "ask for less or raise it with --max-pixels."
        )
    return size


def _repeated(
    pipe: "Upscaler",
    images: list[np.ndarray],
    times: int,
    seed: int,
    arguments: dict[str, Any],
    on_progress: Callable[[float], None],
) -> tuple[list[np.ndarray], Any, Sequence[float | None]]:
    """uint8 or uint16 (h, w, 3) of one size -> uint16, 4 times larger as often as asked; the last structure maps if they are
    asked for; and the levels of degradation that the first enlargement took the pictures to have."""
    import torch

    output: Any = None
    levels: Sequence[float | None] = [None] * len(images)

    work = [SCALE ** (2 * number) for number in range(times)]
    for number in range(times):

        def follow(part: float, number: int = number) -> None:
            on_progress((sum(work[:number]) + work[number] * part) / sum(work))

        noise = torch.Generator("cpu").manual_seed(seed)
        if number:
            arguments = arguments | {"clean": 0.0}  # it was cleaned before
        output = pipe(images, **arguments, generator=noise, on_progress=follow, output_type="uint16")
        images = output.images
        if number == 0 and output.levels:
            levels = output.levels
    return images, output.structures, levels


def bleed(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give the pixels whose alpha is 0 the mean colour of visible ones nearby, weighted by alpha; visible ones keep theirs.

    What a transparent pixel hides is arbitrary, often black or white, and would shine through as a fringe once the edge
    beside it has been enlarged. Means are taken in blocks of 2, 4, 8 ... pixels, the smallest block that has a visible one.

    Args:
        rgb: (H, W, 3).
        alpha: (H, W).

    Returns:
        Like rgb.
    """
    seen = alpha > 0
    if seen.all() or not seen.any():
        return rgb
    weight = alpha.astype(np.float32) / np.iinfo(alpha.dtype).max
    sums = [(rgb * weight[..., None], weight)]
    while not (sums[-1][1] > 0).all():
        sums.append((_halved(sums[-1][0]), _halved(sums[-1][1])))
    mean = sums[-1][0] / sums[-1][1][..., None]
    for total, weight in reversed(sums[:-1]):
        below = mean.repeat(2, axis=0).repeat(2, axis=1)[: len(weight), : weight.shape[1]]
        mean = np.where(weight[..., None] > 0, total / np.maximum(weight, 1e-12)[..., None], below)
    return np.where(seen[..., None], rgb, (mean + 0.5).astype(rgb.dtype))


def _halved(values: np.ndarray) -> np.ndarray:
    """Sums over blocks of 2x2; what is missing at the border counts as 0."""
    pad = [(0, values.shape[0] % 2), (0, values.shape[1] % 2), (0, 0)][: values.ndim]
    even = np.pad(values, pad)
    return even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]


def with_mean_of(lr: np.ndarray, sr: np.ndarray) -> np.ndarray:
    """Shift each channel of `sr` by a constant, so that its mean is that of `lr`, both (H, W, 3); uint16.

    Values stay within black and white; the constant takes that into account.
    """
    levels = np.arange(_LEVELS, dtype=np.float64)
    for channel in range(3):
        wanted = to_16_bit(lr[..., channel]).mean(dtype=np.float64)
        counts = np.zeros(_LEVELS, np.int64)
        for first in range(0, len(sr), _ROWS):
            counts += np.bincount(sr[first : first + _ROWS, :, channel].ravel(), minlength=_LEVELS)
        used = np.flatnonzero(counts)  # few in a small picture, where all of them would take half of the time
        shares = counts[used] / counts.sum()
        low, high = -float(_LEVELS), float(_LEVELS)
        for _ in range(24):  # bisection: the mean grows with the shift, not linearly where it meets black or white
            shift = (low + high) / 2
            mean = np.clip(used + shift, 0, _LEVELS - 1) @ shares
            low, high = (shift, high) if mean < wanted else (low, shift)
        table = (np.clip(levels + high, 0, _LEVELS - 1) + 0.5).astype(np.uint16)
        sr[..., channel] = table[sr[..., channel]]
    return sr


def consistent(lr: np.ndarray, sr: np.ndarray) -> np.ndarray:
    """Change `sr` so that bicubic reduction to the size of `lr` gives `lr` back: iterative back-projection with momentum.

    D reduces, U enlarges, both bicubic: x <- clip(x + a U(lr - D x) + b (x - x_before)). a and b are Polyak's for a D U whose
    eigenvalues lie between 0.22 and 1 (measured); five rounds then end below a quarter of a level. Where no picture between
    black and white reduces to `lr`, as with noise, it ends near one that almost does.

    This is done in strips, and takes memory for one: each is computed with so many rows around it that what lies beyond does
    not count. It gets the rounds that it needs itself, which moves pixels by up to half a grey level of 255.

    Args:
        lr: uint8 or uint16 (h, w, 3).
        sr: uint16 (H, W, 3); changed in place.
    """
    height = len(lr)
    rows = max(_BESIDE, _STRIP * height // sr[..., 0].size)
    above = sr[:0]  # the rows before the strip as they were
    for first in range(0, height, rows):
        top, after, bottom = max(0, first - _BESIDE), min(first + rows, height), min(first + rows + _BESIDE, height)
        lines = top, first, after, bottom, max(top, after - _BESIDE)
        start, here, end, last, following = (row * len(sr) // height for row in lines)
        window = np.concatenate([above, sr[here:last]])
        above = window[following - start : end - start].copy()
        _project(lr, window, (top, bottom), start, len(sr))
        sr[here:end] = window[here - start : end - start]
    return sr


def _project(lr: np.ndarray, strip: np.ndarray, rows: tuple[int, int], first: int, height: int) -> None:
    """`consistent` for one strip, in place: rows from `first` on of a result of `height`, and the rows of `lr` they show."""
    top, bottom = rows
    shown = first, first + len(strip)
    for channel in range(3):
        wanted = to_16_bit(lr[top:bottom, :, channel]).astype(np.float32)
        x = strip[..., channel].astype(np.float32)
        before = x
        for _ in range(_ROUNDS):
            missing = wanted - imresize_rows(x, lr.shape[:2], first=first, height=height, rows=rows)
            if np.abs(missing).max() < _LEVELS / 256 / 8:
                break
            size = height, strip.shape[1]
            moved = x + 1.85 * imresize_rows(missing, size, first=top, height=len(lr), rows=shown) + 0.13 * (x - before)
            x, before = np.clip(moved, 0, _LEVELS - 1), x
        strip[..., channel] = x + 0.5
