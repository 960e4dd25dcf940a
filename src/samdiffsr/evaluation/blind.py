"""Judge results without originals: how natural, how true to the input, how blocky, how sharp, and where seeds disagree.

samdiffsr evaluate --lr photos -m default --baseline bicubic --seeds 0,1,2 -o report
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.evaluation.methods import Method
from samdiffsr.evaluation.metrics import Metric, lr_psnr, luma
from samdiffsr.evaluation.niqe import niqe
from samdiffsr.evaluation.pairs import Images, read_pixels
from samdiffsr.files import write_json, write_whole
from samdiffsr.images import Picture, list_images, write_image
from samdiffsr.resize import SCALE

GAIN = 8
"""Grey levels of the saved picture for one level of disagreement: white is 32 levels and more."""

_BLOCK = 8 * SCALE  # pixels of the result between two edges of the input's JPEG blocks
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "niqe",
            "NIQE",
            "lower",
            2,
            "the paper's features and distance, parameters fitted to 31 free photographs: compare within this table only",
        ),
        Metric("lr-psnr", "LR-PSNR (dB)", "higher", 2, "RGB PSNR between the result shrunk to 8 bit and the LR input"),
        Metric(
            "blockiness",
            "blockiness",
            "lower",
            3,
            f"steps of Y across the edges of the input's 8x8 JPEG blocks (every {_BLOCK} pixels) over those beside; 1 is none",
        ),
        Metric(
            "sharpness", "sharpness", "higher", 2, "mean difference of Y between neighbours, in levels; noise raises it"
        ),
        Metric(
            "disagreement",
            "disagreement",
            "lower",
            2,
            "standard deviation of a pixel over the seeds (n - 1), root mean square over R, G, B and pixels, in levels",
        ),
    )
}


def blockiness(image: np.ndarray, period: int = _BLOCK) -> float:
    """Mean step of Y across the edges of blocks, over the mean step at the neighbouring places; 1 without blocks.

    Args:
        image: uint8 (H, W, 3) of more than `period` + 1 pixels a side.
        period: pixels between edges, the first one at `period`.

    Raises:
        ImageError: a smaller picture.
    """
    if min(image.shape[:2]) < period + 2:
        raise ImageError(
            f"Blockiness needs {period + 2} pixels a side, but the image is {image.shape[1]}x{image.shape[0]}."
        )
    edges, beside = [], []
    for steps in (np.abs(np.diff(luma(image), axis=axis)).swapaxes(0, axis) for axis in (0, 1)):
        places = np.arange(period - 1, len(steps) - 1, period)  # step i lies between pixels i and i + 1
        edges.append(steps[places].ravel())
        beside += [steps[places - 1].ravel(), steps[places + 1].ravel()]
    return float(np.concatenate(edges).mean() / max(np.concatenate(beside).mean(), 1e-6))


def sharpness(image: np.ndarray) -> float:
    """Mean difference of Y between neighbours, in levels, of a uint8 (H, W, 3) picture of at least 2x2 pixels."""
    grey = luma(image)
    return float(np.mean([np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1)]))


def disagreement(results: Sequence[np.ndarray]) -> np.ndarray:
    """Standard deviation of each pixel over results of different seeds (n - 1), root mean square over the channels.

    Args:
        results: two or more, uint8 or uint16 (H, W, 3) of one size.

    Returns:
        float32 (H, W) in levels of the results' own depth.
    """
    if len(results) < 2:
        raise ConfigError(f"Disagreement needs results of at least 2 seeds, got {len(results)}.")
    mean = np.zeros(results[0].shape, np.float32)
    squares = np.zeros_like(mean)
    for number, result in enumerate(results, 1):  # Welford's: no stack of all results
        off = result.astype(np.float32) - mean
        mean += off / number
        squares += off * (result - mean)
    return np.sqrt(squares.mean(axis=2) / (len(results) - 1))


def as_picture(levels: np.ndarray) -> Picture:
    """Disagreement in 8-bit levels (H, W) as a grey picture: black where all agree, white from 32 levels on."""
    grey = np.minimum(levels * GAIN + 0.5, 255).astype(np.uint8)
    return Picture(np.dstack([grey] * 3), grey=True)


def judge(
    folder: Path,
    methods: Sequence[Method],
    seeds: Sequence[int],
    output: Path,
    *,
    settings: dict[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, list[str]]:
    """Run every method on every image of a folder, and write report.json, report.md and the pictures of disagreement.

    Returns:
        The report as Markdown, and its notes.

    Raises:
        ImageError: no image in the folder, one that cannot be read.
    """
    files = list_images(folder, distinct=True)
    scores: list[dict[str, Any]] = []
    notes: list[str] = []
    for number, file in enumerate(files):
        lr, found = read_pixels(file)
        notes += found
        hr = np.broadcast_to(np.uint8(0), (SCALE * lr.shape[0], SCALE * lr.shape[1], 3))  # only its size counts
        images = Images(file.stem, hr, lr, ())
        for place, method in enumerate(methods):
            results = [method.run(images, seed)[0] for seed in (seeds if method.sampled else seeds[:1])]
            values = {"lr-psnr": fmean(lr_psnr(sr, lr) for sr in results), "sharpness": fmean(map(sharpness, results))}
            for name, measure in (("niqe", niqe), ("blockiness", blockiness)):
                try:
                    values[name] = fmean(map(measure, results))
                except ImageError as error:  # the picture is small: it has the other figures
                    notes.append(f"'{file.name}': {str(error).rstrip('.')}")
            if len(results) > 1:
                deviation = disagreement(results)
                values["disagreement"] = float(np.sqrt((deviation**2).mean()))
                picture = output / f"{file.stem}_{_plain(method.label)}_disagreement.png"
                write_image(as_picture(deviation), picture)
            scores.append({"method": method.label, "image": file.stem, "values": values})
            if progress:
                progress(number * len(methods) + place + 1, len(files) * len(methods))
    means = {method.label: _means(scores, method.label) for method in methods}
    if len(seeds) < 2 and any(method.sampled for method in methods):
        notes.append("disagreement needs several seeds, such as --seeds 0,1,2")
    notes = list(dict.fromkeys(notes))
    text = _markdown(means, notes)
    write_json(
        {
            "settings": settings,
            "protocol": {name: metric.protocol for name, metric in METRICS.items()},
            "methods": {method.label: method.record for method in methods},
            "means": means,
            "scores": scores,
            "notes": notes,
        },
        output / "report.json",
        indent=1,
    )
    write_whole(text.encode(), output / "report.md")
    return text, notes


def _plain(label: str) -> str:
    """A method's label as a part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-.=," else "_" for letter in label)


def _means(scores: list[dict[str, Any]], label: str) -> dict[str, float]:
    rows = [score["values"] for score in scores if score["method"] == label]
    found = {name: [row[name] for row in rows if name in row] for name in METRICS}
    return {name: fmean(values) for name, values in found.items() if values}


def _markdown(means: dict[str, dict[str, float]], notes: list[str]) -> str:
    metrics = METRICS.values()
    lines = [f"| method | {' | '.join(metric.label for metric in metrics)} |", "|---" * (len(METRICS) + 1) + "|"]
    for label, values in means.items():
        cells = [f"{values[metric.name]:.{metric.digits}f}" if metric.name in values else "-" for metric in metrics]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", *(f"- {metric.label}: {metric.protocol}; mean over images and seeds." for metric in metrics)]
    lines += [f"- Note: {note}." for note in notes]
    return "\n".join(lines) + "\n"
