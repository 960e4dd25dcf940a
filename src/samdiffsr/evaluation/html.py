"""The report as one HTML page that needs nothing else: tables, and pictures to look at side by side (`page.html`)."""

import base64
import io
import json
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from samdiffsr.evaluation.metrics import METRICS
from samdiffsr.evaluation.report import (
    Document,
    Table,
    image_metrics,
    image_table,
    protocol_lines,
    published_table,
    summary_table,
    timing_table,
)

TEMPLATE = Path(__file__).with_name("page.html")
SIDE = 512
"""Larger pictures show their central window of this side."""
LIMIT = 24_000_000
"""Bytes of pictures in a page."""


def to_html(found: Document, pictures: dict[str, dict[str, np.ndarray]]) -> str:
    """The page.

    Args:
        found: see `report.document`.
        pictures: image -> what is shown -> uint8 (H, W, 3) of one size; the first is the original. As many images as fit
            into `LIMIT` are shown.
    """
    figures = found["figures"]
    sections, size = [], 0
    for image, shown in pictures.items():
        section = _section(found, image, shown)
        if size + len(section) > LIMIT:
            break
        sections.append(section)
        size += len(section)
    shown_text = (
        f"{len(sections)} of {len(figures['images'])} images, the first by name; the tables have all of them. Pixels are "
        f"lossless; of a picture larger than {SIDE}x{SIDE} you see the middle. LR has its pixels repeated. A crop begins where "
        "the original has the most detail. With several seeds, the picture is the first's and its figures are means."
    )
    parts = {
        "TITLE": escape(figures["title"]),
        "COUNT": f"{len(figures['images'])} images",
        "SUMMARY": _table(summary_table(found)) + _list(protocol_lines(found)),
        "NOTES": "<h2>Notes</h2>" + _list([f"{note}." for note in figures["notes"]]) if figures["notes"] else "",
        "PUBLISHED": _published(found) if "published" in found else "",
        "SHOWN": escape(shown_text),
        "PICTURES": "".join(sections),
        "IMAGES": _images(found),
        "SETUP": escape(json.dumps(found["setup"], indent=1, ensure_ascii=False)),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, content in parts.items():  # no content can hold a placeholder: all of it is escaped
        page = page.replace(f"<!--{name}-->", content)
    return page


def _section(found: Document, image: str, shown: dict[str, np.ndarray]) -> str:
    panels = "".join(_panel(found, image, label, picture) for label, picture in shown.items())
    side = 240  # of the overview, in pixels of its canvas
    overview = f'<figure><canvas class="map" width="{side}" height="{side}"></canvas><figcaption>overview</figcaption></figure>'
    x, y = _busiest(_window(next(iter(shown.values()))))
    start = f'tabindex="0" data-x="{x}" data-y="{y}"'
    return f'<section {start}><h3>{escape(image)}</h3><div class="panels">{overview}{panels}</div></section>\n'


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


def _panel(found: Document, image: str, label: str, picture: np.ndarray) -> str:
    window = Image.fromarray(np.ascontiguousarray(_window(picture)))
    buffer = io.BytesIO()
    window.save(buffer, "WEBP", lossless=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    img = (
        f'<img width="{window.width}" height="{window.height}" alt="{escape(f"{label}, {image}")}" '
        f'src="data:image/webp;base64,{data}">'
    )
    return (
        f'<figure><div class="view">{img}</div><figcaption><b>{escape(label)}</b>'
        f"{_caption(found, image, label)}</figcaption></figure>"
    )


def _caption(found: Document, image: str, label: str) -> str:
    """The figures of one result; those of the originals are none."""
    for entry in found["figures"]["methods"]:
        if entry["method"] == label:
            values = entry["by_image"][image]
            told = (f"{METRICS[n].label} {float(values[n]):.{METRICS[n].digits}f}" for n in values if "rgb" not in n)
            return "".join(f"<br><span>{escape(text)}</span>" for text in told)
    return ""


def _images(found: Document) -> str:
    """A table of every image for each metric, folded up, its protocol above it."""
    protocols = found["figures"]["protocols"]
    tables = [(METRICS[name].label, protocols[name], image_table(found, name)) for name in image_metrics(found)]
    tables.append(("Seconds and memory", found["timings"]["protocol"], timing_table(found)))
    return "".join(
        f'<details><summary>{escape(label)}</summary><p class="small">{escape(protocol)}</p>'
        f'<div class="wide">{_table(table)}</div></details>'
        for label, protocol, table in tables
    )


def _published(found: Document) -> str:
    source = escape(found["published"]["source"])
    return f'<h2>Published, for orientation</h2><p class="small">{source}</p>{_table(published_table(found))}'


def _table(table: Table) -> str:
    header, rows = table
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _list(lines: list[str]) -> str:
    return '<ul class="small">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
