"""Fine-tuning a finished model on the user's own pairs: it learns them and keeps what it could do."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr import LightDenoiser, LightEncoder, NoiseSchedule, SamDiffSRError, SamDiffSRPipeline, imresize
from samdiffsr.cli import main
from samdiffsr.data.dataset import Batch, PreparedPhotos
from samdiffsr.data.example import PrepareOptions
from samdiffsr.data.prepare import prepare_folder
from samdiffsr.evaluation.metrics import psnr_y
from samdiffsr.sampling.schedulers import named_scheduler
from samdiffsr.training.config import load_config
from samdiffsr.training.objective import EncoderObjective, known_level
from samdiffsr.training.run import check, open_photos, train_diffusion, train_encoder
from support import lines, quiet, tiny

ZERO = PrepareOptions(missing_masks="zero")


def picture(number: int, side: int = 192) -> np.ndarray:
    """Overlapping discs of colour with sharp edges: something to learn beyond bicubic."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side]
    image = np.full((side, side, 3), 128.0)
    for _ in range(60):
        (top, left), radius = rng.uniform(0, side, 2), rng.uniform(4, 24)
        image[np.hypot(y - top, x - left) < radius] = rng.uniform(0, 255, 3)
    return image.astype(np.uint8)


def blurred(hr: np.ndarray) -> np.ndarray:
    """The known blur: a mean over 9x9 HR pixels before the reduction."""
    wide = np.pad(hr.astype(float), ((4, 4), (4, 4), (0, 0)), "edge")
    mean = sum(wide[i : i + hr.shape[0], j : j + hr.shape[1]] for i in range(9) for j in range(9)) / 81
    return imresize(mean.round().astype(np.uint8), 1 / 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared folders `own` (blurred LR images, no masks) and `plain` of the same photographs."""
    root = tmp_path_factory.mktemp("own")
    for folder in ("hr", "lr"):
        (root / folder).mkdir()
    for number in range(4):
        hr = picture(number)
        Image.fromarray(hr).save(root / f"hr/{number}.png")
        Image.fromarray(blurred(hr)).save(root / f"lr/{number}.png")
    prepare_folder(root / "hr", None, root / "own", kind="none", options=ZERO, lr=root / "lr")
    prepare_folder(root / "hr", None, root / "plain", kind="none", options=ZERO)
    return root


@pytest.fixture(scope="module")
def model(data):
    """A small model with a level, trained on exact reductions until it learns little more from them."""
    more = ["data.batch=4", "optim.updates=200", "optim.learning_rate=4.0e-3", "optim.warmup=5", "log_every=50"]
    more = [f"encoder.{one}" for one in [*more, "network={width: 16, blocks: 1, level: true}", "save_every=200"]]
    more += ["diffusion.network={width: 16, blocks: 1, feature_channels: 16, level: true}", "diffusion.steps=3"]
    config = tiny(data / "plain", data / "first", *more, "diffusion.detail=0.5", "diffusion.scheduler=lcm")
    train_encoder(config, resume=False, on_update=quiet)
    return train_diffusion(config, resume=False, on_update=quiet)


def finetune(data, output, model, *overrides):
    fast = ["data.crop_lr=12", "data.batch=4", "optim.learning_rate=1.0e-3", "optim.warmup=5", "log_every=50"]
    names = [f"{stage}.{one}" for stage in ("encoder", "diffusion") for one in fast]
    names += ["encoder.optim.updates=100", "diffusion.optim.updates=6", "encoder.data.degrade=none"]
    return load_config("finetune", [f"start={model}", f"photos={data / 'own'}", f"output={output}", *names, *overrides])


def judge(folder) -> tuple[float, float]:
    """PSNR-Y of the encoder's estimate for an exact and for a blurred LR image of a picture that nobody trained on."""
    pipe, hr = SamDiffSRPipeline.from_pretrained(folder), picture(99)
    results = (
        pipe(lr, detail=0, clean=clean, output_type="uint8").images[0]
        for lr, clean in ((imresize(hr, 1 / 4), 0.0), (blurred(hr), None))
    )
    return tuple(psnr_y(result, hr) for result in results)  # pyright: ignore[reportReturnType]


def test_a_known_blur_is_learned_and_clean_pictures_stay(data, model, tmp_path):
    clean, own = judge(model)
    config = finetune(data, tmp_path / "run", model, "encoder.data.synthetic=0.25")
    train_encoder(config, resume=False, on_update=quiet)
    tuned = train_diffusion(config, resume=False, on_update=quiet)
    tuned_clean, tuned_own = judge(tuned)
    assert tuned_own > own + 0.2, (own, tuned_own)
    assert tuned_clean > clean - 0.1, (clean, tuned_clean)


def test_what_the_configuration_leaves_open_is_the_models(data, model, tmp_path):
    config = finetune(data, tmp_path, model, "diffusion.steps=1")
    assert config.family == "light" and config.encoder.start == model / "encoder" and config.diffusion.start == model
    stage = config.diffusion
    assert (stage.target, stage.shift, stage.base, stage.residual_scale) == ("sample", "released", "encoder", 4.0)
    assert (stage.scheduler, stage.steps, stage.detail, stage.timesteps) == ("lcm", 1, 0.5, 100)
    assert (config.encoder.data.degrade, stage.data.degrade) == ("none", "real")  # as set; since the model knows levels
    assert (config.encoder.network, stage.network) == ({}, {})
    assert load_config("finetune", []).diffusion.steps == SamDiffSRPipeline.from_pretrained("default").config["steps"]


@pytest.mark.parametrize(("kind", "steps", "most"), [("linear", 50, 0.999), ("cosine", 40, 0.5)])
def test_the_schedule_is_the_models(tiny_pipe, tmp_path, kind, steps, most):
    schedule = NoiseSchedule.named(kind, steps, max_beta=most)
    tiny_pipe.register_modules(scheduler=named_scheduler("ddim", schedule, "sample"))
    tiny_pipe.save_pretrained(tmp_path / "model")
    stage = load_config("finetune", [f"start={tmp_path / 'model'}"]).diffusion
    assert torch.equal(stage.process().schedule.betas, schedule.betas) and stage.scheduler == "ddim"
    bent = NoiseSchedule(schedule.betas**1.1)
    tiny_pipe.register_modules(scheduler=named_scheduler("ddim", bent, "sample"))
    tiny_pipe.save_pretrained(tmp_path / "bent")
    with pytest.raises(SamDiffSRError, match="neither the cosine nor the linear schedule"):
        load_config("finetune", [f"start={tmp_path / 'bent'}"])


@pytest.mark.parametrize(
    ("start", "message"), [("nowhere", "but 'nowhere' does not exist"), ("a.ckpt", "samdiffsr convert a.ckpt")]
)
def test_models_that_cannot_be_started_from(start, message):
    with pytest.raises(SamDiffSRError, match=message):
        load_config("finetune", [f"start={start}"])


def test_a_structure_head_needs_regions(tiny_pipe, data, tmp_path):
    pipe = tiny_pipe
    denoiser = LightDenoiser(width=16, blocks=1, feature_channels=16, with_structure=True)
    pipe = SamDiffSRPipeline(
        pipe.encoder, denoiser, pipe.scheduler, base="encoder", residual_scale=4.0, target="sample", steps=2
    )
    pipe.save_pretrained(tmp_path / "model")
    config = finetune(data, tmp_path / "run", tmp_path / "model", "encoder.optim.updates=6")
    assert config.diffusion.structure_weight > 0
    train_encoder(config, resume=False, on_update=quiet)
    with pytest.raises(SamDiffSRError, match=r"was prepared without regions, .*: prepare it with --masks"):
        train_diffusion(config, resume=False, on_update=quiet)


def test_unknown_levels_are_estimated_and_teach_nothing(data):
    """Known levels stay; the others are the encoder's own estimate, which gets no gradient from them."""
    torch.manual_seed(0)
    encoder = LightEncoder(width=16, blocks=1, level=True)
    batch: Batch = PreparedPhotos(
        data / "own", crop_lr=24, candidates=1, flips=True, degrade="real", synthetic=0.5
    ).batch(0, 0, 8)
    unknown = batch.level.isnan()
    assert 0 < unknown.sum() < 8
    level = known_level(encoder, batch)
    assert torch.equal(level[~unknown], batch.level[~unknown])
    assert encoder.level_head is not None
    with torch.no_grad():
        assert torch.equal(level[unknown], encoder.level_head(batch.lr).clamp(0, 1).square()[unknown])
    config = load_config("finetune", [f"photos={data / 'own'}"]).encoder
    everything = dataclasses.replace(batch, level=torch.full((8,), math.nan))
    draws = EncoderObjective(encoder, config).draws(0, 0, 8)
    terms = EncoderObjective(encoder, config)(everything, draws).terms
    assert terms["level"] == 0 and terms["pixel"].isfinite()
    terms["level"].backward()
    assert all(p.grad is None or not p.grad.any() for p in encoder.level_head.parameters())
    plain = LightEncoder(width=16, blocks=1)
    assert torch.isfinite(EncoderObjective(plain, config)(everything, draws).terms["pixel"])


@pytest.mark.parametrize("stage", ["encoder", "diffusion"])
def test_synthetic_inputs_teach_what_the_network_made_of_them_at_its_start(data, model, tmp_path, stage):
    """The loss of an unchanged network is that of the user's own pairs alone, and no photograph stands behind the rest."""
    config = finetune(data, tmp_path, model, f"{stage}.data.synthetic=0.5", f"{stage}.data.degrade=real")
    objective = check(config, ["encoder", "diffusion"])[stage]
    batch = open_photos(config, getattr(config, stage)).batch(0, 0, 8)
    own = batch.level.isnan()
    assert batch.synthetic is not None and torch.equal(batch.synthetic, ~own) and 0 < own.sum() < 8

    def pixel(synthetic):
        given = dataclasses.replace(batch, synthetic=synthetic)
        return objective(given, objective.draws(0, 0, 8)).terms["pixel"]

    with torch.no_grad():
        kept, all_photographs, nothing = pixel(batch.synthetic), pixel(None), pixel(torch.ones(8, dtype=torch.bool))
        assert nothing == 0 < kept < all_photographs
        next(objective.network.parameters()).mul_(1.1)
        assert pixel(torch.ones(8, dtype=torch.bool)) > 0
    objective.requires_grad_(True)
    assert objective.at_start is not None
    pixel(batch.synthetic).backward()
    assert all(p.grad is None for p in objective.at_start.parameters())
    plain = finetune(data, tmp_path, model, f"photos={data / 'plain'}")
    assert (
        open_photos(plain, getattr(plain, stage)).batch(0, 0, 2).synthetic is None
    )  # there the photographs are all there is


def test_a_new_network_has_nothing_to_remember():
    with pytest.raises(SamDiffSRError, match="remember is true, but there is no start"):
        load_config("tiny", ["photos=data", "output=run", "encoder.loss.remember=true"])


def test_the_command(data, model, tmp_path, capsys):
    words = ["train", "finetune", "-m", str(model), "--set", f"photos={data / 'own'}", "--set", f"output={tmp_path}"]
    for stage in ("encoder", "diffusion"):
        words += ["--set", f"{stage}.data.crop_lr=12", "--set", f"{stage}.optim.updates=21", "--set", f"{stage}.keep=1"]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0 and str(tmp_path / "model") in capsys.readouterr().out
    assert len(lines(tmp_path / "encoder/metrics.jsonl")) == 21
    again = load_config(tmp_path / "model/denoiser/diffusion_pytorch_model.safetensors", [])
    assert again.encoder.start == model / "encoder" and again.diffusion.start == model
    with pytest.raises(SystemExit) as end:
        main(["train", "finetune", "-m", "nowhere"])
    assert end.value.code == 2 and "'nowhere' does not exist" in capsys.readouterr().err
