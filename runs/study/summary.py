"""From the scores of a setting to table.md, study.json, differences.svg and pictures/."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from samdiffsr.files import write_json, write_whole
from samdiffsr.structure import draw_structure

from arms import ARMS, CONTRASTS  # isort: skip - this folder
from heldout import METRICS, Photograph  # isort: skip

RESAMPLES = 5000
SHOWN = 4  # pictures of the largest differences
Scores = dict[str, dict[int, dict[str, dict[str, float]]]]
"""arm/map -> seed -> image -> metric -> score."""


def summarise(folder: Path, photographs: list[Photograph]) -> None:
    """Write all that can be said by now."""
    found: Scores = {}
    for file in sorted((folder / "scores").glob("*.json")):
        for row in json.loads(file.read_text(encoding="utf-8")):
            found.setdefault(f"{row['arm']}/{row['map']}", {}).setdefault(row["seed"], {})[row["image"]] = row
    order = [f"{arm}/{name}" for arm in ARMS for name in ARMS[arm].maps]
    found = {one: found[one] for one in order if one in found}
    pairs = [(one, _reference(one)) for one in found if one != _reference(one)] + list(CONTRASTS)
    means = [_means(one, seeds) for one, seeds in found.items()]
    differences = [_difference(found, *pair) for pair in pairs if set(pair) <= set(found)]
    differences = [one for one in differences if one]
    write_json({"means": means, "differences": differences}, folder / "study.json", indent=1)
    write_whole(table(means, differences).encode(), folder / "table.md")
    write_whole(_figure(differences).encode(), folder / "differences.svg")
    _pictures(folder, found, photographs)


def _reference(one: str) -> str:
    return f"{ARMS[one.partition('/')[0]].reference}/none"


def _means(one: str, seeds: dict[int, dict[str, dict[str, float]]]) -> dict:
    rows = [row for images in seeds.values() for row in images.values()]
    means = {key: _mean([row[key] for row in rows]) for key in (*METRICS, "map_error")}
    return {"of": one, "seeds": sorted(seeds)} | means


def _mean(values: list[float]) -> float | None:
    """Without NaN; None if nothing else is there."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval of paired differences (seeds, images): both are drawn anew, with replacement (NaN is left out).

    With few seeds the interval is too narrow, for it knows only them.
    """
    seeds, images = differences.shape
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(seeds, size=(RESAMPLES, seeds, 1)), rng.integers(images, size=(RESAMPLES, 1, images))
    known = ~np.isnan(differences)
    totals, counts = (one[rows, columns].sum(axis=(1, 2)) for one in (np.where(known, differences, 0), known))
    low, high = np.percentile(totals[counts > 0] / counts[counts > 0], [2.5, 97.5])
    return float(np.nanmean(differences)), float(low), float(high)


def _difference(found: Scores, one: str, other: str) -> dict | None:
    """`one` - `other` over the seeds that both have."""
    seeds = sorted(set(found[one]) & set(found[other]))
    if not seeds:
        return None
    images = sorted(found[one][seeds[0]])
    result: dict = {"of": one, "minus": other, "seeds": seeds, "images": len(images)}
    for key in METRICS:
        values = [[found[one][seed][image][key] - found[other][seed][image][key] for image in images] for seed in seeds]
        result[key] = interval(np.array(values))
        result[f"{key}_by_seed"] = np.nanmean(values, axis=1).tolist()
    return result


DIGITS = {"psnr_y": 3, "squeeze": 4, "lr_psnr": 2, "edge_border": 3, "edge_inside": 3}


def table(means: list[dict], differences: list[dict]) -> str:
    """Both as tables of Markdown."""
    head = "| arm / map | seeds | " + " | ".join(METRICS.values()) + " | error of the map |"
    lines = [head, "|" + "---|" * (len(METRICS) + 3)]
    for row in means:
        digits = DIGITS | {"map_error": 3}
        cells = ["" if row[key] is None else f"{row[key]:.{digits[key]}f}" for key in (*METRICS, "map_error")]
        lines.append(f"| {row['of']} | {len(row['seeds'])} | {' | '.join(cells)} |")
    lines += ["", "| difference | seeds | " + " | ".join(METRICS.values()) + " |", "|" + "---|" * (len(METRICS) + 2)]
    for row in differences:
        cells = [_cell(row[key], row[f"{key}_by_seed"], DIGITS[key]) for key in METRICS]
        lines.append(f"| {row['of']} - {row['minus']} | {len(row['seeds'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: tuple[float, float, float], by_seed: list[float], digits: int) -> str:
    """Mean and interval; in bold where the interval leaves 0 out and two or more seeds all say the same."""
    mean, low, high = value
    text = f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
    sure = (low > 0 or high < 0) and len(by_seed) > 1 and len(set(np.sign(by_seed))) == 1
    return f"**{text}**" if sure else text


ROW, LABEL, PANEL, GAP = 22, 270, 260, 80


def _figure(differences: list[dict]) -> str:
    """PSNR-Y and squeeze distance: a dot for the mean, a line for the interval, small ticks for the seeds."""
    height = ROW * (len(differences) + 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LABEL + 2 * (PANEL + GAP)} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="{height}" fill="white"/>',
    ]
    for number, row in enumerate(differences):
        y = ROW * (number + 2)
        parts.append(f'<text x="{LABEL - 10}" y="{y + 4}" text-anchor="end">{row["of"]} - {row["minus"]}</text>')
    for place, key in enumerate(("psnr_y", "squeeze")):
        left = LABEL + place * (PANEL + GAP)
        reach = max([1e-9, *(abs(value) for row in differences for value in (*row[key], *row[f"{key}_by_seed"]))])

        def at(value: float, left: float = left, reach: float = reach) -> float:
            return left + PANEL * (0.5 + 0.48 * value / reach)

        parts.append(f'<text x="{at(0)}" y="16" text-anchor="middle" font-weight="bold">{METRICS[key]}</text>')
        parts.append(f'<line x1="{at(0)}" x2="{at(0)}" y1="24" y2="{height - ROW}" stroke="#999"/>')
        parts += [
            f'<text x="{at(value)}" y="{height - 6}" text-anchor="middle" fill="#555">{value:+.3g}</text>'
            for value in (-reach, reach)
        ]
        for number, row in enumerate(differences):
            y, (mean, low, high) = ROW * (number + 2), row[key]
            parts.append(
                f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{y}" y2="{y}" stroke="#0b62a8" stroke-width="2"/>'
            )
            parts.append(f'<circle cx="{at(mean):.1f}" cy="{y}" r="4" fill="#0b62a8"/>')
            parts += [
                f'<line x1="{at(value):.1f}" x2="{at(value):.1f}" y1="{y - 6}" y2="{y + 6}" stroke="#c4561a"/>'
                for value in row[f"{key}_by_seed"]
            ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _pictures(folder: Path, found: Scores, photographs: list[Photograph]) -> None:
    """HR | none | paper with its own map | with the true one | that map, where either of these two differs most from none."""
    columns = [one for one in ("none/none", "paper/head", "paper/truth") if one in found]
    if len(columns) < 3:
        return
    seed = min(set.intersection(*(set(found[one]) for one in columns)), default=None)
    if seed is None:
        return
    scores = {one: found[one][seed] for one in columns}
    (folder / "pictures").mkdir(exist_ok=True)

    def differs(photograph: Photograph) -> float:
        none, *others = (scores[one][photograph.stem]["psnr_y"] for one in columns)
        return max(abs(other - none) for other in others)

    for rank, photograph in enumerate(sorted(photographs, key=differs, reverse=True)[:SHOWN], 1):
        files = [folder / "results" / f"{one.replace('/', '-')}-{seed}" / f"{photograph.stem}.png" for one in columns]
        row = [
            photograph.hr,
            *(np.asarray(Image.open(file)) for file in files),
            draw_structure(photograph.maps["truth"]),
        ]
        Image.fromarray(np.hstack(row)).save(folder / "pictures" / f"{rank}-{photograph.stem}.png")
