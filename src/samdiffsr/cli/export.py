"""`samdiffsr export -m default -o folder`: a model as ONNX files, with a runner that needs no torch."""

from pathlib import Path
from typing import Annotated

import typer

from samdiffsr.cli.options import Model, Overwrite

Output = Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to make.")]
Scheduler = Annotated[
    str | None, typer.Option(metavar="NAME", help="lcm, ddim or ddpm.  [default: as the model was saved]")
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("export")(export)


def export(
    output: Output,
    model: Model = "default",
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as ONNX files.

    `python FOLDER/run_onnx.py in.png out.png` then upscales without torch.
    """
    from samdiffsr.export.to_onnx import export as write
    from samdiffsr.load import load_model
    from samdiffsr.sampling.schedulers import use_scheduler

    pipe = load_model(model, "cpu")
    if scheduler is not None:
        use_scheduler(pipe, scheduler)
    write(pipe, output, overwrite=overwrite)
    typer.echo(f"{output}")
