"""Random crops of shards that are read from end to end: for data larger than memory, or in an object store.

    for batch in stream_batches(shard_urls("data"), crop_lr=40, candidates=1, flips=True, batch=16, seed=0): ...

Reading in order costs no seek and no index, so a shard may be a file, an `https:` address or a `pipe:` command:
webdataset opens it. The price is a smaller mix: crops of one batch come from the shards that fill the shuffle buffer.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from samdiffsr.data.dataset import Batch, Crop, choose_crop, collate
from samdiffsr.data.shards import Example, read_manifest
from samdiffsr.data.transforms import JointCrop
from samdiffsr.errors import ConfigError
from samdiffsr.resize import SCALE


def shard_urls(folder: Path) -> list[str]:
    """The shards of a finished prepared folder, in the order of its photographs."""
    return [str(Path(folder) / f"{entry['name']}.tar") for entry in read_manifest(Path(folder))["shards"]]


def rank_urls(urls: Sequence[str], *, seed: int, epoch: int, rank: int, world: int) -> list[str]:
    """The shards that process `rank` of `world` reads in an epoch: all processes together read each once, shuffled anew.

    Raises:
        ConfigError: fewer shards than processes, or no such rank.
    """
    if not 0 <= rank < world:
        raise ConfigError(f"rank is {rank}, but must be 0 to {world - 1}, with {world} processes.")
    if len(urls) < world:
        raise ConfigError(
            f"{len(urls)} shards cannot be shared by {world} processes: prepare with fewer images per shard."
        )
    order = np.random.default_rng([seed, epoch]).permutation(len(urls))
    return [str(urls[number]) for number in order[rank::world].tolist()]


def stream_batches(
    urls: Sequence[str],
    *,
    crop_lr: int,
    candidates: int,
    flips: bool,
    batch: int,
    seed: int,
    crops_per_image: int = 4,
    buffer: int = 1000,
    rank: int = 0,
    world: int = 1,
    epochs: int | None = None,
) -> Iterator[Batch]:
    """Batches without end, or for so many `epochs` (then the last may be smaller); the same for the same arguments.

    Args:
        urls: shards, as webdataset opens them: paths, addresses, "pipe:" commands.
        crop_lr, candidates, flips: as `PreparedPhotos` has them; images smaller than a crop are left out.
        batch: examples of this process.
        crops_per_image: crops of each image read, which is read whole.
        buffer: crops the shuffle buffer holds, 0.13 MB each at a crop of 160x160.
        rank, world: this process and the number of processes; each reads shards of its own.

    Raises:
        ConfigError: no image is large enough; and what `rank_urls` raises.
        OSError: a shard cannot be read.
    """
    from webdataset.compat import WebDataset

    def crops() -> Iterator[Crop]:
        for epoch in count() if epochs is None else range(epochs):
            rng, found = np.random.default_rng([seed, epoch, rank]), False
            files = rank_urls(urls, seed=seed, epoch=epoch, rank=rank, world=world)
            shards = WebDataset(files, shardshuffle=False, nodesplitter=None)
            for sample in shards.decode():  # pyright: ignore[reportGeneralTypeIssues] - its stub forgets that it iterates
                example = sample["hr.npy"], sample["lr.npy"], sample["structure.npy"]
                if min(example[1].shape[:2]) < crop_lr:
                    continue
                found = True
                for draws in rng.integers(0, 2**32, (crops_per_image, candidates, 3)).tolist():
                    yield _cut_out(*choose_crop(example, draws, crop_lr=crop_lr, flips=flips))
            if not found:
                raise ConfigError(
                    f"process {rank} of {world} found no image of at least {crop_lr}x{crop_lr} LR pixels."
                )

    ready: list[Crop] = []
    for crop in _shuffled(crops(), buffer, random.Random(f"{seed} {rank}")):
        ready.append(crop)
        if len(ready) == batch:
            yield collate(ready)
            ready = []
    if ready:
        yield collate(ready)


def _cut_out(crop: JointCrop, example: Example) -> Crop:
    """The same crop of an image that is no larger than it, so that the buffer does not hold whole photographs."""
    hr, lr, structure = example
    small = crop.window(hr, SCALE).copy(), crop.window(lr, 1).copy(), crop.window(structure, SCALE).copy()
    return JointCrop(0, 0, crop.crop_lr, crop.orientation), small


def _shuffled(items: Iterator[Crop], size: int, rng: random.Random) -> Iterator[Crop]:
    """Each item leaves from a random place of a buffer of `size`, once that is full."""
    held: list[Crop] = []
    for item in items:
        held.append(item)
        if len(held) > size:
            place = rng.randrange(len(held))
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()
    rng.shuffle(held)
    yield from held
