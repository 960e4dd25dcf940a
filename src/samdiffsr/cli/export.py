"""`samdiffsr export -m default -o model.onnx`: a model as one ONNX file, or as networks with a runner that needs no torch."""

from pathlib import Path
from typing import Annotated

import typer

from samdiffsr.cli.options import Model, Overwrite
from samdiffsr.errors import ConfigError

Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="PATH", help="File, or folder with --networks.  [default: model.onnx, or networks]"
    ),
]
Networks = Annotated[
    bool,
    typer.Option("--networks", help="Make a folder of networks for any number of steps, and a script that runs them."),
]
Precision = Annotated[str, typer.Option(metavar="NAME", help="Of the weights: float32 or float16, half the size.")]
Scheduler = Annotated[
    str | None, typer.Option(metavar="NAME", help="lcm, ddim or ddpm.  [default: as the model was saved]")
]
Steps = Annotated[int | None, typer.Option(metavar="N", help="Sampling steps.  [default: as the model was saved]")]
Detail = Annotated[
    float | None, typer.Option(metavar="SHARE", help="As in upscale.  [default: as the model was saved]")
]
Clean = Annotated[
    float | None, typer.Option(metavar="LEVEL", help="As in upscale.  [default: estimated from each picture]")
]
Inputs = Annotated[
    bool, typer.Option("--inputs", help="Let callers of onnxruntime give noise, detail and clean; they have defaults.")
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("export")(export)


def export(
    output: Output = None,
    model: Model = "default",
    networks: Networks = False,
    precision: Precision = "float32",
    scheduler: Scheduler = None,
    steps: Steps = None,
    detail: Detail = None,
    clean: Clean = None,
    inputs: Inputs = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as one ONNX file: a picture in, one four times larger out.

    With --networks it becomes a folder: `python FOLDER/run_onnx.py in.png out.png` then upscales without torch.
    """
    given = {"--precision": precision != "float32", "--clean": clean is not None, "--inputs": inputs}
    for option in (name for name, wanted in given.items() if networks and wanted):
        raise ConfigError(f"{option} is for one file; leave it out with --networks.")
    from samdiffsr.export.image import export_image
    from samdiffsr.export.networks import export_networks
    from samdiffsr.load import load_model
    from samdiffsr.sampling.ranges import DETAIL, STEPS
    from samdiffsr.sampling.schedulers import use_scheduler

    pipe = load_model(model, "cpu")
    if scheduler is not None:
        use_scheduler(pipe, scheduler)
    if steps is not None:
        pipe.register_to_config(steps=STEPS.check(steps))
    if detail is not None:
        pipe.register_to_config(detail=DETAIL.check(detail))
    path = output or Path("networks" if networks else "model.onnx")
    if networks:
        export_networks(pipe, path, overwrite=overwrite)
    else:
        export_image(pipe, path, precision=precision, clean=clean, inputs=inputs, overwrite=overwrite)
    typer.echo(f"{path}")
