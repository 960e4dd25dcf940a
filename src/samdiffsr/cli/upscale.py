"""`samdiffsr upscale -i photos -o large`: make images four times as high and wide."""

from typing import TYPE_CHECKING, Annotated, Self

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from samdiffsr.upscale import Job, Report

MAX_PIXELS = 64_000_000  # samdiffsr.images.MAX_PIXELS, which takes numpy to import; a test compares them

Inputs = Annotated[
    list[str],
    typer.Option(
        "-i", "--input", metavar="PATH", help="Image, folder of images or quoted pattern such as 'a*.png'; repeatable."
    ),
]
Output = Annotated[
    str, typer.Option("-o", "--output", metavar="PATH", help="Folder, made if need be; for one input also a file.")
]
Model = Annotated[
    str,
    typer.Option("-m", "--model", metavar="NAME", help="'default', a pipeline folder, or a released .ckpt file."),
]
Steps = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Denoising steps.  [default: as the model was saved]")
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, metavar="N", help="Each image starts from this seed.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, ...")]
Suffix = Annotated[str, typer.Option(metavar="TEXT", help="Added to each name in an output folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
SkipExisting = Annotated[bool, typer.Option("--skip-existing", help="Leave out images whose output exists.")]
MaxPixels = Annotated[int, typer.Option(min=1, metavar="N", help="Refuse inputs with more pixels than this.")]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("upscale")(upscale)


def upscale(
    input: Inputs,
    output: Output,
    model: Model = "default",
    steps: Steps = None,
    seed: Seed = 0,
    device: Device = "auto",
    suffix: Suffix = "_x4",
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Upscale images by 4.

    An output keeps its input's format if that can be written and can hold its transparency, and becomes PNG otherwise.
    A bad image does not end the batch: it is reported at the end, and the exit code is 2.
    """
    from samdiffsr.upscale import load_model, plan, sift, upscale_files

    jobs = plan(input, output, suffix)
    todo, report = sift(jobs, overwrite=overwrite, skip_existing=skip_existing, max_pixels=max_pixels)
    try:
        if todo:
            pipe = load_model(model, device)
            with _Bar(todo) as bar:
                upscale_files(
                    pipe,
                    todo,
                    seed=seed,
                    steps=steps,
                    overwrite=overwrite,
                    skip_existing=skip_existing,
                    max_pixels=max_pixels,
                    on_progress=bar.update,
                    report=report,
                )
    finally:  # also after Ctrl-C, and before an unknown model ends it
        _summarise(report, len(jobs))
    if report.failed:
        raise typer.Exit(2)


class _Bar:
    """One progress bar on stderr for the whole batch, with the time left; silent where stderr is no terminal."""

    def __init__(self, jobs: "list[Job]") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),  # file names may contain [brackets]
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._place = {job.source: f"{number}/{len(jobs)} " for number, job in enumerate(jobs, 1)}
        self._task = self._progress.add_task("", total=1.0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, source: "Path", part: float) -> None:
        """`on_progress` of `upscale_files`."""
        place = self._place[source] if len(self._place) > 1 else ""
        self._progress.update(self._task, completed=part, description=f"{place}{source.name}")


def _summarise(report: "Report", jobs: int) -> None:
    for source, note in report.notes:
        typer.echo(f"Note: '{source}': {note}.", err=True)
    for _, message in report.failed:
        typer.echo(f"Error: {message}", err=True)
    if jobs > 1 or report.skipped:
        counts = f"{len(report.done)} upscaled, {len(report.skipped)} skipped, {len(report.failed)} failed"
        left = jobs - len(report.done) - len(report.skipped) - len(report.failed)  # interrupted
        typer.echo(f"{counts}, {left} not begun or finished." if left else f"{counts}.", err=True)
