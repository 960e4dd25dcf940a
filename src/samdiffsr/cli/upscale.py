"""`samdiffsr upscale photos -o large`: make images larger."""

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from samdiffsr.cli.options import Cluster, Device, Model, with_settings
from samdiffsr.cli.start import load_quickly
from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.files import check_place
from samdiffsr.upscale.settings import FileSettings, Settings

if TYPE_CHECKING:
    from samdiffsr.upscale.batch import Progress, Report
    from samdiffsr.upscale.plan import Job

Places = Annotated[list[str] | None, typer.Argument(metavar="PATH", help="Inputs, the same as -i.", show_default=False)]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "-i",
        "--input",
        metavar="PATH",
        help="Image, film, folder of images or quoted pattern such as 'a*.png', with --cluster also a URI; repeatable.",
    ),
]
InputList = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="More inputs: a file of one path a line, or with --cluster also URIs; - is stdin."
    ),
]
Output = Annotated[
    str, typer.Option("-o", "--output", metavar="PATH", help="Folder, made if need be; for one input also a file.")
]
Recursive = Annotated[
    bool, typer.Option("-r", "--recursive", help="Folders within folders too, mirrored in the output.")
]
Suffix = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Added to each name in an output folder.  [default: _x4, or what was asked for]"),
]

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object for each image, as the HTTP API describes a job.")
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("upscale")(upscale)


@with_settings
def upscale(
    places: Places = None,
    *,
    input: Inputs = None,
    input_list: InputList = None,
    output: Output,
    model: Model = "default",
    settings: Settings,
    device: Device = "auto",
    recursive: Recursive = False,
    suffix: Suffix = None,
    files: FileSettings,
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    """Upscale images by 4, or to any size up to 16 times theirs.

    An output keeps its input's format if that can be written and can hold its transparency, and becomes PNG otherwise.
    A bad image does not end the batch: it is reported at the end, and the exit code is 1.
    """
    from samdiffsr.upscale.batch import Report
    from samdiffsr.upscale.plan import plan, read_list

    ending = settings.output_size.suffix if suffix is None else suffix
    inputs = [*(places or []), *(input or [])]
    if films := [place for place in inputs if _is_film(place)]:
        _refuse_beside_film(films[0], inputs, input_list, cluster, as_json)
        _film(films[0], output, ending, settings, files, model, device)
        return
    listed = read_list(input_list) if input_list else []
    if cluster is None:
        _refuse_uris(output, *inputs, *listed)
    how = partial(plan, recursive=recursive, format=files.format, skip_existing=files.skip_existing)
    jobs, report = how(inputs, output, ending, listed=listed), Report()
    _warn_of_ignored(jobs, output, files.quality, suffix)
    if cluster is None and not all(files.skip_existing and os.path.isfile(job.target) for job in jobs):
        check_place(Path(output), is_folder=jobs[0].target != output, error=ImageError)
    try:
        with _Bar() as bar:
            _work(cluster, jobs, settings, files, model, device, on_progress=bar.update, report=report)
    finally:  # also after Ctrl-C, and before an unknown model ends it
        _summarise(report, len(jobs))
        if as_json:
            _print_json(report, jobs, model, settings.seed)
    if report.failed:
        raise typer.Exit(1)


def _is_film(place: str) -> bool:
    from samdiffsr.upscale.video import is_film_name

    return is_film_name(place)


def _refuse_beside_film(
    film: str, inputs: list[str], input_list: str | None, cluster: str | None, as_json: bool
) -> None:
    if len(inputs) > 1 or input_list:
        raise ConfigError(f"'{film}' is a film, which is enlarged alone: give one input.")
    for option, given in (("--cluster", cluster), ("--json", as_json)):
        if given:
            raise ConfigError(f"'{film}' is a film, which does not take {option}; leave it out.")


def _film(
    source: str, output: str, suffix: str, settings: Settings, files: FileSettings, model: str, device: str
) -> None:
    """One film, with a bar that shows the time left."""
    from samdiffsr.upscale.batch import Progress
    from samdiffsr.upscale.video import WRITABLE, upscale_film

    if not output:
        raise ConfigError("The output has an empty name; give a folder or a file.")
    target = Path(output)
    if target.is_dir() or not target.suffix or output.endswith(("/", os.sep)):
        kept = Path(source).suffix if Path(source).suffix.lower() in WRITABLE else ".mkv"
        target = target / f"{Path(source).stem}{suffix}{kept}"
    with _Bar() as bar:
        warnings = upscale_film(
            lambda: load_quickly(model, device),
            Path(source),
            target,
            settings,
            files,
            model=model,
            on_progress=lambda part, made: bar.update(Progress(source, 1, 1, part, made)),
        )
    for warning in warnings:
        typer.echo(f"Note: '{source}': {warning}.", err=True)


def _refuse_uris(*paths: str) -> None:
    from samdiffsr.upscale.uris import is_uri

    for uri in filter(is_uri, paths):
        raise ConfigError(f"'{uri}' is a URI, which takes --cluster; --cluster local uses this machine's cores.")


def _warn_of_ignored(jobs: "list[Job]", output: str, quality: int | None, suffix: str | None) -> None:
    """Name the options that have no effect."""
    from samdiffsr.images import WRITABLE
    from samdiffsr.images.formats import QUALITIES
    from samdiffsr.upscale import uris

    ignored = []
    if quality is not None:
        endings = {os.path.splitext(uris.split(job.target)[0])[1].lower() for job in jobs}
        if not {WRITABLE[ending] for ending in endings} & QUALITIES:
            ignored.append("--quality is ignored, for no output is JPEG, WebP, AVIF or JPEG XL")
    if suffix is not None and len(jobs) == 1 and jobs[0].target == output:
        ignored.append("--suffix is ignored, for the output is one file")
    if ignored:
        typer.echo(f"Note: {'; '.join(ignored)}.", err=True)


def _work(
    cluster: str | None,
    jobs: "list[Job]",
    settings: Settings,
    files: FileSettings,
    model: str,
    device: str,
    **observers: Any,
) -> None:
    """Do the jobs here or there."""
    from samdiffsr.upscale.batch import upscale_files
    from samdiffsr.upscale.cluster import upscale_on_cluster, upscale_work

    if cluster is None:
        upscale_files(lambda: load_quickly(model, device), jobs, settings, files, **observers)
        return
    from samdiffsr.workers import on_cluster

    if device.startswith("cuda:"):
        raise ConfigError(f"--device is {device!r}, but on a cluster each worker has its own GPU; give cuda.")
    run = partial(on_cluster, cluster, upscale_work, gpus=int(device == "cuda"))
    device = "cpu" if device == "auto" else device
    upscale_on_cluster(run, jobs, settings, files, model=model, device=device, **observers)


class _Bar:
    """One progress bar on stderr for the whole batch, with megapixels a second and the time left; silent where stderr is
    no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),  # file names may contain [brackets]
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=1.0, speed="")
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._progress.disable:  # rich before 15 prints an empty line for a bar that is not shown
            self._progress.stop()

    def update(self, now: "Progress") -> None:
        """`on_progress` of `upscale_files`. The time left takes the images to come to be like those before."""
        place = f"{now.number}/{now.total} " if now.total > 1 else ""
        speed = now.megapixels / max(time.monotonic() - self._started, 1e-9)
        self._progress.update(
            self._task,
            completed=(now.number - 1 + now.part) / now.total,
            description=place + now.source.rpartition("/")[2],
            speed=f"{speed:.2f} MP/s",
        )


def _summarise(report: "Report", jobs: int) -> None:
    for source, note in report.notes:
        typer.echo(f"Note: '{source}': {note}.", err=True)
    for _, message in report.failed:
        typer.echo(f"Error: {message}", err=True)
    if jobs > 1 or report.skipped:
        counts = f"{len(report.done)} upscaled, {len(report.skipped)} skipped, {len(report.failed)} failed"
        left = jobs - len(report.done) - len(report.skipped) - len(report.failed)  # interrupted
        typer.echo(f"{counts}, {left} not finished." if left else f"{counts}.", err=True)


def _print_json(report: "Report", jobs: "list[Job]", model: str, seed: int) -> None:
    """One line for each image on stdout, with the names of `samdiffsr.web.app.describe`. What was not reached waits."""
    import json

    from samdiffsr.images import image_size
    from samdiffsr.upscale.enlarge import shown_level
    from samdiffsr.upscale.uris import is_uri

    errors, warnings = dict(report.failed), {}
    for source, note in report.notes:
        warnings.setdefault(source, []).append(note)
    states = dict.fromkeys(errors, "failed")
    states |= {job.source: "skipped" for job in report.skipped} | {job.source: "done" for job in report.done}
    targets = {
        job.source: job.target for job in [*report.skipped, *report.done]
    }  # a transparent image may be a PNG now
    for source in (job.source for job in jobs):
        state, target = states.get(source, "waiting"), targets.get(source)
        written = target if state == "done" and target is not None and not is_uri(target) else None
        width, height = image_size(written, max_pixels=2**62) if written else (None, None)
        found = {
            "source": source,
            "state": state,
            "target": target,
            "width": width,
            "height": height,
            "bytes": os.path.getsize(written) if written else None,
            "model": model,
            "seed": seed,
            "clean": shown_level(report.levels.get(source)),
            "warnings": warnings.get(source, []),
            "error": errors.get(source),
        }
        typer.echo(json.dumps(found))
