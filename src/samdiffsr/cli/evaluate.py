"""`samdiffsr evaluate --hr Set5/HR --lr Set5/LR -m default --baseline bicubic -o report`: score results and show them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samdiffsr.cli.options import MODELS, Device, Overwrite
from samdiffsr.files import make_folder

if TYPE_CHECKING:
    from samdiffsr.evaluation.methods import Method

NOTES = 8  # so many are printed; the report has all of them

HR = Annotated[
    Path | None,
    typer.Option("--hr", metavar="DIR", help="Folder of original images; without it --lr alone is judged."),
]
LR = Annotated[
    Path | None,
    typer.Option(
        "--lr", metavar="DIR", help="Their x1/4 images, of the same names.  [default: MATLAB's bicubic of HR]"
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for report.json, .md and .html.")]
Model = Annotated[
    list[str] | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL[@steps=N,scheduler=NAME,detail=F,clean=F,precision=NAME]",
        help=f"{MODELS}; repeatable.  [default: 'default', if nothing is given]",
    ),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option("--outputs", metavar="NAME=DIR", help="Results made elsewhere, x4, named like HR; repeatable."),
]
Baseline = Annotated[
    list[str] | None, typer.Option("--baseline", metavar="NAME", help="bicubic or lanczos; repeatable.")
]
Perceptual = Annotated[
    list[str] | None,
    typer.Option("--perceptual", metavar="NAME", help="lpips-alex, lpips-vgg, dists, squeeze or fid; repeatable."),
]
Border = Annotated[
    int,
    typer.Option(
        min=0, metavar="N", help="HR pixels that PSNR and SSIM cut from each side; SAM-DiffSR's own code cuts 0."
    ),
]
WeightsDir = Annotated[
    Path | None,
    typer.Option(
        "--weights-dir",
        metavar="DIR",
        help="Holds their weights; missing ones are downloaded into it.  [default: samdiffsr in the user's cache]",
    ),
]
Seeds = Annotated[str, typer.Option("--seeds", metavar="N,N,...", help="Seeds that models sample with, e.g. 0,1,2.")]
Pictures = Annotated[int, typer.Option(min=0, metavar="N", help="Images that the page shows, the first by name.")]
Published = Annotated[bool, typer.Option("--published", help="Add the paper's own figures, marked as quoted.")]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("evaluate")(evaluate)


def evaluate(
    *,
    output: Output,
    hr: HR = None,
    lr: LR = None,
    model: Model = None,
    outputs: Outputs = None,
    baseline: Baseline = None,
    perceptual: Perceptual = None,
    weights_dir: WeightsDir = None,
    border: Border = 4,
    seeds: Seeds = "0",
    pictures: Pictures = 6,
    published: Published = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Score models and other results against originals.

    PSNR, SSIM, LR-PSNR, LPIPS, FID and a page of pictures. Each figure has its protocol. Without originals (--lr alone):
    NIQE, LR-PSNR, blockiness, sharpness, and pictures of where the seeds disagree.
    """
    from samdiffsr.evaluation import benchmark, downloads, html, pairs, report

    numbers = _seeds(seeds)
    if hr is None:
        _refuse_without_originals(lr, outputs, perceptual, published)
        _claim(output, overwrite)
        assert lr is not None
        _judge(lr, output, model or ([] if baseline else ["default"]), baseline or [], numbers, device)
        return
    _claim(output, overwrite)
    found = pairs.find_pairs(hr, lr)
    if not (model or outputs or baseline):
        model = ["default"]
    rows, notes = _methods(baseline or [], outputs or [], model or [], [pair.name for pair in found], device)
    metrics = benchmark.load_metrics(perceptual or [], weights_dir or downloads.default_folder())
    with _bar() as progress:
        result = benchmark.run(
            found,
            rows,
            seeds=numbers,
            metrics=metrics,
            border=border,
            pictures=pictures,
            progress=progress,
        )
    result.notes += notes
    settings = {
        "hr": str(hr),
        "lr": "MATLAB's bicubic x1/4 of HR" if lr is None else str(lr),
        "models": model or [],
        "outputs": outputs or [],
        "baselines": baseline or [],
        "perceptual": perceptual or [],
        "border": border,
        "seeds": numbers,
        "device": device,
    }
    title = hr.resolve().parent.name if hr.name.upper() == "HR" else hr.resolve().name
    whole = report.document(result, rows, title=title, settings=settings, metrics=metrics, published=published)
    files = report.write_reports(whole, html.to_html(whole, result.pictures), output)
    typer.echo(report.markdown_table(report.summary_table(whole)) + "\n")
    for line in [*report.protocol_lines(whole), *(f"Note: {note}." for note in result.notes[:NOTES])]:
        typer.echo(line)
    if len(result.notes) > NOTES:
        typer.echo(f"{len(result.notes) - NOTES} more notes are in the report.")
    typer.echo(f"\n{', '.join(map(str, files))}")


def _refuse_without_originals(
    lr: Path | None, outputs: list[str] | None, perceptual: list[str] | None, published: bool
) -> None:
    from samdiffsr.errors import ConfigError

    if lr is None:
        raise ConfigError("There is nothing to evaluate; give --hr, or --lr alone to judge without originals.")
    given = {"--outputs": outputs, "--perceptual": perceptual, "--published": published}
    for option in (name for name, value in given.items() if value):
        raise ConfigError(f"{option} needs originals; give --hr, or leave it out.")


def _judge(lr: Path, output: Path, models: list[str], baselines: list[str], seeds: list[int], device: str) -> None:
    """Judge results without originals."""
    from samdiffsr.evaluation import blind
    from samdiffsr.images import list_images

    list_images(lr, distinct=True)  # before the models are loaded
    rows, _ = _methods(baselines, [], models, [], device)
    settings = {"lr": str(lr), "models": models, "baselines": baselines, "seeds": seeds, "device": device}
    with _bar() as progress:
        text, _ = blind.judge(lr, rows, seeds, output, settings=settings, progress=progress)
    typer.echo(text)
    typer.echo(str(output / "report.json"))


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, silent where that is no terminal: a function of results done and of all."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:  # rich before 15 prints an empty line for a bar that is disabled
        yield lambda done, total: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("evaluate", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _methods(
    baselines: list[str], outputs: list[str], models: list[str], names: list[str], device: str
) -> tuple[list["Method"], list[str]]:
    """The rows of the comparison, and notes on them."""
    from samdiffsr.evaluation import methods

    rows, notes = [methods.baseline(name) for name in baselines], []
    for given in outputs:
        row, others = methods.outputs(given, names)
        rows.append(row)
        if others:
            notes.append(f"{len(others)} images in the folder of {row.label!r} belong to no HR image")
    return [*rows, *(methods.model(spec, device) for spec in models)], notes


def _seeds(text: str) -> list[int]:
    from samdiffsr.errors import ConfigError

    words = text.split(",")
    if not all(word.isdecimal() and int(word) < 2**63 for word in words):
        raise ConfigError(f"seeds is {text!r}, but must be whole numbers from 0 with commas between, such as 0,1,2.")
    return [int(word) for word in words]


def _claim(folder: Path, overwrite: bool) -> None:
    """Make the report's folder before the work, and refuse to replace a report unasked."""
    from samdiffsr.errors import ConfigError
    from samdiffsr.evaluation.report import NAMES

    for file in (folder / name for name in NAMES):
        if not overwrite and os.path.lexists(file):
            raise ConfigError(f"'{file}' exists already; give --overwrite to replace it, or another folder.")
    make_folder(folder, error=ConfigError)
