"""A folder of equal small pictures, in pictures a second:  python benchmarks/folder.py [--size 32] [--count 16] [--processes 2]

1. `samdiffsr upscale` in one process: the next pictures are read and the last ones written while some are enlarged; one by one,
   and as many together as `Upscaler.together` says.
2. The same work in processes of one thread each.
3. The networks alone, picture by picture and as one batch: what a batch could save at most.

Processor time is given beside the time of the clock: on a machine with other work only the former can be compared.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from samdiffsr.load import load_model
from samdiffsr.sampling.upscaler import TOGETHER
from samdiffsr.upscale.batch import upscale_files
from samdiffsr.upscale.cluster import upscale_on_cluster, upscale_work
from samdiffsr.upscale.plan import plan
from samdiffsr.upscale.settings import FileSettings, Settings
from samdiffsr.workers import in_processes

ROUNDS = 5


def timed(name: str, count: int, *works: Callable[[], object]) -> None:
    """The least of several rounds, for each of the works in turn."""
    least = [(float("inf"), float("inf"))] * len(works)
    for _ in range(ROUNDS):
        for number, work in enumerate(works):
            clock, processor = time.perf_counter(), time.process_time()
            work()
            passed = time.perf_counter() - clock, time.process_time() - processor
            least[number] = min(least[number][0], passed[0]), min(least[number][1], passed[1])
    for clock, processor in least:
        line = f"{count / clock:6.2f} pictures/s, {1e3 * processor / count:6.1f} ms of this process for each"
        print(f"{name:36} {line}", flush=True)


@torch.no_grad()
def networks(pipe, size: int, count: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Encoder, condition and a step of the denoiser: one picture after the other, and all at once."""
    generator = torch.Generator().manual_seed(0)
    lr = 2 * torch.rand(count, 3, size, size, generator=generator) - 1
    x_t = torch.randn(count, 3, 4 * size, 4 * size, generator=generator)

    @torch.no_grad()
    def work(side: int) -> None:
        with torch.autocast("cpu", pipe.computed_in("auto") or torch.float32, pipe.computed_in("auto") is not None):
            for low, high in zip(lr.split(side), x_t.split(side), strict=True):
                features, _ = pipe.encoder.encode(low.to(memory_format=torch.channels_last), with_image=True)
                condition = pipe.denoiser.condition(features)
                x = high.to(memory_format=torch.channels_last)
                pipe.denoiser(x, torch.full((len(low),), 99), None, condition)

    return partial(work, 1), partial(work, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="side of the inputs")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2, help="0 leaves the second part out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe, files = load_model("default", "cpu"), FileSettings(overwrite=True)
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        for number in range(options.count):
            pixels = generator.integers(0, 256, (options.size, options.size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder, f"{number}.png"))
        jobs = plan([folder], f"{folder}/large")
        here = partial(upscale_files, lambda: pipe, jobs, Settings(), files)

        def one_by_one() -> None:
            together, TOGETHER["cpu"] = TOGETHER["cpu"], 0
            here()
            TOGETHER["cpu"] = together

        print(f"{pipe.together(options.size, options.size)} pictures go through the networks together")
        timed(f"one process, {options.threads} threads", options.count, one_by_one, here)
        if options.processes:
            run = partial(in_processes, upscale_work, workers=options.processes)
            there = partial(upscale_on_cluster, lambda works: run(works), jobs, Settings(), files)
            timed(f"{options.processes} processes (their start included)", options.count, there)
    timed("networks: one by one, then a batch", options.count, *networks(pipe, options.size, options.count))


if __name__ == "__main__":
    main()
