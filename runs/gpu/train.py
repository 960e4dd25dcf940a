"""Train on a pack, on one machine with torch and a GPU, in as many calls as it takes:

    python runs/gpu/train.py --pack PACK/part-*.tar --preset light --features vgg.safetensors --output RUN --minutes 9

The same command goes on where the last one stopped: from RUN itself, or on a fresh machine from RUN/pieces alone. README.md
beside this file has the whole way there and back.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from photos import PackedPhotos, load_pack
from pieces import finish, finished, join, split
from torch import nn

from samdiffsr.errors import SamDiffSRError
from samdiffsr.training.checkpoint import checkpoints
from samdiffsr.training.config import TrainConfig, load_config
from samdiffsr.training.cost import estimate_cost
from samdiffsr.training.diffusion import DiffusionStage
from samdiffsr.training.job import train
from samdiffsr.training.objective import Objective
from samdiffsr.training.stages import diffusion_job, encoder_job, new_objective

JOBS = {"encoder": encoder_job, "diffusion": diffusion_job}
WARM = 50  # updates of a stage that do not count for its pace: kernels are compiled and chosen


class Clock:
    """Asked after each update, it says when to halt; meanwhile it measures the pace of the stage.

    Args:
        deadline: by `time.monotonic()`.
        updates: at most so many.

    Attributes:
        over: whether it is time to halt.
        record: of the last update that was looked at.
    """

    def __init__(self, deadline: float, updates: int) -> None:
        self.deadline, self.updates, self.over = deadline, updates, updates < 1
        self.record: dict[str, float] = {}
        self.asked: list[float] = []

    def __call__(self) -> bool:
        self.asked.append(time.monotonic())
        self.updates -= 1
        self.over = self.updates < 1 or self.asked[-1] >= self.deadline
        return self.over

    def progress(self, _update: int, record: dict[str, float]) -> None:
        """Keep the record of an update."""
        self.record = record

    def pace(self) -> float | None:
        """Seconds an update of the stage that ran last; None if there were too few."""
        used = self.asked[min(WARM, len(self.asked) // 2) :]
        return (used[-1] - used[0]) / (len(used) - 1) if len(used) > 1 else None


def run(config: TrainConfig, parts: Sequence[Path], clock: Clock, backend: str | None) -> str:
    """Train until the clock is over or both stages have ended; one line about it.

    Args:
        backend: of torch.compile; None does without.
    """
    todo = [stage for stage in JOBS if not finished(config.output, stage)]
    if not todo or clock.over:
        return "nothing was trained"
    device = torch.device("cuda" if torch.cuda.is_available() and config.device == "auto" else "cpu")
    packed = load_pack(parts, device, threads=os.cpu_count() or 1)
    stage, update = todo[0], 0
    while todo and not clock.over:
        stage = todo.pop(0)
        job = JOBS[stage](config)
        if backend:
            compile_networks(job.objective, backend)
        clock.asked.clear()
        photos = PackedPhotos(packed, job.stage.data)
        train(job, resume=True, progress=clock.progress, photos=photos, halt=clock)
        update = int(checkpoints(job.folder / "checkpoints")[-1].name)
        if update == job.stage.optim.updates:
            finish(config.output, stage)
    return f"{stage}: update {update} of {getattr(config, stage).optim.updates}, " + _pace(config, stage, update, clock)


def compile_networks(objective: Objective, backend: str) -> None:
    """Let torch.compile make the forward passes, and the backward passes with them; names of tensors stay."""
    for network in objective.trained.values():
        _compile_learning(network, backend)
    if isinstance(objective, DiffusionStage):
        objective.encoder.encode = torch.compile(objective.encoder.encode, backend=backend)
    if objective.features is not None:
        objective.features.maps = torch.compile(objective.features.maps, backend=backend)


def _compile_learning(network: nn.Module, backend: str) -> None:
    """Compile the passes that learn, all of one size. A rollout has any number of examples: one of those, and all kernels
    would be made anew, for any size."""
    plain = network.forward
    compiled = torch.compile(plain, backend=backend, dynamic=False)
    network.forward = lambda *inputs, **options: (compiled if torch.is_grad_enabled() else plain)(*inputs, **options)


def _pace(config: TrainConfig, stage: str, update: int, clock: Clock) -> str:
    """Speed and loss, and the time left in all: what is left of a later stage is reckoned by its operations."""
    told = f"pixel {clock.record.get('pixel', float('nan')):.4f}"
    pace = clock.pace()
    if pace is None:
        return told
    flop = {name: estimate_cost(new_objective(config, name), getattr(config, name)).flop for name in JOBS}
    left = {name: getattr(config, name).optim.updates for name in list(JOBS)[list(JOBS).index(stage) :]}
    left[stage] -= update
    minutes = sum(flop[name] * count for name, count in left.items()) * pace / flop[stage] / 60
    batch = getattr(config, stage).data.batch
    return f"{batch / pace:.0f} images/s, {flop[stage] / pace / 1e12:.3g} TFLOP/s, {told}, {minutes:.1f} minutes left in all"


def settings(arguments: argparse.Namespace) -> TrainConfig:
    """The preset, with what is true of every such run, then what the command says."""
    overrides = [f"photos={arguments.pack[0].parent}", f"output={arguments.output}", "tensorboard=false"]
    overrides += [f"{stage}.data.workers=0" for stage in JOBS]  # nothing is read: the device makes the batches
    if arguments.features:
        overrides += [f"diffusion.loss.features_file={arguments.features}", "diffusion.loss.features_weight=0.3"]
    return load_config(arguments.preset, overrides + arguments.set)


def main(argv: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, nargs="+", required=True, help="parts that pack.py made")
    parser.add_argument("--output", type=Path, required=True, help="the run's folder")
    parser.add_argument("--preset", default="light", help="preset or YAML file")
    parser.add_argument("--features", type=Path, help="weights of the feature loss, for stage 2")
    parser.add_argument("--minutes", type=float, default=9, help="stop after so long, loading and compiling included")
    parser.add_argument("--updates", type=int, default=sys.maxsize, help="stop after so many")
    parser.add_argument("--compile", default="auto", help="torch.compile's backend, none, or auto: inductor on a GPU")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for samdiffsr train")
    arguments = parser.parse_args(argv)
    automatic = "inductor" if torch.cuda.is_available() else "none"
    backend = automatic if arguments.compile == "auto" else arguments.compile
    config = settings(arguments)
    if torch.cuda.is_available():  # no cudnn.benchmark: rollouts of every size would be tried out
        torch.set_float32_matmul_precision("high")
    if join(config.output):
        print(f"{config.output} was put together from its pieces")
    clock = Clock(started + 60 * arguments.minutes, arguments.updates)
    told = run(config, arguments.pack, clock, None if backend == "none" else backend)
    pieces = split(config.output)
    size = sum(piece.stat().st_size for piece in pieces) / 1e6
    done = all(finished(config.output, stage) for stage in JOBS)
    print(f"{told}; {len(pieces)} pieces, {size:.1f} MB; " + ("finished" if done else "the same command goes on"))


if __name__ == "__main__":
    try:
        main()
    except SamDiffSRError as error:
        sys.exit(f"Error: {error}")
