"""Masks of a folder of photographs: one `<stem>.json` each, on any number of processes; a run can be interrupted at any time.

    report = mask_folder(Path("photos"), Path("masks"), FelzenszwalbSegmenter())

A mask file appears whole or not at all, and its bytes depend on the photograph and the recipe alone. So a photograph with a
mask file is done, the same command continues a killed run, and two processes may even do the same photograph.
"""

import contextlib
import json
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from samdiffsr.errors import ConfigError, ImageError, MaskError
from samdiffsr.files import make_folder, sweep, write_whole
from samdiffsr.images import MAX_PIXELS, list_images, read_image
from samdiffsr.masks.preview import contact_sheet, write_preview
from samdiffsr.masks.records import read_records, write_records
from samdiffsr.masks.region import Recipe, Segmenter
from samdiffsr.workers import in_processes

OPTIONS = "masks.options"
"""File beside the masks: the recipe they were made with, as JSON. The ending .json is for the masks of photographs."""

Outcomes = Generator[str | None, None, None]
"""The results of `make_masks`, in the order of the jobs."""


@dataclass(frozen=True)
class MaskJob:
    """One photograph to segment; the masks become `<stem>.json` in the folder `output`."""

    photo: Path
    output: Path
    recipe: Recipe
    preview: bool = False
    max_pixels: int = MAX_PIXELS

    @property
    def target(self) -> Path:
        """The mask file."""
        return self.output / f"{self.photo.stem}.json"

    @property
    def picture(self) -> Path:
        """The overlay."""
        return self.output / "preview" / f"{self.photo.stem}.png"

    @property
    def done(self) -> bool:
        """Everything wanted is there."""
        return _is_there(self.target) and (not self.preview or _is_there(self.picture))


@dataclass
class MaskReport:
    """Photographs segmented now, photographs done before, and one sentence for each that failed."""

    made: int = 0
    kept: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)


def make_masks(job: MaskJob) -> str | None:
    """Segment one photograph, unless its masks exist, and write its mask file and its preview.

    A plain function of picklable arguments, for this process or another machine's. A process loads the model of its
    first job and keeps it while jobs want the same.

    Returns:
        None, or a sentence that says why this photograph failed.

    Raises:
        SamDiffSRError: an error that concerns all photographs: no model, a folder that cannot be written, or a folder that
            now belongs to a run with another recipe.
    """
    try:
        rgb = read_image(job.photo, max_pixels=job.max_pixels).rgb
        regions = None if _is_there(job.target) else _segmenter(job.recipe)(rgb)
    except ImageError as error:  # names the photograph
        return str(error)
    except MaskError as error:
        return f"'{job.photo}': {error}"
    except MemoryError:
        return f"'{job.photo}': not enough memory to segment it; use fewer --workers or a smaller image."
    if regions is not None:
        if (job.output / OPTIONS).exists():
            _compare_options(job.output, job.recipe.record())  # another run may have started while there was no mask
        write_records(job.target, regions)
    if job.preview:
        try:
            records = read_records(job.target, rgb.shape[:2])
        except MaskError as error:
            return str(error)
        job.picture.parent.mkdir(exist_ok=True)
        write_preview(rgb, records, job.picture)
    return None


@lru_cache(maxsize=1)
def _segmenter(recipe: Recipe) -> Segmenter:
    return recipe.build()


def mask_folder(
    photos: Path,
    output: Path,
    recipe: Recipe,
    *,
    preview: bool = False,
    shard: tuple[int, int] = (1, 1),
    workers: int = 1,
    run: Callable[[list[MaskJob]], Outcomes] | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MaskReport:
    """Segment every photograph of a folder (not of its subfolders) that has no masks yet.

    Args:
        output: folder of masks, made if need be. Its file `masks.options` keeps other options from being mixed in,
            once there is a mask.
        preview: also write `preview/<stem>.png`, and `contact.png` of up to 48 of them.
        shard: (i, n): only the i-th of n parts, 1 <= i <= n. Parts go by name, so machines need not see the same list.
        workers: processes. With more than one, a script needs the usual `if __name__ == "__main__"`.
        run: computes the jobs instead of this machine's processes: yields `make_masks(job)` of each, in order.
        progress: called with the photographs done and those to do in this run, first with 0.

    Raises:
        ConfigError: no photographs, two of one stem, a shard that does not exist, a folder of masks made otherwise.
        SamDiffSRError: no model, or a folder that cannot be written.
    """
    index, count = shard
    if not 1 <= index <= count:
        raise ConfigError(f"The shard is {index}/{count}, but must be one of 1/{count} to {count}/{count}.")
    files = list_images(photos, distinct=True)  # two of one name would share a mask file
    if output.exists() and output.samefile(photos):
        raise ConfigError(f"The folder {output} holds the photographs; give another folder for the masks.")
    jobs = [MaskJob(file, output, recipe, preview, max_pixels) for file in files if _part(file, count) == index - 1]
    todo = [job for job in jobs if not job.done]
    _refuse_other_options(output, recipe.record())
    if todo:
        _segmenter(recipe)  # an error or a download now, before there is a folder, and once
    if run or workers > 1:
        _segmenter.cache_clear()  # others do the work, and have their own
    folder = output / "preview" if preview else output
    make_folder(folder, error=ConfigError)
    _write_options(output, recipe.record())
    for place in (output, output / "preview"):
        sweep(place)
    report = MaskReport(kept=len(jobs) - len(todo))
    progress(0, len(todo))
    with contextlib.closing(run(todo) if run else in_processes(make_masks, todo, workers=workers)) as outcomes:
        for number, (job, error) in enumerate(zip(todo, outcomes, strict=True), 1):
            if error is None:
                report.made += 1
            else:
                report.failed.append((job.photo, error))
            progress(number, len(todo))
    if preview:
        pictures = [MaskJob(file, output, recipe).picture for file in files]
        contact_sheet([picture for picture in pictures if _is_there(picture)], output / "contact.png")
    return report


def _part(file: Path, count: int) -> int:
    return zlib.crc32(file.stem.encode("utf-8", "surrogateescape")) % count


def _is_there(path: Path) -> bool:
    """Whether the file exists and is not empty: a machine that lost power may leave an empty one."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _write_options(output: Path, record: dict[str, Any]) -> None:
    """Write the recipe into a folder without masks; a ConfigError if there are masks made with another recipe."""
    if _any_mask(output) is None:
        write_whole(json.dumps(record, indent=1).encode(), output / OPTIONS)
    _refuse_other_options(output, record)


def _refuse_other_options(output: Path, record: dict[str, Any]) -> None:
    """A ConfigError if there are masks made with another recipe, or with an unknown one."""
    mask = _any_mask(output)  # looked for first: the options are there before any mask is
    if mask is None:
        return
    if not (output / OPTIONS).exists():
        raise ConfigError(
            f"folder {output} has masks ({mask.name}), but no {OPTIONS} with the options of that run; use a new folder."
        )
    _compare_options(output, record)


def _any_mask(output: Path) -> Path | None:
    return next(filter(_is_there, output.glob("*.json")), None)


def _compare_options(output: Path, record: dict[str, Any]) -> None:
    """A ConfigError if the options in the folder are not those of this recipe."""
    file = output / OPTIONS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); use a new folder.") from error
    if found != record:
        found = found if isinstance(found, dict) else {}
        name = next(key for key in [*record, *found] if record.get(key) != found.get(key))
        raise ConfigError(
            f"folder {output} was made with {name} {found.get(name)!r}, not {record.get(name)!r}; "
            "give the same options or use a new folder."
        )
