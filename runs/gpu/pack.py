"""Photographs and masks to parts small enough to carry to a GPU machine:

    python runs/gpu/pack.py --photos HR --masks MASKS -o PACK [--megabytes 50] [--workers 2]

A part (PACK/part-00.tar and so on) holds for each photograph its own bytes, the structure map as an index image, and the
values of the indices in float16: a structure map has only one value for each combination of regions. No part is larger than
`--megabytes`, unless a single photograph is.
"""

import argparse
import io
import os
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from samdiffsr.data.example import PrepareOptions, prepare_example
from samdiffsr.data.prepare import plan_shards
from samdiffsr.data.shards import key_of
from samdiffsr.errors import SamDiffSRError

Members = dict[str, bytes]


def pack_photo(source: tuple[Path, Path], options: PrepareOptions) -> Members:
    """The three members of one photograph, checked and encoded as `samdiffsr prepare` does it."""
    photo, masks = source
    structure = prepare_example(photo, masks, "masks", options).example[2]
    values, index = np.unique(structure, return_inverse=True)
    picture, table = io.BytesIO(), io.BytesIO()
    kind = np.uint8 if len(values) <= 2**8 else np.uint16  # float16 has no more than 2**16 values
    Image.fromarray(index.reshape(structure.shape).astype(kind)).save(picture, "PNG")
    np.save(table, values)
    key = key_of(photo.stem)
    return {
        f"{key}/photo{photo.suffix}": photo.read_bytes(),
        f"{key}/index.png": picture.getvalue(),
        f"{key}/values.npy": table.getvalue(),
    }


def parts(packed: Iterable[Members], limit: int) -> Iterator[list[Members]]:
    """Consecutive photographs, as many as fit into a tar of `limit` bytes (at least one)."""
    block, empty = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
    part, size = [], empty
    for members in packed:
        weight = sum(block + -(-len(content) // block) * block for content in members.values())
        if part and size + weight > limit:
            yield part
            part, size = [], empty
        part.append(members)
        size += weight
    if part:
        yield part


def write_part(file: Path, part: list[Members]) -> None:
    """An uncompressed tar, renamed into place when it is whole."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar:
        for members in part:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    os.replace(temporary, file)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--masks", type=Path, required=True, help="folder of <stem>.json, as samdiffsr masks makes it")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=50, help="of a part, at most (10^6 bytes)")
    parser.add_argument("--mean-over", default="region", choices=("region", "image"), help="as for samdiffsr prepare")
    parser.add_argument("--overlap", default="sum", choices=("sum", "last"), help="as for samdiffsr prepare")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    arguments = parser.parse_args(argv)
    options = PrepareOptions(mean_over=arguments.mean_over, overlap=arguments.overlap)
    folders = arguments.photos, arguments.masks, arguments.output
    plans = plan_shards(*folders, kind="masks", options=options, images_per_shard=64)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.workers) as pool:
        sources = [source for plan in plans for source in plan.sources()]
        packed = pool.map(partial(pack_photo, options=options), sources, chunksize=4)
        for number, part in enumerate(parts(packed, int(arguments.megabytes * 1e6))):
            file = arguments.output / f"part-{number:02d}.tar"
            write_part(file, part)
            print(f"{file}: {len(part)} photographs, {file.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    try:
        main()
    except SamDiffSRError as error:
        sys.exit(f"Error: {error}")
