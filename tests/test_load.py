"""A model by its name."""

from pathlib import Path

import pytest

from samdiffsr.errors import CheckpointError
from samdiffsr.load import load_model
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
