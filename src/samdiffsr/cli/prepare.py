"""`samdiffsr prepare -i photos --masks masks -o data`: photographs and region masks to a training folder."""

from pathlib import Path
from typing import Annotated

import typer

Input = Annotated[Path, typer.Option("-i", "--input", help="Folder of HR photographs.")]
Masks = Annotated[
    Path, typer.Option("--masks", help="Folder of masks, <stem>.json as segment-anything's amg.py writes.")
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write, made if need be.")]
Encoding = Annotated[str, typer.Option(help="rope, cosine, sincos or linear.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("prepare")(prepare)


def prepare(input: Input, masks: Masks, output: Output, encoding: Encoding = "rope", workers: Workers = 1) -> None:
    """Write HR, LR and structure map of every photograph; what is done already is kept."""
    from rich.console import Console
    from rich.progress import Progress

    from samdiffsr.data.prepare import prepare_folder

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("prepare", total=None)
        count = prepare_folder(
            input,
            masks,
            output,
            workers=workers,
            options={"encoding": encoding},
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    typer.echo(f"{count} photographs in {output}")
