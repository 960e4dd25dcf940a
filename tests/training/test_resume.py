"""Runs that are stopped, killed, split over processes or damaged: they go on, agree, or are refused."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr import SamDiffSRError
from samdiffsr.cli import main
from samdiffsr.training.checkpoint import NUMBERS, TENSORS, checkpoints, load_checkpoint, save_checkpoint
from samdiffsr.training.run import (
    train_diffusion,
    train_encoder,
)
from support import posix, quiet, same, tiny, weights

ADVERSARIAL = (
    "diffusion.loss.adversarial_weight=0.01",
    "diffusion.loss.adversarial_start=2",
    "diffusion.loss.discriminator_width=4",
)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_goes_on_bit_equal(photos, tmp_path, optimizer):
    """4 updates at once against 2, a stop, and --resume, in both stages."""
    for name, stop in (("whole", False), ("parts", True)):
        for stage, train in (("encoder", train_encoder), ("diffusion", train_diffusion)):
            config = tiny(photos, tmp_path / name, f"{stage}.optim.optimizer={optimizer}")
            if stop:

                def halt(update, record):
                    if update == 3:  # the last checkpoint is of update 2
                        raise KeyboardInterrupt

                with pytest.raises(KeyboardInterrupt):
                    train(config, resume=False, on_update=halt)
            train(config, resume=stop, on_update=quiet)
            assert [found.name for found in checkpoints(tmp_path / name / stage / "checkpoints")] == [
                "00000002",
                "00000004",
            ]
    assert same(weights(tmp_path / "whole/model"), weights(tmp_path / "parts/model"))
    assert not same(weights(tmp_path / "whole/model"), {})


def killed(work, *arguments) -> None:
    """Run `work`, a function of this file, in a fresh process, which must end by SIGKILL."""
    child = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_to_the_sixth(train, config, threads) -> None:
    torch.set_num_threads(threads)  # a sum has other bits in more

    def kill(update, record):
        if update == 6:
            kill_oneself()

    train(config, resume=False, on_update=kill)


def save_to_an_event(folder, event, name) -> None:
    """Write a checkpoint, to the moment in which Python does something to a file of that name."""

    def hook(found, arguments):
        if found == event and any(str(argument).endswith(name) for argument in arguments):
            kill_oneself()

    sys.addaudithook(hook)
    save_checkpoint(folder, {"x": torch.full((3,), 3.0)}, {"update": 3}, keep=2)


@posix
def test_a_killed_run_goes_on_bit_equal(photos, tmp_path):
    """10 updates at once against SIGKILL in the sixth, after the checkpoint of the fourth, and --resume; both stages."""
    options = [f"{stage}.{key}" for stage in ("encoder", "diffusion") for key in ("optim.updates=10", "save_every=4")]
    options += ["diffusion.rollout=0.5", "diffusion.encoder_rate=0.1", "diffusion.base=bicubic", *ADVERSARIAL]
    for name in ("whole", "parts"):
        config = tiny(photos, tmp_path / name, *options)
        for stage, train in (("encoder", train_encoder), ("diffusion", train_diffusion)):
            if name == "parts":
                killed(train_to_the_sixth, train, config, torch.get_num_threads())
                assert [found.name for found in checkpoints(tmp_path / name / stage / "checkpoints")] == ["00000004"]
            train(config, resume=True, on_update=quiet)
            lines = (tmp_path / name / stage / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(line)["update"] for line in lines] == list(range(1, 11))
    states = [load_checkpoint(tmp_path / name / "diffusion/checkpoints")[0] for name in ("whole", "parts")]
    assert {name.split(".")[0] for name in states[0]} == {"denoiser", "encoder", "discriminator", "ema", "adam"}
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert same(weights(tmp_path / "whole/model"), weights(tmp_path / "parts/model"))


@posix
@pytest.mark.parametrize(
    ("event", "name"), [("open", NUMBERS), ("os.rename", "00000003"), ("shutil.rmtree", "00000001")]
)
def test_a_kill_while_a_checkpoint_is_written_leaves_a_good_one(tmp_path, event, name):
    """Killed before its last file, before its renaming, and while an old one goes."""
    for update in (1, 2):
        save_checkpoint(tmp_path, {"x": torch.full((3,), float(update))}, {"update": update}, keep=2)

    killed(save_to_an_event, tmp_path, event, name)
    tensors, numbers = load_checkpoint(tmp_path)
    assert numbers["update"] == tensors["x"][0] == (3 if event == "shutil.rmtree" else 2)
    save_checkpoint(tmp_path, {"x": torch.zeros(3)}, {"update": 4}, keep=2)
    assert [found.name for found in sorted(tmp_path.iterdir())] == [f"{n:08d}" for n in (numbers["update"], 4)]


@pytest.mark.parametrize("damage", ["cut", "flipped", "lost"])
def test_a_damaged_checkpoint_is_refused_by_name(photos, tmp_path, damage):
    config = tiny(photos, tmp_path / "run")
    train_encoder(config, resume=False, on_update=quiet)
    file = tmp_path / "run/encoder/checkpoints/00000004" / TENSORS
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    if damage == "lost":
        file.unlink()
    with pytest.raises(SamDiffSRError, match=r"00000004 is damaged .*go on from 00000002"):
        train_encoder(config, resume=True, on_update=quiet)


def test_a_checkpoint_of_another_run_is_refused(photos, tmp_path):
    train_encoder(tiny(photos, tmp_path / "run"), resume=False, on_update=quiet)
    for override, reason in (
        ("seed=1", "seed is 1"),
        ("encoder.data.batch=4", "batch is 4"),
        ("encoder.network={width: 16, blocks: 2}", "trunk.1"),
    ):
        with pytest.raises(SamDiffSRError, match=reason):
            train_encoder(tiny(photos, tmp_path / "run", override), resume=True, on_update=quiet)


def test_stop_after_saves_and_says_where_it_stands(photos, tmp_path, capsys):
    """Stopped after each update and started again until both stages are done: the model of a run that never stopped."""
    config = tiny(photos, tmp_path / "whole")
    train_encoder(config, resume=False, on_update=quiet)
    train_diffusion(config, resume=False, on_update=quiet)
    messages = []
    for _ in range(7):
        with pytest.raises(SystemExit) as end:
            main(["train", "tiny", "--resume", "--stop-after", "0", *tiny_options(photos, tmp_path / "parts")])
        assert end.value.code == 0
        messages.append(capsys.readouterr().out.splitlines()[-1])
    stopped = "{}: stopped after update {} of 4; the same command with --resume goes on."
    assert messages[:3] == [stopped.format("encoder", update) for update in (1, 2, 3)]
    assert messages[3:6] == [stopped.format("diffusion", update) for update in (1, 2, 3)]
    assert messages[6] == f"diffusion: {tmp_path / 'parts/model'}"
    assert same(weights(tmp_path / "whole/model"), weights(tmp_path / "parts/model"))


def test_all_processes_stop_together(photos, tmp_path):
    """The time of the second is over after its first update, that of the first never."""
    stdout = two_nodes("tiny", *tiny_options(photos, tmp_path), own=((), ("--stop-after", "0")))
    assert "encoder: stopped after update 1 of 4" in stdout[0] and "stopped" not in stdout[1]
    assert [found.name for found in checkpoints(tmp_path / "encoder/checkpoints")] == ["00000001"]
    assert not (tmp_path / "diffusion").exists()


def tiny_options(photos, output) -> list[str]:
    return ["--set", f"photos={photos}", "--set", f"output={output}"]


def two_nodes(*arguments, own: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())) -> list[str]:
    """`samdiffsr train` as docs/training.md starts it on two machines, here both of them this one; what each printed.

    Args:
        own: further arguments of each machine.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launch += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    command = ["-m", "samdiffsr", "train", *map(str, arguments)]
    nodes = [
        subprocess.Popen(
            [*launch, f"--node-rank={rank}", *command, *own[rank]],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        output = [node.communicate(timeout=100)[0] for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # a launcher takes its process with it; no effect on those that have ended
    assert [node.returncode for node in nodes] == [0, 0], output
    return output


def test_two_nodes_make_the_weights_of_one_process(photos, tmp_path):
    """The same global batch over two gloo processes, with everything that could notice: 1e-6 apart at most."""
    (tmp_path / "hr").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"hr/{number}.png")
    options = [
        "diffusion.rollout=0.5",
        "diffusion.encoder_rate=0.5",
        "diffusion.base=bicubic",
        f"validation.photos={tmp_path / 'hr'}",
        *ADVERSARIAL,
    ]
    # L2: an L1 gradient is a sum of signs, which may cancel to exactly 0, and Adam makes a full step of its rounding.
    options += [f"{stage}.{key}" for stage in ("encoder", "diffusion") for key in ("data.batch=4", "loss.pixel=l2")]
    settings = [f"photos={photos}", f"output={tmp_path / 'two'}", *options]
    two_nodes("tiny", *(part for setting in settings for part in ("--set", setting)))
    one = tiny(photos, tmp_path / "one", *options, "diffusion.data.accumulate=2", "diffusion.data.workers=0")
    train_encoder(one, resume=False, on_update=quiet)
    train_diffusion(one, resume=False, on_update=quiet)
    for stage in ("encoder", "diffusion"):
        a, b = (load_checkpoint(tmp_path / name / stage / "checkpoints")[0] for name in ("one", "two"))
        for name, tensor in a.items():
            torch.testing.assert_close(
                tensor, b[name], atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )
        records = [
            [json.loads(line) for line in (tmp_path / name / stage / "validation.jsonl").read_text().splitlines()]
            for name in ("one", "two")
        ]
        assert records[0][-1] == pytest.approx(records[1][-1], abs=1e-3)
    assert same(weights(tmp_path / "two/model"), weights(tmp_path / "two/best"))
