"""The results of a benchmark as one document, and the document as JSON and Markdown.

The same command gives the same `figures`; `timings` stand apart, and nothing carries a date.
"""

import json
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from samdiffsr import __version__
from samdiffsr.devices import device_name
from samdiffsr.errors import ConfigError
from samdiffsr.evaluation.benchmark import PerceptualMetrics, Result, Score, mean_and_deviation
from samdiffsr.evaluation.fid import FEW
from samdiffsr.evaluation.methods import Method
from samdiffsr.evaluation.metrics import METRICS
from samdiffsr.files import write_whole

FORMAT = 1
NAMES = ("report.json", "report.md", "report.html")
TIMING = (
    "wall clock of one result each, the first one's warm-up included, median over results; peak memory is that of the whole "
    "process with everything loaded, or of the GPU where there is one"
)
PAPER = {
    "source": "SAM-DiffSR, arXiv 2402.17133, 100 steps: the paper's own figures, quoted as printed and not measured here. The "
    "released code cuts no border (--border 0 here). Its images and FID settings may differ from those above.",
    "sets": ["Set5", "Set14", "Urban100", "BSD100", "Manga109", "General100", "DIV2K"],
    "figures": {
        "PSNR-Y (dB)": ["30.99", "27.14", "25.54", "26.47", "29.43", "30.30", "29.34"],
        "SSIM": ["0.8731", "0.7484", "0.7721", "0.7003", "0.8899", "0.8353", "0.8109"],
        "FID": ["48.20", "49.84", "4.53", "60.81", "2.40", "38.42", "0.381"],
    },
}
_FEW = (
    "of {count} images only: this FID shows the error of its own 2048 means more than the method, so compare it within this "
    "table only"
)
Document = dict[str, Any]


def document(
    result: Result,
    methods: Sequence[Method],
    *,
    title: str,
    settings: dict[str, Any],
    metrics: PerceptualMetrics,
    published: bool,
) -> Document:
    """Everything the reports say, ready for JSON: infinite values are the text "inf".

    Args:
        settings: the options of the command, kept as they are.
        published: add the paper's own table.
    """
    images = list(dict.fromkeys(score.image for score in result.scores))
    names = [name for name in METRICS if name in result.scores[0].values or (name == "fid" and result.fid)]
    setup = {
        "settings": settings,
        "methods": {method.label: method.record for method in methods},
        "images_sha256": result.images_sha256,
        "weights_sha256": metrics.weights,
        "versions": {
            "samdiffsr": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "numpy", "pillow")},
        },
        "machine": _machine(methods),
    }
    figures = {
        "title": title,
        "images": images,
        "border": result.border,
        "protocols": {name: METRICS[name].describe(result.border) for name in names},
        "marked": {"fid": _FEW.format(count=len(images))} if "fid" in names and len(images) < FEW else {},
        "methods": [_figures(method.label, result, names, images) for method in methods],
        "notes": result.notes,
    }
    found = {"format": FORMAT, "figures": figures, "setup": setup, "timings": _timings(result, methods)}
    return _plain(found | {"published": PAPER} if published else found)


def _figures(label: str, result: Result, names: Sequence[str], images: Sequence[str]) -> Document:
    """One method: mean and deviation over seeds of the means over images, and the means over seeds of each image."""
    scores = [score for score in result.scores if score.method == label]
    seeds = list(dict.fromkeys(score.seed for score in scores))

    def of(name: str, seed: int | None) -> float:
        if name == "fid":
            return result.fid[label, seed]
        return fmean(score.values[name] for score in scores if score.seed == seed)

    by_seed = {name: [of(name, seed) for seed in seeds] for name in names}
    summary = {name: mean_and_deviation(values) for name, values in by_seed.items()}
    return {
        "method": label,
        "seeds": [seed for seed in seeds if seed is not None],
        "mean": {name: mean for name, (mean, _) in summary.items()},
        "deviation": {name: deviation for name, (_, deviation) in summary.items() if deviation is not None},
        "by_seed": by_seed,
        "by_image": {image: _over_seeds([s for s in scores if s.image == image]) for image in images},
    }


def _over_seeds(scores: Sequence[Score]) -> dict[str, float]:
    return {name: fmean(score.values[name] for score in scores) for name in scores[0].values}


def _timings(result: Result, methods: Sequence[Method]) -> Document:
    timings = {}
    for method in methods:
        scores = [score for score in result.scores if score.method == method.label]
        images = dict.fromkeys(score.image for score in scores)
        by_image = {image: _cost([score for score in scores if score.image == image]) for image in images}
        timings[method.label] = _cost(scores) | {"by_image": by_image}
    return {"protocol": TIMING, "methods": timings}


def _cost(scores: Sequence[Score]) -> Document:
    """Medians of the times and the highest peak; None where nothing was timed or known."""
    seconds = [(score.seconds, score.megapixels) for score in scores if score.seconds is not None]
    peaks = [score.peak_bytes for score in scores if score.peak_bytes is not None]
    return {
        "seconds": median(s for s, _ in seconds) if seconds else None,
        "seconds_per_megapixel": median(s / m for s, m in seconds) if seconds else None,
        "peak_megabytes": round(max(peaks) / 1e6) if peaks else None,
    }


def _machine(methods: Sequence[Method]) -> Document:
    devices = sorted({method.device for method in methods})
    gpus = [device_name(torch.device(device)) for device in devices if device != "cpu"]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "devices": devices,
        "gpus": gpus,
    }


def _processor() -> str:
    """The processor's name from Linux, else from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value


def to_json(found: Document) -> str:
    """The document, indented, in the order it was made."""
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


Table = tuple[list[str], list[list[str]]]


def summary_table(found: Document) -> Table:
    """Header and rows: a method each, every metric, seconds an image, peak memory."""
    figures, timings = found["figures"], found["timings"]["methods"]
    header = ["method", *(_heading(found, name) for name in figures["protocols"]), "s an image", "peak MB"]
    rows = []
    for entry in figures["methods"]:
        cells = [_cell(name, entry["mean"][name], entry["deviation"].get(name)) for name in figures["protocols"]]
        rows.append([entry["method"], *cells, *_cost_cells(timings[entry["method"]])])
    return header, rows


def _cost_cells(cost: Document) -> tuple[str, str]:
    seconds, peak = cost["seconds"], cost["peak_megabytes"]
    return "" if seconds is None else f"{seconds:.3g}", "" if peak is None else str(peak)


def image_table(found: Document, name: str) -> Table:
    """Header and rows: an image each, every method, one metric."""
    methods = found["figures"]["methods"]
    rows = [
        [image, *(_cell(name, m["by_image"][image][name]) for m in methods)] for image in found["figures"]["images"]
    ]
    return ["image", *(m["method"] for m in methods)], rows


def timing_table(found: Document) -> Table:
    """Header and rows: an image each, seconds and peak megabytes of every method that made its results here."""
    timings = found["timings"]["methods"]
    made = [label for label, cost in timings.items() if cost["seconds"] is not None]
    header = ["image", *(f"{label}, {what}" for label in made for what in ("s", "peak MB"))]
    rows = [
        [image, *(cell for label in made for cell in _cost_cells(timings[label]["by_image"][image]))]
        for image in found["figures"]["images"]
    ]
    return header, rows


def image_metrics(found: Document) -> list[str]:
    """The metrics that single images have."""
    return [name for name in found["figures"]["protocols"] if name != "fid"]


def published_table(found: Document) -> Table:
    """The paper's figures: a set each."""
    quoted = found["published"]
    rows = [list(row) for row in zip(quoted["sets"], *quoted["figures"].values(), strict=True)]
    return ["quoted", *quoted["figures"]], rows


def protocol_lines(found: Document) -> list[str]:
    """How each column is computed, which are marked with *, and how seeds are summed up."""
    figures = found["figures"]
    lines = [f"{METRICS[name].label}: {text}." for name, text in figures["protocols"].items()]
    lines += [f"{METRICS[name].label}*: {text}." for name, text in figures["marked"].items()]
    seeds = sorted({seed for entry in figures["methods"] for seed in entry["seeds"]})
    if len(seeds) > 1:
        listed = ", ".join(map(str, seeds))
        lines.append(f"Models sampled with seeds {listed}: mean ± standard deviation (n - 1) over the seeds.")
    elif seeds:
        lines.append(f"Models sampled with seed {seeds[0]}.")
    return [*lines, f"Seconds and memory: {found['timings']['protocol']}."]


def to_markdown(found: Document) -> str:
    """The summary and its protocols, every image, the paper's table if asked for, and the settings."""
    figures = found["figures"]
    parts = [
        f"# {_literal(figures['title'])}",
        f"{len(figures['images'])} images.",
        markdown_table(summary_table(found)),
    ]
    parts.append("\n".join(f"- {_literal(line)}" for line in protocol_lines(found)))
    if figures["notes"]:
        parts += ["## Notes", "\n".join(f"- {_literal(note)}." for note in figures["notes"])]
    if "published" in found:
        parts += ["## Published, for orientation", _literal(found["published"]["source"])]
        parts.append(markdown_table(published_table(found)))
    parts.append("## Each image")
    for name in image_metrics(found):
        parts += [f"{_heading(found, name)}: {figures['protocols'][name]}.", markdown_table(image_table(found, name))]
    parts += [f"Seconds and memory: {found['timings']['protocol']}.", markdown_table(timing_table(found))]
    parts += ["## Settings", "```json\n" + json.dumps(found["setup"], indent=1, ensure_ascii=False) + "\n```"]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    header, rows = table
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(_literal, line)) + " |" for line in lines)


def _literal(text: str) -> str:
    """Text as Markdown shows it literally: file names may hold Markdown's own characters, and line breaks."""
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    for character in "\\|<*`[":
        text = text.replace(character, f"\\{character}")
    return text


def _heading(found: Document, name: str) -> str:
    metric = METRICS[name]
    star = "*" if name in found["figures"]["marked"] else ""
    return f"{metric.label}{star} {'↑' if metric.better == 'higher' else '↓'}"


def _cell(name: str, mean: float | str, deviation: float | None = None) -> str:
    digits = METRICS[name].digits
    spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
    return f"{float(mean):.{digits}f}{spread}"


def write_reports(found: Document, page: str, folder: Path) -> list[Path]:
    """report.json, report.md and report.html, each whole or not at all; ConfigError if one cannot be written."""
    files = []
    for name, text in zip(NAMES, (to_json(found), to_markdown(found), page), strict=True):
        file = folder / name
        # bytes of a file's name that are not UTF-8 become \udcXX, in JSON the escape of exactly that
        write_whole(text.encode(errors="backslashreplace"), file, error=ConfigError)
        files.append(file)
    return files
