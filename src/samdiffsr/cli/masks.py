"""`samdiffsr masks -i photos -o masks`: photographs to region masks, with SAM or without weights."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samdiffsr.cli.options import Cluster
from samdiffsr.errors import ConfigError, choose

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
Device = Annotated[str | None, typer.Option(metavar="NAME", help="sam: auto, cpu, cuda, mps ...  [default: auto]")]
Preview = Annotated[bool, typer.Option("--preview", help="Also write preview/<stem>.png and contact.png.")]
Shard = Annotated[
    str, typer.Option(metavar="I/N", help="Do only the I-th of N parts, 1/N to N/N; for N processes or machines.")
]
Workers = Annotated[int, typer.Option(min=1, metavar="N", help="Processes; each loads its own model.")]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Refuse photographs with more pixels.  [default: 64000000]")
]


def _number(metavar: str, told: str, default: float) -> Any:
    """An option whose default is the segmenter's own: None tells that it was not given."""
    return typer.Option(metavar=metavar, help=f"{told}  [default: {default}]")


# segment-anything's names; the defaults told are those of GeneratorOptions, which a test compares
PointsPerSide = Annotated[int | None, _number("N", "sam: points along each side.", 32)]
PointsPerBatch = Annotated[int | None, _number("N", "sam: points at once; fewer need less memory.", 64)]
PredIou = Annotated[float | None, _number("F", "sam: least IoU the model predicts of its mask.", 0.88)]
Stability = Annotated[float | None, _number("F", "sam: least stability score.", 0.95)]
StabilityOffset = Annotated[float | None, _number("F", "sam: offset for the stability score.", 1.0)]
BoxNms = Annotated[float | None, _number("F", "sam: box IoU above which masks are duplicates.", 0.7)]
CropLayers = Annotated[int | None, _number("N", "sam: layers of crops looked at besides the image.", 0)]
CropNms = Annotated[float | None, _number("F", "sam: the same as --box-nms-thresh between crops.", 0.7)]
CropOverlap = Annotated[float | None, _number("F", "sam: overlap of crops, part of the shorter side.", 0.3413)]
CropDownscale = Annotated[int | None, _number("N", "sam: points a side are divided by this each layer.", 1)]
MinRegion = Annotated[int | None, _number("N", "sam: fill holes and drop islands below this many pixels.", 0)]
Scale = Annotated[float | None, _number("F", "felzenszwalb: larger means larger regions.", 300)]
Sigma = Annotated[float | None, _number("F", "felzenszwalb: smoothing before, in pixels.", 0.8)]
MinSize = Annotated[int | None, _number("N", "felzenszwalb: regions of fewer pixels join a neighbour.", 200)]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("masks")(masks)


def masks(
    input: Input,
    output: Output,
    segmenter: Which = "auto",
    sam_model: Model = None,
    device: Device = None,
    preview: Preview = False,
    shard: Shard = "1/1",
    workers: Workers = 1,
    cluster: Cluster = None,
    max_pixels: MaxPixels = None,
    points_per_side: PointsPerSide = None,
    points_per_batch: PointsPerBatch = None,
    pred_iou_thresh: PredIou = None,
    stability_score_thresh: Stability = None,
    stability_score_offset: StabilityOffset = None,
    box_nms_thresh: BoxNms = None,
    crop_n_layers: CropLayers = None,
    crop_nms_thresh: CropNms = None,
    crop_overlap_ratio: CropOverlap = None,
    crop_n_points_downscale_factor: CropDownscale = None,
    min_mask_region_area: MinRegion = None,
    scale: Scale = None,
    sigma: Sigma = None,
    min_size: MinSize = None,
) -> None:
    """Find the regions of every photograph.

    Writes <stem>.json in the form of segment-anything; what is done already is kept.
    """
    given = {name: value for name, value in locals().items() if value is not None}  # only the options yet
    from samdiffsr.images import MAX_PIXELS
    from samdiffsr.masks.folder import make_masks, mask_folder

    recipe, part = _recipe(segmenter, given), _shard(shard)
    run = None
    if cluster:
        from samdiffsr.workers import on_cluster

        run = partial(on_cluster, cluster, make_masks, gpus=int((device or "").startswith("cuda")))
        input, output = input.absolute(), output.absolute()  # a worker has another working folder
    with _progress() as tell:
        report = mask_folder(
            input,
            output,
            recipe,
            preview=preview,
            shard=part,
            workers=workers,
            run=run,
            max_pixels=max_pixels or MAX_PIXELS,
            progress=tell,
        )
    typer.echo(f"{report.made} made, {report.kept} there before, {len(report.failed)} failed; masks in {output}")
    for _, why in report.failed:
        typer.echo(f"Error: {why}", err=True)
    if report.failed:
        raise typer.Exit(1)


_SAM_OPTIONS = (
    *("points_per_side", "points_per_batch", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset"),
    *("box_nms_thresh", "crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio", "crop_n_points_downscale_factor"),
    "min_mask_region_area",
)
_FELZENSZWALB_OPTIONS = ("scale", "sigma", "min_size")


def _recipe(segmenter: str, given: dict[str, Any]) -> "Recipe":
    """What the options ask for; an option of the other segmenter is an error."""
    choose(segmenter, {"auto": 0, "sam": 0, "felzenszwalb": 0}, "--segmenter")
    asked = segmenter
    if segmenter == "auto":
        segmenter = _automatic(given)
    foreign = ("sam_model", "device", *_SAM_OPTIONS) if segmenter == "felzenszwalb" else _FELZENSZWALB_OPTIONS
    for name in foreign:
        if name in given and not (name == "device" and asked == "auto"):
            raise ConfigError(f"--{name.replace('_', '-')} is no option of the segmenter {segmenter!r}; leave it out.")
    if segmenter == "felzenszwalb":
        from samdiffsr.masks.felzenszwalb import FelzenszwalbSegmenter

        return FelzenszwalbSegmenter(**{name: given[name] for name in _FELZENSZWALB_OPTIONS if name in given})
    from samdiffsr.masks.automatic import GeneratorOptions
    from samdiffsr.masks.sam import DEFAULT_MODEL, SamRecipe
    from samdiffsr.upscale import find_device

    return SamRecipe(
        given.get("sam_model", DEFAULT_MODEL),
        GeneratorOptions(**{name: given[name] for name in _SAM_OPTIONS if name in given}),
        str(find_device(given.get("device", "auto"))),
    )


def _automatic(given: dict[str, Any]) -> str:
    """Choose the segmenter and say so."""
    from samdiffsr.masks.sam import DEFAULT_MODEL, SIZES, find_model

    if "sam_model" in given:
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
        bar, begun = Progress(*columns, console=Console(stderr=True)), 0.0
        task = bar.add_task("")

        def tell(done: int, total: int) -> None:
            nonlocal begun
            if not total:
                return
            if not done:
                shown.enter_context(bar)
                begun = time.monotonic()
            bar.update(task, completed=done, total=total, description=_pace(done, total, time.monotonic() - begun))

        yield tell


def _pace(done: int, total: int, seconds: float) -> str:
    if not done or seconds <= 0:
        return ""
    left = timedelta(seconds=round(seconds * (total - done) / done))
    return f"{done / seconds:.2f} images/s, {left} left"
