"""`samdiffsr train light-cpu --set photos=data --set output=run`: train the encoder, then the denoiser."""

import json
import math
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from samdiffsr.cli.options import Set

if TYPE_CHECKING:
    from samdiffsr.training.config import TrainConfig

Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="tiny, light-cpu, light, paper, released, finetune, a YAML file, or the .safetensors of an earlier run.",
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        help="Train this model further: default, a pipeline folder or user/repo; the same as --set start=MODEL.",
    ),
]
Stage = Annotated[
    Literal["all", "encoder", "diffusion"],
    typer.Option(metavar="NAME", help="Which stage to run: all, encoder or diffusion."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
StopAfter = Annotated[
    float | None,
    typer.Option(min=0, metavar="MINUTES", help="Save a checkpoint and stop after so long; --resume goes on."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved configuration and the cost; train nothing.")
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("train")(train)


def train(
    config: Config,
    set: Set = None,
    model: Start = None,
    stage: Stage = "all",
    resume: Resume = False,
    stop_after: StopAfter = None,
    dry_run: DryRun = False,
) -> None:
    """Train on a prepared folder.

    --set photos=DATA names the folder that `samdiffsr prepare` wrote, --set output=RUN the folder to write: the model
    is RUN/model.
    Several processes: torchrun --nproc-per-node=8 -m samdiffsr train ... (docs/training.md).
    """
    deadline = math.inf if stop_after is None else time.monotonic() + 60 * stop_after
    from samdiffsr.training.config import load_config

    settings = load_config(config, [*([] if model is None else [f"start={json.dumps(model)}"]), *(set or [])])
    stages = ["encoder", "diffusion"] if stage == "all" else [stage]
    if "diffusion" in stages and settings.diffusion.warning:
        typer.echo(f"Warning: {settings.diffusion.warning}.", err=True)
    for name in stages:
        _warn_of_slow_precision(settings, name)
    if dry_run:
        _print_plan(settings, stages)
    else:
        _train(settings, stages, resume, deadline)


def _warn_of_slow_precision(settings: "TrainConfig", stage: str) -> None:
    import torch

    from samdiffsr.sampling.precision import is_emulated
    from samdiffsr.training.run import on_cpu

    precision = getattr(settings, stage).optim.precision
    if on_cpu(settings) and is_emulated(precision, torch.device("cpu")):
        typer.echo(
            f"Warning: this processor has no instructions for {precision}, so training takes about ten times as long as in "
            f"float32: --set {stage}.optim.precision=float32.",
            err=True,
        )


def _train(settings: "TrainConfig", stages: list[str], resume: bool, deadline: float) -> None:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from samdiffsr.training.run import check, is_first, leave, train_diffusion, train_encoder

    check(settings, stages)
    trainers = {"encoder": train_encoder, "diffusion": train_diffusion}
    first = is_first(settings)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, TextColumn("{task.fields[losses]}"), console=Console(stderr=True), disable=not first
    ) as bar:
        for name in stages:
            part = getattr(settings, name)
            task = bar.add_task(name, total=part.optim.updates, losses="")
            done = 0

            def show(update: int, record: dict[str, float], task=task, batch=part.data.batch) -> None:
                nonlocal done
                done = update
                shown = [key for key in record if key in ("pixel", "features", "adversarial", "discriminator")]
                losses = "  ".join(f"{key} {record[key]:.4f}" for key in shown)
                bar.update(task, completed=update, losses=f"{batch / record['seconds']:.1f} images/s  {losses}")

            result = trainers[name](settings, resume=resume, on_update=show, deadline=deadline)
            if first and result is not None:
                typer.echo(f"{name}: {result}")
            if result is None:
                if first:
                    typer.echo(
                        f"{name}: stopped after update {done} of {part.optim.updates}; the same command with --resume goes on."
                    )
                break
    leave()


def _print_plan(settings: "TrainConfig", stages: list[str]) -> None:
    import yaml

    from samdiffsr.training.cost import estimate_cost
    from samdiffsr.training.run import check

    prepared = settings.photos.exists()
    objectives = check(settings, stages, photos=prepared)
    typer.echo(yaml.safe_dump(json.loads(settings.model_dump_json()), sort_keys=False).rstrip())
    if not prepared:
        typer.echo(f"# photos: folder {settings.photos} does not exist yet; whether it fits has not been checked")
    for name, objective in objectives.items():
        part = getattr(settings, name)
        cost = estimate_cost(objective, part)
        typer.echo(
            f"# {name}: {cost.learning:,} parameters learn, {cost.frozen:,} are frozen; an update of {part.data.batch} crops "
            f"takes {cost.flop / 1e12:.3g} TFLOP and from {cost.memory / 2**30:.3g} GiB in one process, "
            f"all {part.optim.updates} updates {cost.flop * part.optim.updates / 1e15:.3g} PFLOP"
        )
