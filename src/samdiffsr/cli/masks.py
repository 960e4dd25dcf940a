"""`samdiffsr masks -i photos -o masks`: photographs to region masks, with SAM or without weights."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samdiffsr.cli.options import Cluster, Device, MaxPixels, Set, Workers, key_values
from samdiffsr.errors import ConfigError, choose
from samdiffsr.images.formats import MAX_PIXELS
from samdiffsr.upscale.settings import from_text

if TYPE_CHECKING:
    from samdiffsr.masks.region import Recipe

Input = Annotated[Path, typer.Option("-i", "--input", metavar="DIR", help="Folder of photographs.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of masks, made if need be.")]
Which = Annotated[
    str,
    typer.Option(metavar="NAME", help="sam, felzenszwalb, or auto: sam if its weights are here, else felzenszwalb."),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="SAM, SAM-HQ or SAM 2: a folder, or a name on the Hugging Face hub.  [default: facebook/sam-vit-huge]",
    ),
]
Preview = Annotated[bool, typer.Option("--preview", help="Also write preview/<stem>.png and contact.png.")]
Shard = Annotated[
    str, typer.Option(metavar="I/N", help="Do only the I-th of N parts, 1/N to N/N; for N processes or machines.")
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("masks")(masks)


def masks(
    input: Input,
    output: Output,
    segmenter: Which = "auto",
    sam_model: Model = None,
    device: Device = "auto",
    preview: Preview = False,
    shard: Shard = "1/1",
    workers: Workers = 1,
    cluster: Cluster = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    set: Set = None,
) -> None:
    """Find the regions of every photograph.

    Writes <stem>.json in the form of segment-anything, and keeps masks that are there already. --set changes the segmenter's
    settings, such as points_per_side=64 of sam or scale=100 of felzenszwalb; a wrong key is answered with those there are.
    """
    from samdiffsr.masks.folder import make_masks, mask_folder

    recipe, part = _recipe(segmenter, sam_model, device, key_values(set or [])), _shard(shard)
    run = None
    if cluster:
        from samdiffsr.workers import on_cluster

        run = partial(on_cluster, cluster, make_masks, gpus=int(device.startswith("cuda")))
        input, output = input.absolute(), output.absolute()  # a worker has another working folder
    with _progress() as report_progress:
        report = mask_folder(
            input,
            output,
            recipe,
            preview=preview,
            shard=part,
            workers=workers,
            run=run,
            max_pixels=max_pixels,
            progress=report_progress,
        )
    typer.echo(f"{report.made} made, {report.kept} there before, {len(report.failed)} failed; masks in {output}")
    for _, why in report.failed:
        typer.echo(f"Error: {why}", err=True)
    if report.failed:
        raise typer.Exit(1)


def _recipe(segmenter: str, sam_model: str | None, device: str, given: dict[str, str]) -> "Recipe":
    """The segmenter that the options ask for; a setting of another one is an error."""
    choose(segmenter, dict.fromkeys(("auto", "sam", "felzenszwalb")), "--segmenter")
    wanted = _automatic(sam_model) if segmenter == "auto" else segmenter
    if wanted == "felzenszwalb":
        from samdiffsr.masks.felzenszwalb import FelzenszwalbSegmenter

        if segmenter != "auto" and (sam_model or device != "auto"):
            name = "--sam-model" if sam_model else "--device"
            raise ConfigError(f"{name} is no option of the segmenter 'felzenszwalb'; leave it out.")
        return from_text(FelzenszwalbSegmenter, given)
    from samdiffsr.devices import find_device
    from samdiffsr.masks.automatic import GeneratorOptions
    from samdiffsr.masks.sam import DEFAULT_MODEL, SamRecipe

    return SamRecipe(sam_model or DEFAULT_MODEL, from_text(GeneratorOptions, given), str(find_device(device)))


def _automatic(sam_model: str | None) -> str:
    """Choose the segmenter and report it."""
    from samdiffsr.masks.sam import DEFAULT_MODEL, SIZES, find_model

    if sam_model is not None:
        return "sam"
    if find_model(DEFAULT_MODEL):
        typer.echo(f"Segmenter: sam ({DEFAULT_MODEL}).", err=True)
        return "sam"
    typer.echo(
        f"Segmenter: felzenszwalb, for SAM's weights are not here (--segmenter sam downloads {DEFAULT_MODEL}, "
        f"{SIZES[DEFAULT_MODEL]}; --sam-model DIR takes a folder).",
        err=True,
    )
    return "felzenszwalb"


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise ConfigError(f"--shard is {text!r}, but must be I/N, for example 2/8.")
    return int(index), int(count)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first call: photographs done, images per second, time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("masks"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with contextlib.ExitStack() as shown:
        bar, started = Progress(*columns, console=Console(stderr=True)), 0.0
        task = bar.add_task("")

        def report_progress(done: int, total: int) -> None:
            nonlocal started
            if not total:
                return
            if not done:
                shown.enter_context(bar)
                started = time.monotonic()
            bar.update(task, completed=done, total=total, description=_pace(done, total, time.monotonic() - started))

        yield report_progress


def _pace(done: int, total: int, seconds: float) -> str:
    if not done or seconds <= 0:
        return ""
    left = timedelta(seconds=round(seconds * (total - done) / done))
    return f"{done / seconds:.2f} images/s, {left} left"
