"""`samdiffsr convert model.ckpt -o folder`: a released checkpoint to a folder with safe weights."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    Path, typer.Argument(metavar="FILE", help="model_ckpt_steps_N.ckpt, or the encoder's own rrdb_div2k.ckpt.")
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write; it must not exist.")]
Released = Annotated[
    bool, typer.Option("--released-preprocessing", help="Divide pixels by 256 as the released code did (darker).")
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("convert")(convert)


def convert(checkpoint: Checkpoint, output: Output, released_preprocessing: Released = False) -> None:
    """Turn a released checkpoint into a model folder.

    `samdiffsr upscale -m FOLDER` uses a model, `samdiffsr train --set diffusion.encoder=FOLDER` an encoder.
    """
    from samdiffsr.errors import ConfigError
    from samdiffsr.files import whole_folder
    from samdiffsr.released import load_any_released

    if output.exists():
        raise ConfigError(f"output {output} exists already; name a new folder.")
    model = load_any_released(checkpoint, released_preprocessing=released_preprocessing)
    with whole_folder(output, error=ConfigError) as fresh:
        model.save_pretrained(fresh)
    typer.echo(f"{output}")
