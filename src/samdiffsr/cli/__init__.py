"""The command line: `samdiffsr VERB ...`, one file per verb.

A verb is a module with `register(app)`, imported below. At import it may load typer and nothing heavier: torch, diffusers,
numpy, Pillow and rich belong inside its function, so that `samdiffsr --help` stays under 0.3 s.

Exit codes: 0 all done; 1 all but some photographs, each named with one sentence on stderr (upscale, masks), or something
found wrong (doctor); 2 an error the user can mend, one sentence on stderr; 130 interrupted.
"""

import io
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from samdiffsr import __version__
from samdiffsr.cli import convert, doctor, evaluate, export, masks, prepare, serve, train, upscale
from samdiffsr.cli.start import absent
from samdiffsr.devices import limit_threads
from samdiffsr.errors import SamDiffSRError

VERBS = (upscale, serve, masks, prepare, train, evaluate, convert, export, doctor)
"""In the order of `--help`."""

EXTRAS = {
    "accelerate": "train",
    "fastapi": "web",
    "python_multipart": "web",
    "uvicorn": "web",
    "pycocotools": "train",
    "pyarrow": "ray",
    "pydantic": "train",
    "pytorch_optimizer": "train",
    "tensorboard": "train",
    "ray": "ray",
    "yaml": "train",
    "transformers": "sam",
    "skimage": "sam",
    "scipy": "sam",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
}
"""Packages that a verb may miss, and the extra that brings each."""

OWN_EXTRAS = {("masks", "pycocotools"): "sam", ("train", "scipy"): "train"}
"""The extra to name instead for one verb: the one that brings all that this verb needs."""

NOT_NEEDED = ("transformers", "peft")
"""What diffusers imports wherever it is installed, and no verb but `masks` uses: seconds of each start."""

app = typer.Typer(
    name="samdiffsr",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help costs half the time of boxed help
    pretty_exceptions_enable=False,  # a bug must show Python's own traceback
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"samdiffsr {__version__}")
        raise typer.Exit()


@app.callback()
def samdiffsr(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Diffusion image super-resolution by a factor of 4."""


for _verb in VERBS:
    _verb.register(app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: run one command (sys.argv by default) and exit."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    limit_threads()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that is not UTF-8 must not end a verb at its last words
            stream.reconfigure(errors="backslashreplace")
    try:
        with absent(() if words[:1] == ["masks"] else NOT_NEEDED):
            app(args=words, prog_name="samdiffsr")
    except SamDiffSRError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = OWN_EXTRAS.get((words[0], package), EXTRAS[package])
        typer.echo(f'Error: {package} is not installed: pip install "samdiffsr[{extra}]".', err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
