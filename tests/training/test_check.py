"""Refusals before the start, and the plan that --dry-run prints."""

import math
import re

import pytest
import torch

from samdiffsr import SamDiffSRError
from samdiffsr.cli import main
from samdiffsr.models.structure_head import takes_structure
from samdiffsr.training.config import load_config
from samdiffsr.training.run import check, train_diffusion, train_encoder
from support import quiet, tiny

BOTH = ("encoder", "diffusion")


def test_stage_2_without_an_encoder_is_refused(photos, tmp_path):
    with pytest.raises(SamDiffSRError, match="encoder folder"):
        train_diffusion(tiny(photos, tmp_path / "run"), resume=False, on_update=quiet)


def test_networks_of_the_wrong_arguments_are_named(photos, tmp_path):
    with pytest.raises(SamDiffSRError, match="depth"):
        train_encoder(tiny(photos, tmp_path, "encoder.network={depth: 3}"), resume=False, on_update=quiet)


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["train", "tiny", "--dry-run", "--set", "diffusion.loss.adversarial_weight=0.1"])
    assert end.value.code == 0
    plan, costs = capsys.readouterr().out.split("# encoder:")
    assert "# photos: folder data does not exist yet" in plan
    (tmp_path / "plan.yaml").write_text(plan)
    assert load_config(tmp_path / "plan.yaml", []) == load_config("tiny", ["diffusion.loss.adversarial_weight=0.1"])
    assert "14,368 parameters learn" in costs
    assert "14,368 are frozen" in costs
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
    assert math.isfinite(float(costs.split("takes ")[1].split()[0]))


@pytest.mark.parametrize("has", [False, True])
def test_a_short_type_that_the_processor_lacks_is_warned_of(has, tmp_path, monkeypatch, capsys):
    """Ten times as slow without a word would look like a stopped run."""
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda: has)
    monkeypatch.chdir(tmp_path)
    options = (
        "--set",
        "device=cpu",
        "--set",
        "encoder.optim.precision=bfloat16",
        "--set",
        "diffusion.optim.precision=float16",
    )
    with pytest.raises(SystemExit) as end:
        main(["train", "tiny", "--dry-run", *options])
    warnings = capsys.readouterr().err
    assert end.value.code == 0
    assert ("instructions for bfloat16" in warnings) is not has
    assert "--set diffusion.optim.precision=float32" in warnings, "no processor has float16 as its fast type"
    with pytest.raises(SystemExit):
        main(["train", "tiny", "--dry-run", "--set", "device=cpu"])
    assert not capsys.readouterr().err


def test_feature_channels_must_fit_the_encoder(photos, tmp_path):
    train_encoder(tiny(photos, tmp_path / "run"), resume=False, on_update=quiet)
    config = tiny(photos, tmp_path / "run", "diffusion.network.feature_channels=8")
    with pytest.raises(SamDiffSRError, match="feature_channels is 8, but the encoder has 16"):
        train_diffusion(config, resume=False, on_update=quiet)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("diffusion.network.feature_channels=8", "but the encoder has 16"),
        ("diffusion.encoder=nowhere", "encoder folder nowhere is missing"),
        ("diffusion.start=nowhere", "there is no denoiser in that folder"),
        ("diffusion.data.crop_lr=17", "has no image of at least 68x68 pixels"),
        ("diffusion.structure.encoding=cosine", "'cosine', but folder {photos} was prepared with 'rope': "),
        ("diffusion.structure.normalise=signed", "prepare the photographs with --normalise signed, or set"),
        ("diffusion.structure.mean_over=image", "prepare the photographs with --mean-over image, or set"),
        ("diffusion.structure.overlap=last", "or set diffusion.structure.overlap=sum"),
        ("photos={photos}/shard.tar", "has no manifest.json"),
    ],
)
def test_refusals_of_stage_2_come_before_stage_1(photos, tmp_path, capsys, option, message, dry):
    if "shard.tar" in option and dry:
        pytest.skip("a plan can be made before the photographs are prepared")
    options = [f"photos={photos}", f"output={tmp_path / 'run'}", option.format(photos=photos)]
    with pytest.raises(SystemExit) as caught:
        main(["train", "tiny", *dry, *(word for option in options for word in ("--set", option))])
    captured = capsys.readouterr()
    assert caught.value.code == 2 and message.format(photos=photos) in captured.err
    assert captured.out == "" and not (tmp_path / "run").exists()


def test_the_plan_is_of_the_encoder_that_will_be_used(photos, tmp_path):
    wide = ("encoder.network.width=24", "diffusion.network.feature_channels=24")
    started = train_encoder(tiny(photos, tmp_path / "wide", *wide), resume=False, on_update=quiet)
    config = tiny(photos, tmp_path / "run", f"encoder.start={started}", wide[1])
    found = check(config, BOTH)["diffusion"].encoder
    assert found.feature_channels == 24


@pytest.mark.parametrize("sizes", ["width=0", "width=-3", "blocks=-1", "width=wide"])
def test_impossible_networks_are_refused(photos, tmp_path, sizes):
    for stage in ("encoder", "diffusion"):
        with pytest.raises(SamDiffSRError, match=sizes.partition("=")[2]):
            check(tiny(photos, tmp_path / "run", f"{stage}.network.{sizes}"), BOTH)


@pytest.mark.parametrize(("built", "wanted"), [("false", "true"), ("true", "false")])
def test_a_started_denoiser_takes_the_map_or_not_as_it_was_built(photos, tmp_path, built, wanted):
    head = "diffusion.structure_weight=0.1"
    first = tiny(photos, tmp_path / "first", head, f"diffusion.network.structure_input={built}")
    train_encoder(first, resume=False, on_update=quiet)
    model = train_diffusion(first, resume=False, on_update=quiet)
    options = (head, f"diffusion.start={model}", f"encoder.start={model / 'encoder'}")
    message = f"structure_input is {wanted}, but for the denoiser in {re.escape(str(model))} it is {built}"
    with pytest.raises(SamDiffSRError, match=message):
        check(tiny(photos, tmp_path / "run", *options, f"diffusion.network.structure_input={wanted}"), BOTH)
    for same in ((), (f"diffusion.network.structure_input={built}",)):
        network = check(tiny(photos, tmp_path / "run", *options, *same), BOTH)["diffusion"].network
        assert takes_structure(network) == (built == "true")
