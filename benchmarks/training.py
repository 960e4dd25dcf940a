"""Speed of training:  python benchmarks/training.py DATA [--presets light-cpu light] [--updates 20] [--set KEY=VALUE ...]

For both stages of each preset, on a prepared folder DATA, after 3 updates to warm up:
- images a second; share of the time spent waiting for data;
- images a second of the same network fed by PNG files of the same pictures (decoded whole for each crop, in as many threads);
- peak memory of this process so far (on a GPU: of torch's allocator in this stage), and the estimate of --dry-run;
- rate of arithmetic (operations of --dry-run over time) against a matrix product in the same precision.
Then the data path alone: examples a second that 1, 2, ... processes draw together, each its own share of every batch, and
examples a second of processor time, which a busy machine disturbs less.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from samdiffsr.data.dataset import Batch, JointCrop, PreparedPhotos
from samdiffsr.resize import SCALE
from samdiffsr.training.adversarial import new_adversarial_loss
from samdiffsr.training.batches import Batches
from samdiffsr.training.config import TrainConfig, load_config
from samdiffsr.training.cost import estimate_cost
from samdiffsr.training.loop import DTYPES, update
from samdiffsr.training.objective import Objective
from samdiffsr.training.run import ENCODERS, build, diffusion_objective, encoder_objective
from samdiffsr.training.state import TrainState

WARM = 3
DRAWN = 4096  # examples, to measure the data path
PICTURES = 64  # written as PNG files, the first that are large enough


class PngPhotos:
    """As most trainers do: open three files, decode them whole, cut one crop out."""

    def __init__(self, photos: PreparedPhotos, folder: Path) -> None:
        self.folder, self.crop_lr, self.count = folder, photos.crop_lr, 0
        for hr, lr, structure in photos.images:
            if min(lr.shape[:2]) < self.crop_lr or self.count == PICTURES:
                continue
            values = np.clip(127.5 + 64 * structure.astype(np.float32), 0, 255).astype(np.uint8)
            for part, pixels in (("hr", hr), ("lr", lr), ("structure", values)):
                Image.fromarray(np.asarray(pixels)).save(folder / f"{self.count}.{part}.png")
            self.count += 1

    def batch(self, seed: int, first: int, size: int) -> Batch:
        crops = [self.crop(np.random.default_rng([seed, index])) for index in range(first, first + size)]
        hr, lr, structure = (np.stack(part).astype(np.float32) for part in zip(*crops, strict=True))
        hr, lr = (torch.from_numpy(part.transpose(0, 3, 1, 2) / np.float32(127.5) - 1) for part in (hr, lr))
        return Batch(hr, lr, torch.from_numpy(structure[:, None] / 64 - 2), torch.zeros(size))

    def crop(self, rng: np.random.Generator) -> list[np.ndarray]:
        number = rng.integers(self.count)
        files = [self.folder / f"{number}.{part}.png" for part in ("hr", "lr", "structure")]
        hr, lr, structure = (np.asarray(Image.open(file)) for file in files)
        top, left = (int(rng.integers(side - self.crop_lr + 1)) for side in lr.shape[:2])
        crop = JointCrop(top, left, self.crop_lr)
        return [crop.apply(hr, SCALE), crop.apply(lr, 1), crop.apply(structure, SCALE)]


def objective_of(config: TrainConfig, name: str) -> Objective:
    if name == "encoder":
        return encoder_objective(config)
    return diffusion_objective(config, build(ENCODERS[config.family], config.encoder, 0))


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations a second of a square matrix product: the best of five."""
    a, best = torch.randn(side, side, device=device, dtype=dtype), 0.0
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        wait_for(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(config: TrainConfig, name: str, photos, updates: int, accelerator: Accelerator) -> tuple[float, float]:
    """Images a second, and the share of the time spent waiting for them."""
    stage, objective = getattr(config, name), objective_of(config, name)
    state = TrainState(objective, new_adversarial_loss(stage.loss, 0), stage, accelerator.device)
    batches = Batches(photos, objective.draws, stage.data, 0, accelerator.device)
    started = waited = 0.0
    for micro_batches, seconds in batches.updates(0, WARM + updates):
        waited += seconds
        if state.update == WARM:  # this batch is there already
            wait_for(accelerator.device)
            started, waited = time.perf_counter(), 0.0
        update(objective, state.adversarial, micro_batches, state, stage, accelerator)
        state.update += 1
    wait_for(accelerator.device)
    elapsed = time.perf_counter() - started
    return updates * stage.data.batch / elapsed, waited / elapsed


def peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def draw(folder: Path, config: TrainConfig, process: int, processes: int, gate, out) -> None:
    """One process of `scaling`: its share of each batch, as training would draw it."""
    torch.set_num_threads(1)
    stage, objective = config.diffusion, objective_of(config, "diffusion")
    batches = Batches(
        photos_of(folder, config, "diffusion"), objective.draws, stage.data, 0, torch.device("cpu"), process, processes
    )
    batches.micro_batches(0)
    gate.wait()
    started, busy = time.perf_counter(), time.process_time()
    for number in range(DRAWN // stage.data.batch):
        batches.micro_batches(number)
    out.put((time.perf_counter() - started, time.process_time() - busy))


def photos_of(folder: Path, config: TrainConfig, name: str) -> PreparedPhotos:
    data = getattr(config, name).data
    return PreparedPhotos(folder, crop_lr=data.crop_lr, candidates=data.candidates, flips=data.flips)


def scaling(folder: Path, config: TrainConfig, processes: int) -> tuple[float, float]:
    """Examples a second of all processes together, and examples for each second of a processor."""
    context = multiprocessing.get_context("spawn")
    gate, out = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=draw, args=(folder, config, rank, processes, gate, out)) for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    times = np.array([out.get(timeout=300) for _ in workers])
    for worker in workers:
        worker.join()
    count = DRAWN // config.diffusion.data.batch * config.diffusion.data.batch
    return count / times[:, 0].max(), count / times[:, 1].sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--presets", nargs="+", default=["light-cpu", "light"])
    parser.add_argument("--stages", nargs="*", default=["encoder", "diffusion"])
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    accelerator = Accelerator()
    device = accelerator.device
    configs = {preset: load_config(preset, options.set) for preset in options.presets}
    for preset, config in configs.items():
        for name in options.stages:
            stage, photos = getattr(config, name), photos_of(options.data, config, name)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            rate, share = measure(config, name, photos, options.updates, accelerator)
            memory, cost = peak_memory(device), estimate_cost(objective_of(config, name), stage)
            with tempfile.TemporaryDirectory() as folder:
                png, png_share = measure(config, name, PngPhotos(photos, Path(folder)), options.updates, accelerator)
            flops = cost.flop * rate / stage.data.batch
            best = matrix_rate(device, DTYPES[stage.optim.precision], 8192 if device.type == "cuda" else 2048)
            print(
                f"{preset} {name}: {rate:.1f} images/s, {share:.2%} of the time waiting; from PNG {png:.1f} images/s, "
                f"{png_share:.2%} waiting; memory {memory:.2f} GiB (estimate {cost.memory / 2**30:.2f}); "
                f"{flops / 1e9:.0f} GFLOP/s, a matrix product {best / 1e9:.0f}",
                flush=True,
            )
    for processes in options.processes:
        rate, busy = scaling(options.data, configs[options.presets[0]], processes)
        print(f"data path, {processes} processes: {rate:.0f} examples/s, {busy:.0f} a processor second", flush=True)


if __name__ == "__main__":
    main()
