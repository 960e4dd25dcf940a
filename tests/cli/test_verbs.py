"""`prepare`, `train` and `convert` as a user runs them: real small files in, a working model out."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr import SamDiffSRPipeline
from samdiffsr.cli import main
from samdiffsr.models.encoder import RRDBEncoder
from samdiffsr.models.weights import load_network
from support import GOLDEN, prepare


def samdiffsr(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code or 0


def test_from_photographs_to_a_model_to_a_picture(photos, capsys):
    data, run = photos / "data", photos / "run"
    assert samdiffsr("prepare", "-i", photos / "hr", "--masks", photos / "masks", "-o", data) == 0
    settings = ("--set", f"photos={data}", "--set", f"output={run}", "--set", "encoder.optim.updates=2")
    assert samdiffsr("train", "tiny", *settings) == 0
    assert samdiffsr("train", "tiny", *settings) == 2
    assert "--resume" in capsys.readouterr().err
    assert samdiffsr("train", "tiny", *settings, "--resume") == 0
    Image.new("RGB", (5, 3), "teal").save(photos / "in.png")
    assert samdiffsr("upscale", "-i", photos / "in.png", "-o", photos / "big.png", "-m", run / "model") == 0
    assert Image.open(photos / "big.png").size == (20, 12)


def test_one_stage_alone(photos, capsys):
    prepare(photos)
    settings = ("--set", f"photos={photos / 'out'}", "--set", f"output={photos / 'run'}")
    assert samdiffsr("train", "tiny", *settings, "--stage", "diffusion") == 2
    assert "encoder folder" in capsys.readouterr().err
    assert samdiffsr("train", "tiny", *settings, "--stage", "encoder") == 0
    assert not (photos / "run/diffusion").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train", "nothing"), "nothing"),
        (("train", "tiny", "--set", "encoder.depth=3"), "encoder.depth"),
        (("train", "tiny", "--set", "photos=nowhere"), "nowhere"),
        (("convert", "none.ckpt", "-o", "x"), "none.ckpt"),
        (("prepare", "-i", "nowhere", "--masks", "m", "-o", "x"), "nowhere"),
        (("prepare", "-i", ".", "--masks", "m", "-o", "x", "--encoding", "polar"), "'rope'"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert samdiffsr(*arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("verb", ["upscale", "masks", "prepare", "evaluate", "export"])
def test_help_names_what_an_option_takes_and_says_default(verb, capsys):
    assert samdiffsr(verb, "--help") == 0
    told = " ".join(capsys.readouterr().out.partition("Options:")[2].split())
    assert not re.search(r"--[a-z-]+ <", told)
    assert set(re.findall(r"\[[\w./-]+\]", told)) <= {"[required]"}  # no bare [0.88]


@pytest.mark.parametrize(
    ("line", "extra"), [("prepare -i hr --masks masks -o data", "train"), ("masks -i hr -o new", "sam")]
)
def test_a_missing_extra_is_named(photos, capsys, monkeypatch, line, extra):
    monkeypatch.chdir(photos)
    for name in [name for name in sys.modules if name.startswith(("samdiffsr.data", "samdiffsr.masks"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert samdiffsr(*line.split()) == 2
    assert f'pycocotools is not installed: pip install "samdiffsr[{extra}]"' in capsys.readouterr().err


def test_convert_the_encoders_own_file(tmp_path, capsys):
    model = torch.load(GOLDEN / "released_small.ckpt", weights_only=True)["state_dict"]["model"]
    own = {name.removeprefix("rrdb."): tensor for name, tensor in model.items() if name.startswith("rrdb.")}
    torch.save({"state_dict": {"model": own}, "global_step": 100_000}, tmp_path / "rrdb.ckpt")
    assert samdiffsr("convert", tmp_path / "rrdb.ckpt", "-o", tmp_path / "x", "--released-preprocessing") == 2
    assert "leave out --released-preprocessing" in capsys.readouterr().err and not (tmp_path / "x").exists()
    assert samdiffsr("convert", tmp_path / "rrdb.ckpt", "-o", tmp_path / "encoder") == 0
    state = load_network(RRDBEncoder, tmp_path / "encoder").state_dict()  # as training loads `diffusion.encoder`
    assert state.keys() == own.keys() and all(torch.equal(state[name], own[name].float()) for name in own)


def test_convert(tmp_path, capsys):
    checkpoint = GOLDEN / "released_small.ckpt"
    assert samdiffsr("convert", checkpoint, "-o", tmp_path / "model", "--released-preprocessing") == 0
    pipe = SamDiffSRPipeline.from_pretrained(tmp_path / "model")
    assert (pipe.config["shift"], pipe.config["target"], pipe.config["lr_divisor"]) == (
        "released",
        "marginal_noise",
        256,
    )
    assert len(json.loads((tmp_path / "model/scheduler/scheduler_config.json").read_text())["trained_betas"]) == 100
    assert pipe(np.zeros((3, 4, 3), np.uint8), num_inference_steps=2).images[0].size == (16, 12)
    assert samdiffsr("convert", checkpoint, "-o", tmp_path / "model") == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
