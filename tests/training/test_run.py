"""Both stages, from a configuration to a pipeline folder."""

import json

import numpy as np
import pytest
import torch

from samdiffsr import SamDiffSRError, SamDiffSRPipeline
from samdiffsr.training.run import check, train_diffusion, train_encoder
from support import quiet, same, tiny, weights


def test_both_stages_end_in_a_pipeline_that_works(photos, tmp_path):
    config = tiny(photos, tmp_path / "run")
    train_encoder(config, resume=False, on_update=quiet)
    pipe = SamDiffSRPipeline.from_pretrained(train_diffusion(config, resume=False, on_update=quiet))
    assert pipe(np.zeros((3, 5, 3), np.uint8)).images[0].size == (20, 12)
    assert (pipe.config.target, pipe.config.shift, pipe.config.base, pipe.config.steps) == (
        "sample",
        "released",
        "encoder",
        2,
    )
    log = [json.loads(line) for line in (tmp_path / "run/diffusion/metrics.jsonl").read_text().splitlines()]
    assert [entry["update"] for entry in log] == [1, 2, 3, 4]
    assert all(entry["pixel"] > 0 and entry["grad_norm"] > 0 for entry in log)
    assert json.loads((tmp_path / "run/encoder/config.json").read_text())["seed"] == 0


def test_a_finished_run_can_be_saved_with_another_scheduler(photos, tmp_path):
    config = tiny(photos, tmp_path / "run")
    train_encoder(config, resume=False, on_update=quiet)
    before = weights(train_diffusion(config, resume=False, on_update=quiet))
    other = tiny(photos, tmp_path / "run", "diffusion.scheduler=lcm", "diffusion.steps=4")
    folder = train_diffusion(other, resume=True, on_update=quiet)
    assert same(weights(folder), before)
    pipe = SamDiffSRPipeline.from_pretrained(folder)
    assert (type(pipe.scheduler).__name__, pipe.config["steps"]) == ("LCMScheduler", 4)


def test_training_further_starts_from_the_given_networks(photos, tmp_path):
    first = tiny(photos, tmp_path / "first")
    train_encoder(first, resume=False, on_update=quiet)
    model = train_diffusion(first, resume=False, on_update=quiet)
    shared = (f"diffusion.encoder={tmp_path / 'first/encoder/weights'}", "diffusion.optim.learning_rate=1.0e-12")
    further = tiny(photos, tmp_path / "further", *shared, f"diffusion.start={model}")
    found = weights(train_diffusion(further, resume=False, on_update=quiet))["denoiser"]
    for name, tensor in weights(model)["denoiser"].items():
        torch.testing.assert_close(found[name], tensor, atol=1e-8, rtol=1e-6)
    again = tiny(
        photos,
        tmp_path / "again",
        f"encoder.start={shared[0].partition('=')[2]}",
        "encoder.optim.learning_rate=1.0e-12",
    )
    found = weights(train_encoder(again, resume=False, on_update=quiet))["weights"]
    for name, tensor in weights(tmp_path / "first/encoder/weights")["weights"].items():
        torch.testing.assert_close(found[name], tensor, atol=1e-8, rtol=1e-6)
    limited = check(
        tiny(photos, tmp_path / "x", f"encoder.start={model / 'encoder'}", "encoder.network.limit=3"), ("encoder",)
    )
    assert limited["encoder"].network.config["limit"] == 3
    with pytest.raises(SamDiffSRError, match="no encoder"):
        train_encoder(tiny(photos, tmp_path / "x", "encoder.start=x"), resume=False, on_update=quiet)
    with pytest.raises(SamDiffSRError, match="no denoiser"):
        train_diffusion(tiny(photos, tmp_path / "x", *shared, "diffusion.start=x"), resume=False, on_update=quiet)


def test_seeds_change_the_result(photos, tmp_path):
    folders = []
    for seed in (0, 1):
        config = tiny(photos, tmp_path / str(seed), f"seed={seed}")
        folders.append(weights(train_encoder(config, resume=False, on_update=quiet)))
    assert not same(*folders)


def test_the_encoder_is_frozen_in_stage_2(photos, tmp_path):
    config = tiny(photos, tmp_path / "run", "diffusion.optim.learning_rate=0.01")
    before = weights(train_encoder(config, resume=False, on_update=quiet))["weights"]
    after = weights(train_diffusion(config, resume=False, on_update=quiet))["encoder"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_finished_run_is_not_overwritten(photos, tmp_path):
    config = tiny(photos, tmp_path / "run")
    train_encoder(config, resume=False, on_update=quiet)
    with pytest.raises(SamDiffSRError, match="--resume"):
        train_encoder(config, resume=False, on_update=quiet)


def test_an_output_that_cannot_be_made_is_told(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SamDiffSRError, match="cannot be made"):
        train_encoder(tiny(photos, tmp_path / "file"), resume=False, on_update=quiet)
