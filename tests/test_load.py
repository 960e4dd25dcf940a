"""A model by its name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from samdiffsr.errors import CheckpointError
from samdiffsr.load import load_model, load_upscaler
from samdiffsr.pipeline import SamDiffSRPipeline
from samdiffsr.sampling.upscaler import Upscaler
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


def test_an_upscaler_without_a_pipeline_gives_the_same_pictures(tiny_pipe_dir: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    plain, pipe = load_upscaler(tiny_pipe_dir, "cpu"), load_model(tiny_pipe_dir, "cpu")
    assert type(plain) is Upscaler
    found, wanted = (
        one(image, generator=torch.Generator().manual_seed(0), output_type="uint16").images[0] for one in (plain, pipe)
    )
    np.testing.assert_array_equal(found, wanted)
    assert plain.device == pipe.device and not plain.encoder.training and not plain.denoiser.training


@pytest.mark.parametrize("missing", ["detail", "scheduler of another library", "no settings"])
def test_a_folder_with_more_or_less_than_an_upscaler_needs_becomes_a_pipeline(
    tiny_pipe_dir: Path, tmp_path: Path, missing: str
) -> None:
    folder = Path(shutil.copytree(tiny_pipe_dir, tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    if missing == "detail":  # of an older version: the pipeline has a default
        del index["detail"]
        (folder / "model_index.json").write_text(json.dumps(index))
        assert isinstance(load_upscaler(folder, "cpu"), SamDiffSRPipeline)
        return
    index = {} if missing == "no settings" else index | {"scheduler": ["nowhere", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model folder .* cannot be loaded"):
        load_upscaler(folder, "cpu")


def test_an_upscaler_of_a_released_checkpoint_is_its_pipeline() -> None:
    assert isinstance(load_upscaler(CHECKPOINT, "cpu"), SamDiffSRPipeline)


def test_a_model_saved_before_its_maps_were_described_is_an_upscaler_still(tiny_pipe_dir: Path, tmp_path: Path) -> None:
    """So is the embedded model: a pipeline would start slower."""
    folder = Path(shutil.copytree(tiny_pipe_dir, tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    assert (index.pop("mean_over"), index.pop("normalise")) == ("region", "none")
    (folder / "model_index.json").write_text(json.dumps(index))
    for found in (load_upscaler(folder, "cpu"), load_upscaler("default", "cpu")):
        assert type(found) is Upscaler
        assert (found.config["mean_over"], found.config["normalise"]) == ("region", "none")
