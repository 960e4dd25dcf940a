"""A model by its name, and the device it runs on."""

from pathlib import Path

import pytest
import torch

from samdiffsr.errors import CheckpointError, ConfigError
from samdiffsr.load import find_device, load_model
from support import GOLDEN

CHECKPOINT = GOLDEN / "released_small.ckpt"


def test_model_from_a_released_checkpoint() -> None:
    pipe = load_model(CHECKPOINT, "auto")
    assert type(pipe.denoiser).__name__ == "ConditionalUNet"


@pytest.mark.parametrize("kind", ["missing", "empty folder", "other file", "damaged.ckpt"])
def test_models_that_are_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "empty folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"something")
    with pytest.raises(CheckpointError) as caught:
        load_model(str(path), "cpu")
    message = str(caught.value)
    assert str(path) in message
    if "ckpt" not in kind:
        assert all(part in message for part in ("'default'", "model_index.json", ".ckpt"))
        assert message.endswith("does not exist." if kind == "missing" else "is none of these.")


@pytest.mark.parametrize("device", ["tpu", "cpu:x", "meta", "", "cuda:99"])
def test_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{device}' is not available here; use 'auto' or .*cpu\."):
        find_device(device)


def test_devices_that_are() -> None:
    assert find_device("cpu") == torch.device("cpu")
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert find_device("auto").type == best
