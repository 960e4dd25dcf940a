"""Model folders that are damaged, incomplete or not ours are refused with their name, never used half."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from samdiffsr import LightDenoiser, LightEncoder, SamDiffSRError, SamDiffSRPipeline
from samdiffsr.models.weights import load_network


@pytest.fixture
def folder(tiny_pipe_dir, tmp_path):
    return shutil.copytree(tiny_pipe_dir, tmp_path / "model")


def change_weights(folder, change):
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("part", ["encoder", "denoiser"])
def test_weights_that_are_not_all_there_are_refused(folder, part):
    change_weights(folder / part, lambda tensors: tensors.pop("head.weight"))
    with pytest.raises(SamDiffSRError, match=rf"{part} .*head\.weight is missing"):
        SamDiffSRPipeline.from_pretrained(folder)
    change_weights(folder / part, lambda tensors: tensors.update({"head.weight": torch.zeros(48, 16, 3, 3)}))
    SamDiffSRPipeline.from_pretrained(folder)
    change_weights(folder / part, lambda tensors: tensors.update(more=torch.zeros(1)))
    with pytest.raises(SamDiffSRError, match="more is not wanted"):
        SamDiffSRPipeline.from_pretrained(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    change_weights(folder / "denoiser", lambda tensors: tensors["head.bias"].fill_(torch.nan))
    with pytest.raises(SamDiffSRError, match=r"head\.bias .* is not finite"):
        SamDiffSRPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("model_index.json", {"detail": "x"}),
        ("model_index.json", {"residual_scale": 0}),
        ("model_index.json", {"steps": "two"}),
        ("model_index.json", {"encoder": ["torch.nn", "Identity"]}),
        ("denoiser/config.json", {"width": "x"}),
        ("denoiser/config.json", {"blocks": -1}),
        ("encoder/config.json", {"blocks": 3}),
    ],
)
def test_foreign_settings_are_refused(folder, file, values):
    change_json(folder / file, **values)
    with pytest.raises(SamDiffSRError, match="model"):
        SamDiffSRPipeline.from_pretrained(folder)


def test_an_index_that_is_no_mapping_is_refused(folder):
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(SamDiffSRError, match="cannot be loaded"):
        SamDiffSRPipeline.from_pretrained(folder)


def test_a_scheduler_of_another_length_is_refused(folder, tiny_pipe):
    change_json(folder / "scheduler/scheduler_config.json", num_train_timesteps=1000)
    with pytest.raises(SamDiffSRError, match="100 betas, but num_train_timesteps is 1000"):
        SamDiffSRPipeline.from_pretrained(folder)(torch.zeros(3, 4, 4))


def test_networks_of_another_kind_are_refused(folder):
    assert isinstance(load_network(LightEncoder, folder / "encoder"), LightEncoder)
    with pytest.raises(SamDiffSRError, match="denoiser"):
        load_network(LightEncoder, folder / "denoiser")
    (folder / "denoiser/config.json").write_text("{")
    with pytest.raises(SamDiffSRError, match="cannot be loaded"):
        load_network(LightDenoiser, folder / "denoiser")
