"""The loop and one update: it learns, clips, averages, accumulates, and stops when the loss diverges."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from samdiffsr import LightEncoder, SamDiffSRError
from samdiffsr.training.checkpoint import checkpoints, load_checkpoint
from samdiffsr.training.run import train_diffusion, train_encoder
from support import lines, quiet, same, tiny, weights


def test_the_encoder_learns(photos, tmp_path):
    config = tiny(
        photos,
        tmp_path / "run",
        "encoder.optim.updates=60",
        "encoder.optim.learning_rate=0.003",
        "encoder.save_every=60",
    )
    train_encoder(config, resume=False, on_update=quiet)
    losses = [json.loads(line)["pixel"] for line in (tmp_path / "run/encoder/metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_averaged_weights_are_saved_and_not_the_last_ones(photos, tmp_path):
    config = tiny(photos, tmp_path / "run", "encoder.optim.learning_rate=0.01")
    saved = load_file(train_encoder(config, resume=False, on_update=quiet) / "diffusion_pytorch_model.safetensors")
    state, _ = load_checkpoint(tmp_path / "run/encoder/checkpoints")
    assert all(torch.equal(saved[name], state[f"ema.encoder.{name}"]) for name in saved)
    assert not all(torch.equal(saved[name], state[f"encoder.{name}"]) for name in saved)


def test_clipping_clips(photos, tmp_path):
    """With a tiny norm allowed, Adam's epsilon shows: the weights hardly move."""
    moved = {}
    for norm in (1.0, 1e-12):
        config = tiny(photos, tmp_path / str(norm), f"encoder.optim.clip_norm={norm}")
        train_encoder(config, resume=False, on_update=quiet)
        state, _ = load_checkpoint(tmp_path / str(norm) / "encoder/checkpoints")
        torch.manual_seed(0)
        start = LightEncoder(width=16, blocks=1).state_dict()
        moved[norm] = max(float((state[f"encoder.{name}"] - start[name]).abs().max()) for name in start)
    assert moved[1e-12] < 0.1 * moved[1.0]


def test_accumulation_gives_the_gradient_of_the_whole_batch(photos, tmp_path):
    states = []
    for accumulate in (1, 4):
        options = [f"encoder.data.accumulate={accumulate}", "encoder.data.batch=4", "encoder.loss.pixel=l2"]
        options += ["encoder.loss.adversarial_weight=0.01", "encoder.loss.discriminator_width=4"]
        train_encoder(tiny(photos, tmp_path / str(accumulate), *options), resume=False, on_update=quiet)
        states.append(load_checkpoint(tmp_path / f"{accumulate}/encoder/checkpoints")[0])
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_stays_near_float32(photos, tmp_path, precision):
    values = {}
    for kind in ("float32", precision):
        options = [f"{stage}.optim.precision={kind}" for stage in ("encoder", "diffusion")]
        config = tiny(photos, tmp_path / kind, *options, "diffusion.loss.adversarial_weight=0.01")
        train_encoder(config, resume=False, on_update=quiet)
        train_diffusion(config, resume=False, on_update=quiet)
        values[kind] = [record["pixel"] for record in lines(tmp_path / kind / "diffusion/metrics.jsonl")]
    assert values[precision] == pytest.approx(values["float32"], rel=0.03)
    assert values[precision] != values["float32"]


def test_the_encoder_learns_on_in_stage_2_at_its_own_rate(photos, tmp_path):
    moved = {}
    before = weights(train_encoder(tiny(photos, tmp_path / "0"), resume=False, on_update=quiet))["weights"]
    for rate in (0.001, 0.1):
        options = (f"diffusion.encoder={tmp_path / '0/encoder/weights'}", f"diffusion.encoder_rate={rate}")
        options += ("diffusion.base=bicubic",)
        after = weights(train_diffusion(tiny(photos, tmp_path / str(rate), *options), resume=False, on_update=quiet))
        moved[rate] = max(float((after["encoder"][name] - before[name]).abs().max()) for name in before)
        assert all(torch.equal(before[name], after["encoder"][name]) for name in before if name.startswith("head"))
    assert moved[0.1] == pytest.approx(100 * moved[0.001], rel=0.1)


def test_the_adversarial_term_waits_for_its_start(photos, tmp_path):
    options = ("encoder.loss.adversarial_weight=0.01", "encoder.loss.adversarial_start=2")
    train_encoder(tiny(photos, tmp_path / "run", *options), resume=False, on_update=quiet)
    records = lines(tmp_path / "run/encoder/metrics.jsonl")
    assert ["adversarial" in record for record in records] == [False, False, True, True]
    assert all(record["discriminator"] > 0 for record in records)


def test_a_loss_that_diverges_is_reported(photos, tmp_path):
    """The update, the images of its batch and the last good checkpoint, and no checkpoint after it."""
    options = ["optim.updates=40", "optim.warmup=39", "optim.learning_rate=0.1", "save_every=3", "log_every=4"]
    options = [f"encoder.{option}" for option in (*options, "optim.divergence=1.5")]
    with pytest.raises(SamDiffSRError) as caught:
        train_encoder(tiny(photos, tmp_path / "far", *options), resume=False, on_update=quiet)
    message = str(caught.value)
    assert "training diverged at update" in message
    assert "images a, b;" in message or "images a;" in message or "images b;" in message
    update = int(message.split("at update ")[1].split()[0])
    good = checkpoints(tmp_path / "far/encoder/checkpoints")
    assert f"checkpoint is {good[-1]}:" in message
    assert int(good[-1].name) < update <= int(good[-1].name) + 3
    assert [record["update"] for record in lines(tmp_path / "far/encoder/metrics.jsonl")] == list(range(1, update))


def test_infinite_loss_is_message(photos, tmp_path):
    options = ("diffusion.optim.learning_rate=1.0e+30", "diffusion.optim.warmup=0", "diffusion.save_every=1")
    train_encoder(tiny(photos, tmp_path / "run"), resume=False, on_update=quiet)
    with pytest.raises(SamDiffSRError, match=r"at update 2 \(.*(nan|inf).*checkpoints/00000001"):
        train_diffusion(tiny(photos, tmp_path / "run", *options), resume=False, on_update=quiet)


def test_rare_looks_at_the_loss_change_nothing(photos, tmp_path):
    for every in (1, 3):
        train_encoder(tiny(photos, tmp_path / str(every), f"encoder.log_every={every}"), resume=False, on_update=quiet)
    records = [lines(tmp_path / f"{every}/encoder/metrics.jsonl") for every in (1, 3)]
    assert [[r["update"], r["pixel"]] for r in records[0]] == [[r["update"], r["pixel"]] for r in records[1]]
    assert same(*(weights(tmp_path / f"{every}/encoder/weights") for every in (1, 3)))
