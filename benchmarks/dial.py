"""The dial between perception and distortion, measured and drawn:

    python benchmarks/dial.py HR LR docs/dial.svg [-m MODEL]

Runs `samdiffsr evaluate` for several values of `detail` and numbers of steps, and draws PSNR-Y against the squeeze distance.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DETAILS = (0, 0.25, 0.5, 0.7, 1, 1.25)
STEPS = (1, 2, 4)
COLOURS = {1: "#7a7a7a", 2: "#0b62a8", 4: "#c4561a"}
WIDTH, HEIGHT, MARGIN = 640, 400, 60

Points = dict[tuple[int, float], tuple[float, float]]


def measure(options: argparse.Namespace) -> Points:
    """(steps, detail) -> (PSNR-Y, squeeze distance)."""
    rows = [(steps, detail) for steps in STEPS for detail in DETAILS]
    models = [word for steps, detail in rows for word in ("-m", f"{options.model}@steps={steps},detail={detail}")]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "samdiffsr", "evaluate", "--hr", options.hr, "--lr", options.lr, *models]
        command += ["--perceptual", "squeeze", "--pictures", "0", "-o", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads((Path(folder) / "report.json").read_text())["figures"]["methods"]
    means = [entry["mean"] for entry in found]
    return {row: (mean["psnr-y"], mean["squeeze"]) for row, mean in zip(rows, means, strict=True)}


def draw(points: Points, title: str) -> str:
    """An SVG: distance to the right (worse), PSNR upwards (better), a line for each number of steps."""
    distances, psnrs = [d for _, d in points.values()], [p for p, _ in points.values()]
    low_x, high_x = min(distances) - 0.002, max(distances) + 0.002
    low_y, high_y = min(psnrs) - 0.1, max(psnrs) + 0.1

    def place(point: tuple[float, float]) -> tuple[float, float]:
        psnr, distance = point
        x = MARGIN + (distance - low_x) / (high_x - low_x) * (WIDTH - 2 * MARGIN)
        return round(x, 1), round(HEIGHT - MARGIN - (psnr - low_y) / (high_y - low_y) * (HEIGHT - 2 * MARGIN), 1)

    frame = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{frame[0]}" height="{frame[1]}" fill="none" stroke="#bbb"/>',
        f'<text x="{MARGIN}" y="30" font-size="15">{title}</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 15}" text-anchor="middle">squeeze distance (lower is better)</text>',
        f'<text transform="translate(18 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">PSNR-Y, dB</text>',
    ]
    for share in (0, 0.5, 1):
        distance, psnr = low_x + share * (high_x - low_x), low_y + share * (high_y - low_y)
        x, y = place((psnr, distance))
        parts.append(f'<text x="{x}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{distance:.3f}</text>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4}" text-anchor="end">{psnr:.2f}</text>')
    for number, steps in enumerate(STEPS):
        line = [place(points[steps, detail]) for detail in DETAILS]
        path = " ".join(f"{x},{y}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[steps]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{COLOURS[steps]}"/>' for x, y in line]
        if steps == 1:  # the default, and the uppermost line
            labels = zip(line, DETAILS, strict=True)
            parts += [
                f'<text x="{x - 6:.1f}" y="{y - 7:.1f}" text-anchor="end">{detail:g}</text>'
                for (x, y), detail in labels
            ]
        y = MARGIN + 20 + 18 * number
        parts.append(f'<text x="{MARGIN + 12}" y="{y}" fill="{COLOURS[steps]}">{_named(steps)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _named(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("hr", "lr"):
        parser.add_argument(name)
    parser.add_argument("drawing", type=Path)
    parser.add_argument("-m", "--model", default="default")
    options = parser.parse_args()
    points = measure(options)
    print("| detail | " + " | ".join(_named(steps) for steps in STEPS) + " |")
    for detail in DETAILS:
        cells = [f"{points[steps, detail][0]:.2f} / {points[steps, detail][1]:.4f}" for steps in STEPS]
        print(f"| {detail:g} | " + " | ".join(cells) + " |")
    options.drawing.write_text(draw(points, f"{Path(options.hr).parent.name}: detail from 0 to 1.25"))


if __name__ == "__main__":
    main()
