"""The training core on two small photographs: it learns, resumes bit-equal, clips, averages, and refuses what cannot work."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from samdiffsr import LightDenoiser, LightEncoder, SamDiffSRError, SamDiffSRPipeline
from samdiffsr.data.dataset import Batch, PreparedPhotos
from samdiffsr.training.checkpoint import checkpoints, load_checkpoint
from samdiffsr.training.config import PRESETS, DiffusionConfig, LossConfig, OptimConfig, load_config
from samdiffsr.training.diffusion import DiffusionStage
from samdiffsr.training.features import STAGES, FeatureLoss
from samdiffsr.training.stages import train_diffusion, train_encoder
from samdiffsr.training.state import schedule_factor
from support import quiet, same, tiny, weights


def test_both_stages_end_in_a_pipeline_that_works(photos, tmp_path):
    config = tiny(photos, tmp_path / "run")
    train_encoder(config, resume=False, progress=quiet)
    pipe = SamDiffSRPipeline.from_pretrained(train_diffusion(config, resume=False, progress=quiet))
    assert pipe(np.zeros((3, 5, 3), np.uint8)).images[0].size == (20, 12)
    assert (pipe.config.target, pipe.config.shift, pipe.config.base, pipe.config.steps) == (
        "sample",
        "bridge",
        "encoder",
        2,
    )
    log = [json.loads(line) for line in (tmp_path / "run/diffusion/metrics.jsonl").read_text().splitlines()]
    assert [entry["update"] for entry in log] == [1, 2, 3, 4]
    assert all(entry["pixel"] > 0 and entry["grad_norm"] > 0 for entry in log)
    assert json.loads((tmp_path / "run/encoder/config.json").read_text())["seed"] == 0


def test_the_encoder_learns(photos, tmp_path):
    config = tiny(
        photos,
        tmp_path / "run",
        "encoder.optim.updates=60",
        "encoder.optim.learning_rate=0.003",
        "encoder.save_every=60",
    )
    train_encoder(config, resume=False, progress=quiet)
    losses = [json.loads(line)["pixel"] for line in (tmp_path / "run/encoder/metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


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
                    train(config, resume=False, progress=halt)
            train(config, resume=stop, progress=quiet)
            assert [found.name for found in checkpoints(tmp_path / name / stage / "checkpoints")] == [
                "00000002",
                "00000004",
            ]
    assert same(weights(tmp_path / "whole/model"), weights(tmp_path / "parts/model"))
    assert not same(weights(tmp_path / "whole/model"), {})


def test_a_finished_run_can_be_saved_with_another_scheduler(photos, tmp_path):
    config = tiny(photos, tmp_path / "run")
    train_encoder(config, resume=False, progress=quiet)
    before = weights(train_diffusion(config, resume=False, progress=quiet))
    other = tiny(photos, tmp_path / "run", "diffusion.scheduler=lcm", "diffusion.steps=4")
    folder = train_diffusion(other, resume=True, progress=quiet)
    assert same(weights(folder), before)
    pipe = SamDiffSRPipeline.from_pretrained(folder)
    assert (type(pipe.scheduler).__name__, pipe.config["steps"]) == ("LCMScheduler", 4)


def test_training_further_starts_from_the_given_networks(photos, tmp_path):
    first = tiny(photos, tmp_path / "first")
    train_encoder(first, resume=False, progress=quiet)
    model = train_diffusion(first, resume=False, progress=quiet)
    shared = (f"diffusion.encoder={tmp_path / 'first/encoder/weights'}", "diffusion.optim.learning_rate=1.0e-12")
    further = tiny(photos, tmp_path / "further", *shared, f"diffusion.start={model}")
    found = weights(train_diffusion(further, resume=False, progress=quiet))["denoiser"]
    for name, tensor in weights(model)["denoiser"].items():
        torch.testing.assert_close(found[name], tensor, atol=1e-8, rtol=1e-6)
    again = tiny(
        photos,
        tmp_path / "again",
        f"encoder.start={shared[0].partition('=')[2]}",
        "encoder.optim.learning_rate=1.0e-12",
    )
    found = weights(train_encoder(again, resume=False, progress=quiet))["weights"]
    for name, tensor in weights(tmp_path / "first/encoder/weights")["weights"].items():
        torch.testing.assert_close(found[name], tensor, atol=1e-8, rtol=1e-6)
    with pytest.raises(SamDiffSRError, match="no encoder"):
        train_encoder(tiny(photos, tmp_path / "x", "encoder.start=x"), resume=False, progress=quiet)
    with pytest.raises(SamDiffSRError, match="no denoiser"):
        train_diffusion(tiny(photos, tmp_path / "x", *shared, "diffusion.start=x"), resume=False, progress=quiet)


def test_seeds_change_the_result(photos, tmp_path):
    folders = []
    for seed in (0, 1):
        config = tiny(photos, tmp_path / str(seed), f"seed={seed}")
        folders.append(weights(train_encoder(config, resume=False, progress=quiet)))
    assert not same(*folders)


def test_averaged_weights_are_saved_and_not_the_last_ones(photos, tmp_path):
    config = tiny(photos, tmp_path / "run", "encoder.optim.learning_rate=0.01")
    saved = load_file(train_encoder(config, resume=False, progress=quiet) / "diffusion_pytorch_model.safetensors")
    state, _ = load_checkpoint(tmp_path / "run/encoder/checkpoints")
    assert all(torch.equal(saved[name], state[f"ema.encoder.{name}"]) for name in saved)
    assert not all(torch.equal(saved[name], state[f"encoder.{name}"]) for name in saved)


def test_clipping_clips(photos, tmp_path):
    """With a tiny norm allowed, Adam's epsilon shows: the weights hardly move."""
    moved = {}
    for norm in (1.0, 1e-12):
        config = tiny(photos, tmp_path / str(norm), f"encoder.optim.clip_norm={norm}")
        train_encoder(config, resume=False, progress=quiet)
        state, _ = load_checkpoint(tmp_path / str(norm) / "encoder/checkpoints")
        torch.manual_seed(0)
        start = LightEncoder(width=16, blocks=1).state_dict()
        moved[norm] = max(float((state[f"encoder.{name}"] - start[name]).abs().max()) for name in start)
    assert moved[1e-12] < 0.1 * moved[1.0]


def test_the_encoder_is_frozen_in_stage_2(photos, tmp_path):
    config = tiny(photos, tmp_path / "run", "diffusion.optim.learning_rate=0.01")
    before = weights(train_encoder(config, resume=False, progress=quiet))["weights"]
    after = weights(train_diffusion(config, resume=False, progress=quiet))["encoder"]
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("target", ["posterior_noise", "marginal_noise", "sample", "velocity"])
@pytest.mark.parametrize("shift", ["paper", "released", "bridge", "none"])
def test_every_shift_and_target_trains(photos, target, shift):
    loss, network = _stage(target=target, shift=shift, scheduler="ddpm", steps=100)
    terms = judge(loss, PreparedPhotos(photos, crop_lr=4, candidates=1, flips=True).batch(0, 0, 2))
    torch.stack(list(terms.values())).sum().backward()
    assert math.isfinite(terms["pixel"].item())
    assert float(network.head.weight.grad.abs().sum()) > 0


def judge(loss, batch):
    """The loss terms of a batch under the noise of examples 0, 1, ..."""
    return loss(batch, loss.draws(7, 0, len(batch.hr))).terms


def _stage(**options):
    torch.manual_seed(0)
    config = DiffusionConfig(
        optim=OptimConfig(updates=1, learning_rate=0.1), base="encoder", residual_scale=4, **options
    )
    network = LightDenoiser(width=8, blocks=1, feature_channels=8)
    return DiffusionStage(network, LightEncoder(width=8, blocks=1), config), network


def test_structure_reaches_the_noise(photos):
    batch = PreparedPhotos(photos, crop_lr=4, candidates=1, flips=True).batch(0, 0, 2)
    plain = Batch(batch.hr, batch.lr, torch.zeros_like(batch.structure))
    assert float(batch.structure.abs().max()) > 0
    for shift, differs in (("bridge", True), ("none", False)):
        loss, _ = _stage(shift=shift, target="marginal_noise")
        assert (judge(loss, batch)["pixel"].item() != judge(loss, plain)["pixel"].item()) == differs


def test_rollout_feeds_the_networks_own_estimate(photos):
    batch = PreparedPhotos(photos, crop_lr=4, candidates=1, flips=True).batch(0, 0, 2)
    values = []
    for rollout in (0.0, 1.0):
        loss, network = _stage(target="sample", rollout=rollout)
        seen = []
        network.register_forward_pre_hook(lambda _, arguments, seen=seen: seen.append(arguments[1].tolist()))
        values.append(judge(loss, batch)["pixel"].item())
    assert values[0] != values[1]
    assert seen[0] == [99, 99]
    assert len(seen) == 2


@pytest.fixture(scope="module")
def feature_file(tmp_path_factory):
    """Random weights in the layout of a VGG16's first three stages."""
    generator, tensors, before = torch.Generator().manual_seed(0), {}, 3
    for number, stage in enumerate(STAGES):
        for name in stage:
            after = 8 * 2**number
            tensors[f"{name}.weight"] = torch.randn(after, before, 3, 3, generator=generator) * 0.1
            tensors[f"{name}.bias"] = torch.zeros(after)
            before = after
    file = tmp_path_factory.mktemp("features") / "features.safetensors"
    save_file(tensors, file)
    return file


def test_feature_loss(feature_file):
    loss = FeatureLoss(feature_file)
    hr = torch.rand(1, 3, 16, 16) * 2 - 1

    def distance(image, phase=(0, 0)):
        return loss(image, hr, [phase])

    assert float(distance(hr)) == 0
    near, far = (hr + size * torch.randn_like(hr) for size in (0.02, 0.3))
    assert 0 < float(distance(near)) < float(distance(far))
    phases = itertools.product(range(4), repeat=2)
    assert len({float(distance(far, phase)) for phase in phases}) == 16  # where the pooling falls matters
    both = loss(torch.cat([far, near]), torch.cat([hr, hr]), [(1, 2), (3, 0)])
    assert float(both) == pytest.approx((float(distance(far, (1, 2))) + float(distance(near, (3, 0)))) / 2)
    near.requires_grad_(True)
    distance(near).backward()
    assert float(near.grad.abs().sum()) > 0
    assert not list(loss.parameters())


def test_feature_loss_is_part_of_the_total(photos, feature_file):
    batch = PreparedPhotos(photos, crop_lr=4, candidates=1, flips=True).batch(0, 0, 2)
    values = {}
    for weight in (0.1, 0.2):
        loss, _ = _stage(target="velocity", loss=LossConfig(features_weight=weight, features_file=feature_file))
        values[weight] = judge(loss, batch)
    assert values[0.2]["features"].item() == pytest.approx(2 * values[0.1]["features"].item())
    assert values[0.2]["pixel"].item() == values[0.1]["pixel"].item()


def test_torchvision_features_are_of_normalised_rgb(tmp_path):
    """The first stage against its formula; names and pixels are torchvision's."""
    state, before = {"classifier.0.bias": torch.zeros(1)}, 3
    for number, after in zip((0, 2, 5, 7, 10, 12, 14), (4, 4, 6, 6, 8, 8, 8), strict=True):
        state |= {
            f"features.{number}.weight": torch.randn(after, before, 3, 3),
            f"features.{number}.bias": torch.randn(after),
        }
        before = after
    torch.save(state, tmp_path / "vgg16.pth")
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = ((image + 1) / 2 - mean) / deviation
    for number in (0, 2):
        x = F.relu(F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1))
    found = FeatureLoss(tmp_path / "vgg16.pth").maps(image)
    torch.testing.assert_close(found[0], x / (x.norm(dim=1, keepdim=True) + 1e-8), atol=1e-5, rtol=1e-4)
    assert [tuple(part.shape) for part in found] == [(1, 4, 8, 8), (1, 6, 4, 4), (1, 8, 2, 2)]


def test_missing_feature_weights_are_named(tmp_path):
    with pytest.raises(SamDiffSRError, match=r"none\.safetensors"):
        FeatureLoss(tmp_path / "none.safetensors")
    save_file({"conv1_1.weight": torch.zeros(1)}, tmp_path / "half.safetensors")
    with pytest.raises(SamDiffSRError, match=r"conv1_1\.bias"):
        FeatureLoss(tmp_path / "half.safetensors")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "half.pth")
    with pytest.raises(SamDiffSRError, match=r"features\.0\.bias"):
        FeatureLoss(tmp_path / "half.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(SamDiffSRError, match=r"text\.pth cannot be read"):
        FeatureLoss(tmp_path / "text.pth")


def test_learning_rate_warms_up_and_decays():
    def factors(**options):
        optim = OptimConfig(updates=100, learning_rate=1.0, **options)
        return [schedule_factor(update, optim) for update in range(100)]

    cosine = factors(warmup=10)
    assert cosine[0] == pytest.approx(1 / 11)
    assert cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[99] < 0.001
    assert all(a < b for a, b in itertools.pairwise(cosine[:11]))
    assert all(a > b for a, b in itertools.pairwise(cosine[10:]))
    steps = factors(schedule="step", step_every=40, step_factor=0.5, warmup=1)
    assert steps == [0.5] + [1.0] * 39 + [0.5] * 40 + [0.25] * 20
    assert factors(schedule="constant") == [1.0] * 100


def test_stage_2_without_an_encoder_is_refused(photos, tmp_path):
    with pytest.raises(SamDiffSRError, match="encoder folder"):
        train_diffusion(tiny(photos, tmp_path / "run"), resume=False, progress=quiet)


def test_a_finished_run_is_not_overwritten(photos, tmp_path):
    config = tiny(photos, tmp_path / "run")
    train_encoder(config, resume=False, progress=quiet)
    with pytest.raises(SamDiffSRError, match="--resume"):
        train_encoder(config, resume=False, progress=quiet)


POSTERIOR = ("diffusion.target=posterior_noise", "diffusion.scheduler=ddpm", "diffusion.steps=100")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["diffusion.shft=paper"], "diffusion.shft"),
        (["diffusion.shift=papr"], "'bridge'"),
        (["encoder.optim.updates=many"], "encoder.optim.updates"),
        (["encoder.optim.updates=1"], "warmup"),
        (["diffusion.target=posterior_noise"], "posterior_noise"),
        (["diffusion.steps=101"], "101"),
        (["encoder.loss.features_weight=0.1"], "features_file"),
        (["seed"], "section.key=value"),
        (["seed=["], "seed=["),
        (["encoder.optim.schedule=step"], "step_every"),
        (["encoder.optim.step_every=2"], "step_every"),
        (["encoder.optim.precision=int8"], "precision"),
        (["encoder.loss.adversarial=wasserstein"], "'hinge'"),
        (["validation.best=distance"], "validation.distance"),
        ([*POSTERIOR, "diffusion.loss.adversarial_weight=0.1"], "adversarial_weight"),
        (["family.x=1"], "not a section"),
    ],
)
def test_bad_configurations_name_the_key(overrides, told):
    with pytest.raises(SamDiffSRError) as caught:
        load_config("tiny", overrides)
    assert told in str(caught.value)


def test_unreadable_configurations(tmp_path):
    with pytest.raises(SamDiffSRError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml", [])
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(SamDiffSRError, match="mapping"):
        load_config(tmp_path / "list.yaml", [])


def test_networks_of_the_wrong_arguments_are_named(photos, tmp_path):
    with pytest.raises(SamDiffSRError, match="depth"):
        train_encoder(tiny(photos, tmp_path, "encoder.network={depth: 3}"), resume=False, progress=quiet)


@pytest.mark.parametrize("preset", sorted(file.stem for file in PRESETS.glob("*.yaml")))
def test_presets_are_valid(preset, feature_file):
    overrides = [f"diffusion.loss.features_file={feature_file}"] if preset == "light-cpu" else []
    assert load_config(preset, overrides).family == ("paper" if preset == "paper" else "light")
