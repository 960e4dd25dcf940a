"""The report as one HTML page that needs nothing else: tables, and pictures to look at side by side (`report.html.jinja`)."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from samdiffsr.evaluation.metrics import METRICS
from samdiffsr.evaluation.report import (
    Document,
    image_metrics,
    image_table,
    protocol_lines,
    published_table,
    summary_table,
    timing_table,
)

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SIDE = 512
"""Larger pictures show their central window of this side."""
LIMIT = 24_000_000
"""Bytes of pictures in a page."""


def to_html(found: Document, pictures: dict[str, dict[str, np.ndarray]]) -> str:
    """The page.

    Args:
        found: see `report.document`.
        pictures: image -> label -> uint8 (H, W, 3) of one size; the first is the original. The page shows as many images as
            fit into `LIMIT`.
    """
    sections, size = [], 0
    for image, shown in pictures.items():
        section = _section(found, image, shown)
        size += sum(len(panel["data"]) for panel in section["panels"])
        if size > LIMIT:
            break
        sections.append(section)
    figures, timings = found["figures"], found["timings"]
    details = [
        (METRICS[name].label, figures["protocols"][name], image_table(found, name)) for name in image_metrics(found)
    ]
    published = (
        {"source": found["published"]["source"], "table": published_table(found)} if "published" in found else None
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        figures=figures,
        summary=summary_table(found),
        protocols=protocol_lines(found),
        notes=[f"{note}." for note in figures["notes"]],
        published=published,
        sections=sections,
        side=SIDE,
        details=[*details, ("Seconds and memory", timings["protocol"], timing_table(found))],
        setup=json.dumps(found["setup"], indent=1, ensure_ascii=False),
    )


def _section(found: Document, image: str, shown: dict[str, np.ndarray]) -> dict[str, Any]:
    """One image: where its crop starts, and a panel for each picture."""
    x, y = _busiest(_window(next(iter(shown.values()))))
    panels = [
        _panel(_window(picture)) | {"label": label, "caption": _caption(found, image, label)}
        for label, picture in shown.items()
    ]
    return {"image": image, "x": x, "y": y, "panels": panels}


def _window(picture: np.ndarray) -> np.ndarray:
    """The middle of a large picture."""
    top, left = (max(0, (side - SIDE) // 2) for side in picture.shape[:2])
    return picture[top : top + SIDE, left : left + SIDE]


def _busiest(picture: np.ndarray, side: int = 32) -> tuple[int, int]:
    """Column and row of the centre of the block whose grey levels vary most."""
    grey = picture.mean(axis=2)
    corners = [(y, x) for y in range(0, grey.shape[0], side) for x in range(0, grey.shape[1], side)]
    top, left = max(corners, key=lambda at: float(grey[at[0] : at[0] + side, at[1] : at[1] + side].std()))
    return left + side // 2, top + side // 2


def _panel(window: np.ndarray) -> dict[str, Any]:
    """Size and lossless WebP of a picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(window)).save(buffer, "WEBP", lossless=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"width": window.shape[1], "height": window.shape[0], "data": data}


def _caption(found: Document, image: str, label: str) -> list[str]:
    """The figures of one result; the originals have none."""
    for entry in found["figures"]["methods"]:
        if entry["method"] == label:
            values = entry["by_image"][image]
            return [f"{METRICS[n].label} {float(values[n]):.{METRICS[n].digits}f}" for n in values if "rgb" not in n]
    return []
