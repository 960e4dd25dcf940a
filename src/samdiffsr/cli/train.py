"""`samdiffsr train light-cpu --set photos=data --set output=run`: train the encoder, then the denoiser."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from samdiffsr.training.config import TrainConfig

Config = Annotated[
    str,
    typer.Argument(help="tiny, light-cpu, light, paper, a YAML file, or weights of a former run."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. diffusion.optim.updates=100.")
]
Stage = Annotated[Literal["all", "encoder", "diffusion"], typer.Option(help="Which stage to run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved configuration and the cost; train nothing.")
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("train")(train)


def train(
    config: Config, set: Set = None, stage: Stage = "all", resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Train on a prepared folder.

    --set photos=FOLDER is what `samdiffsr prepare` wrote; the finished model is in FOLDER/model of --set output=FOLDER.
    Several processes: torchrun --nproc-per-node=8 -m samdiffsr train ... (docs/training.md).
    """
    from samdiffsr.training.config import load_config

    settings = load_config(config, set or [])
    stages = ["encoder", "diffusion"] if stage == "all" else [stage]
    if dry_run:
        _print_plan(settings, stages)
    else:
        _train(settings, stages, resume)


def _train(settings: "TrainConfig", stages: list[str], resume: bool) -> None:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from samdiffsr.training.job import is_first, stop
    from samdiffsr.training.stages import new_objective, train_diffusion, train_encoder

    if len(stages) > 1:
        new_objective(settings, "diffusion")  # what stage 2 refuses shall be refused before stage 1 has been trained
    todo = {"encoder": train_encoder, "diffusion": train_diffusion}
    first = is_first(settings)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[told]}"), console=Console(stderr=True), disable=not first) as bar:
        for name in stages:
            part = getattr(settings, name)
            task = bar.add_task(name, total=part.optim.updates, told="")

            def update(number: int, record: dict[str, float], task=task, batch=part.data.batch) -> None:
                shown = [key for key in record if key in ("pixel", "features", "adversarial", "discriminator")]
                told = "  ".join(f"{key} {record[key]:.4f}" for key in shown)
                bar.update(task, completed=number, told=f"{batch / record['seconds']:.1f} images/s  {told}")

            result = todo[name](settings, resume=resume, progress=update)
            if first:
                typer.echo(f"{name}: {result}")
    stop()


def _print_plan(settings: "TrainConfig", stages: list[str]) -> None:
    import json

    import yaml

    from samdiffsr.training.cost import estimate_cost
    from samdiffsr.training.stages import new_objective

    typer.echo(yaml.safe_dump(json.loads(settings.model_dump_json()), sort_keys=False).rstrip())
    for name in stages:
        part = getattr(settings, name)
        cost = estimate_cost(new_objective(settings, name), part)
        typer.echo(
            f"# {name}: {cost.learning:,} parameters learn, {cost.frozen:,} are frozen; an update of {part.data.batch} crops "
            f"takes {cost.flop / 1e12:.3g} TFLOP and from {cost.memory / 2**30:.3g} GiB in one process, "
            f"all {part.optim.updates} updates {cost.flop * part.optim.updates / 1e15:.3g} PFLOP"
        )
