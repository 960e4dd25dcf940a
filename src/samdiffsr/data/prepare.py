"""Photographs and their masks -> a prepared folder: `<stem>.hr.npy`, `<stem>.lr.npy`, `<stem>.structure.npy` and a manifest.

Every photograph is cropped to a multiple of 4; its LR image is the exact MATLAB bicubic x1/4, and the structure map is
computed on the whole HR image, so that crops of all three taken with the same LR coordinates lie over each other.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from samdiffsr.data import SCHEMA
from samdiffsr.errors import ConfigError, SamDiffSRError
from samdiffsr.images import READABLE, read_image
from samdiffsr.masks.store import decode, read_records
from samdiffsr.resize import SCALE, imresize
from samdiffsr.structure import accumulate_structure


def _write(path: Path, array: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def prepare_image(photo: Path, masks: Path, output: Path, options: dict) -> None:
    """Write the three members of one photograph; the structure map last, so that its presence means the image is done."""
    hr = read_image(photo).rgb
    height, width = hr.shape[0], hr.shape[1]
    if min(height, width) < SCALE:
        raise SamDiffSRError(f"photograph {photo} is {width}x{height} pixels, but needs at least {SCALE}x{SCALE}.")
    structure = accumulate_structure(decode(read_records(masks, (height, width))), (height, width), **options)
    height, width = height // SCALE * SCALE, width // SCALE * SCALE
    hr = np.ascontiguousarray(hr[:height, :width])
    _write(output / f"{photo.stem}.hr.npy", hr)
    _write(output / f"{photo.stem}.lr.npy", imresize(hr, 1 / SCALE))
    _write(output / f"{photo.stem}.structure.npy", structure[:height, :width].astype(np.float16))


def prepare_folder(
    photos: Path,
    masks: Path,
    output: Path,
    *,
    workers: int = 1,
    options: dict | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Prepare every photograph of a folder; photographs already done with the same options are kept.

    Args:
        photos: folder of images. masks: folder of `<stem>.json`. output: folder to write, made if need be.
        workers: processes.
        options: keyword arguments of `structure_map`; stored in the manifest.
        progress: called with (images done, images in all).

    Returns:
        The number of images.

    Raises:
        SamDiffSRError: an empty folder, two photographs of one stem, a missing or bad mask file, an output folder
            prepared with other options.
    """
    options = options or {}
    accumulate_structure([], (1, 1), **options)  # refuses an unknown option before anything is written
    if not Path(photos).is_dir():
        raise ConfigError(f"folder {photos} with the photographs does not exist.")
    files = sorted(file for file in Path(photos).iterdir() if file.suffix.lower() in READABLE)
    if not files:
        raise ConfigError(f"folder {photos} has no image to prepare.")
    stems = [file.stem for file in files]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise ConfigError(f"folder {photos} has two images named {twice!r}; rename one.")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    manifest_file = output / "manifest.json"
    header = {"schema": SCHEMA, "scale": SCALE, "structure": options}
    if manifest_file.exists():
        found = json.loads(manifest_file.read_text())
        if {key: found.get(key) for key in header} != header:
            raise ConfigError(f"folder {output} was prepared with other options; use a new folder.")
    else:
        manifest_file.write_text(json.dumps(header))
    missing = [file for file in files if not (output / f"{file.stem}.structure.npy").exists()]
    with ProcessPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(partial(prepare_image, file, Path(masks) / f"{file.stem}.json", output, options))
            for file in missing
        ]
        for number, job in enumerate(jobs, 1):
            job.result()
            progress(len(files) - len(missing) + number, len(files))
    manifest_file.write_text(json.dumps(header | {"images": stems}))
    return len(files)
