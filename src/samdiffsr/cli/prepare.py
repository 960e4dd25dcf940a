"""`samdiffsr prepare -i photos --masks masks -o data`: photographs and region masks to a training folder."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from samdiffsr.cli.options import Cluster, MaxPixels, Workers
from samdiffsr.data import MAX_SHIFT
from samdiffsr.errors import ConfigError
from samdiffsr.images.formats import MAX_PIXELS

if TYPE_CHECKING:
    from samdiffsr.data.prepare import PreparedFolder

Input = Annotated[Path, typer.Option("-i", "--input", metavar="DIR", help="Folder of HR photographs.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write, made if need be.")]
Masks = Annotated[
    Path | None,
    typer.Option("--masks", metavar="DIR", help="Folder of masks, <stem>.json as segment-anything's amg.py writes."),
]
Structure = Annotated[
    Path | None, typer.Option("--structure", metavar="DIR", help="Instead: folder of ready structure maps, <stem>.npy.")
]
OwnLr = Annotated[
    Path | None,
    typer.Option(
        "--lr",
        metavar="DIR",
        help="Folder of your own LR images, <stem> of any format, a quarter of the photographs' size.",
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--targets",
        metavar="NAME=DIR",
        help="Folder of an upscaler's results, <stem>.png, for the encoder to learn from.",
    ),
]
Encoding = Annotated[str, typer.Option(metavar="NAME", help="rope, cosine, sincos or linear.")]
MeanOver = Annotated[
    str, typer.Option(metavar="NAME", help="Mean of the encoding over the region (paper) or the image (released code).")
]
Overlap = Annotated[str, typer.Option(metavar="NAME", help="Where masks overlap: sum (paper) or last (released code).")]
Normalise = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Bring the values of each map to [0, 1] (unit), [-1, 1] (signed), or not (none)."
    ),
]
MissingMasks = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="zero: a photograph without regions gets an empty map, and no folder of regions is needed; else error.",
    ),
]
MaxShift = Annotated[
    float,
    typer.Option(metavar="F", help="Refuse an own LR image that is shifted by more LR pixels; inf accepts every pair."),
]
ResizeMasks = Annotated[bool, typer.Option("--resize-masks", help="Accept masks of another size than the photograph.")]
PerShard = Annotated[int, typer.Option(min=1, metavar="N", help="Photographs in a shard, at most.")]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("prepare")(prepare)


def prepare(
    input: Input,
    output: Output,
    masks: Masks = None,
    structure: Structure = None,
    lr: OwnLr = None,
    max_shift: MaxShift = MAX_SHIFT,
    targets: Targets = None,
    encoding: Encoding = "rope",
    mean_over: MeanOver = "region",
    overlap: Overlap = "sum",
    normalise: Normalise = "none",
    missing_masks: MissingMasks = "error",
    resize_masks: ResizeMasks = False,
    images_per_shard: PerShard = 64,
    max_pixels: MaxPixels = MAX_PIXELS,
    workers: Workers = 1,
    cluster: Cluster = None,
) -> None:
    """Make training data of photographs and their regions.

    Writes shards of HR, LR and structure map; what is done already is kept.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    from samdiffsr.data.example import PrepareOptions
    from samdiffsr.data.prepare import prepare_folder
    from samdiffsr.workers import in_processes

    regions, kind = _regions(masks, structure, missing_masks)
    folders = _folders(targets or [])
    options = PrepareOptions(
        encoding=encoding,  # pyright: ignore[reportArgumentType] - checked there
        mean_over=mean_over,  # pyright: ignore[reportArgumentType]
        overlap=overlap,  # pyright: ignore[reportArgumentType]
        normalise=normalise,  # pyright: ignore[reportArgumentType]
        missing_masks=missing_masks,  # pyright: ignore[reportArgumentType]
        resize_masks=resize_masks,
        max_pixels=max_pixels,
        max_shift=max_shift,
    )
    run = partial(in_processes, workers=workers)
    if cluster:
        from samdiffsr.workers import on_cluster

        run = partial(on_cluster, cluster)
        input, output = input.absolute(), output.absolute()  # a worker has another working folder
        folders = {name: folder.absolute() for name, folder in folders.items()}
        regions, lr = regions and regions.absolute(), lr and lr.absolute()
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("prepare", total=None, rate="")

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rate=f"{bar.tasks[0].speed or 0:.1f} images/s")

        made = prepare_folder(
            input,
            regions,
            output,
            kind=kind,
            options=options,
            targets=folders,
            lr=lr,
            images_per_shard=images_per_shard,
            run=run,
            progress=progress,
        )
    _report(made, output)


def _regions(
    masks: Path | None, structure: Path | None, missing_masks: str
) -> tuple[Path | None, Literal["masks", "structure", "none"]]:
    """The folder of regions and its kind; there may be none where missing masks are accepted."""
    if masks and structure:
        raise ConfigError("give one folder of regions: --masks MASKS or --structure MAPS.")
    if not (masks or structure or missing_masks == "zero"):
        raise ConfigError(
            "give a folder of regions, --masks MASKS or --structure MAPS; or, to fine-tune without, --missing-masks zero."
        )
    return masks or structure, "masks" if masks else "structure" if structure else "none"


def _report(made: "PreparedFolder", output: Path) -> None:
    typer.echo(
        f"{made.images} photographs in {made.shards} shards, {made.bytes / 1e6:.0f} MB, in {output}; "
        f"{made.without_masks} without masks, {made.resized_masks} with masks of another size."
    )
    if made.without_masks:
        typer.echo(
            f"Note: the structure map of {made.without_masks} photographs is zero (--missing-masks zero).", err=True
        )
    if made.unchecked:
        typer.echo(
            f"Note: {made.unchecked} LR images are too small or too plain to see whether they are shifted.", err=True
        )
    if made.leftovers:
        typer.echo(
            f"Warning: {made.leftovers} shards of earlier runs in {output} do not belong to it any more.", err=True
        )


def _folders(targets: list[str]) -> dict[str, Path]:
    """The folder of each name."""
    folders: dict[str, Path] = {}
    for option in targets:
        name, equals, folder = option.partition("=")
        if not (name and equals and folder):
            raise ConfigError(f"--targets {option!r} must have the form NAME=DIR.")
        if name in folders:
            raise ConfigError(f"--targets has two folders of the name {name!r}.")
        folders[name] = Path(folder)
    return folders
