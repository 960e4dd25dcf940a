"""`samdiffsr train light-cpu --set photos=data --set output=run`: train the encoder, then the denoiser."""

from typing import Annotated, Literal

import typer

Config = Annotated[str, typer.Argument(help="A YAML file, or the name of a preset such as 'tiny' or 'light-cpu'.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. diffusion.optim.updates=100.")
]
Stage = Annotated[Literal["all", "encoder", "diffusion"], typer.Option(help="Which stage to run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("train")(train)


def train(config: Config, set: Set = None, stage: Stage = "all", resume: Resume = False) -> None:
    """Train on a prepared folder; the finished model is OUTPUT/model."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    from samdiffsr.training.config import load_config
    from samdiffsr.training.stages import train_diffusion, train_encoder

    settings = load_config(config, set or [])
    todo = {"encoder": train_encoder, "diffusion": train_diffusion}
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn(), TextColumn("{task.fields[terms]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for name, function in todo.items():
            if stage not in ("all", name):
                continue
            task = bar.add_task(name, total=getattr(settings, name).optim.updates, terms="")

            def update(number: int, record: dict[str, float], task=task) -> None:
                loss = "  ".join(f"{key} {record[key]:.4f}" for key in record if key in ("pixel", "features"))
                bar.update(task, completed=number, terms=loss)

            result = function(settings, resume=resume, progress=update)
            typer.echo(f"{name}: {result}")
