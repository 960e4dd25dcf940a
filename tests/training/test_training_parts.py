"""What surrounds the two losses: feeding, accumulation, precision, discriminator, validation, cost, configuration."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from samdiffsr import SamDiffSRError, SamDiffSRPipeline, imresize
from samdiffsr.cli import main
from samdiffsr.data.dataset import PreparedPhotos
from samdiffsr.models.discriminator import PatchDiscriminator
from samdiffsr.training.adversarial import TERMS, Opponent
from samdiffsr.training.checkpoint import checkpoints, load_checkpoint
from samdiffsr.training.config import DataConfig, _Frozen, load_config
from samdiffsr.training.cost import estimate_cost
from samdiffsr.training.feed import Feed
from samdiffsr.training.objective import normal, uniform
from samdiffsr.training.stages import (
    diffusion_objective,
    encoder_objective,
    new_objective,
    train_diffusion,
    train_encoder,
)
from samdiffsr.training.validation import centre
from support import quiet, same, tiny, weights

CPU = torch.device("cpu")


def feed(folder, draws, data: DataConfig, **options) -> Feed:
    source = PreparedPhotos(folder, crop_lr=data.crop_lr, candidates=data.candidates, flips=data.flips)
    return Feed(source, draws, data, 3, CPU, **options)


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def joined(parts) -> list[torch.Tensor]:
    """All that examples of an update are made of, its parts laid end to end."""
    rows = [
        [batch.hr, batch.lr, batch.structure, draws["t"], torch.tensor(draws["noise"]), torch.tensor(draws["phase"])]
        for batch, draws in parts
    ]
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def test_examples_depend_on_neither_processes_nor_parts_nor_threads(photos, tmp_path):
    draws = diffusion_objective(tiny(photos, tmp_path), encoder_objective(tiny(photos, tmp_path)).network).draws
    one = [joined(parts) for parts, _ in feed(photos, draws, DataConfig(crop_lr=4, batch=8, workers=0)).updates(2, 5)]
    assert not torch.equal(one[0][0], one[1][0])
    for processes, accumulate, workers in ((1, 4, 3), (2, 2, 1), (4, 1, 0)):
        data = DataConfig(crop_lr=4, batch=8, accumulate=accumulate, workers=workers)
        feeds = [
            feed(photos, draws, data, process=rank, processes=processes).updates(2, 5) for rank in range(processes)
        ]
        for whole, shares in zip(one, zip(*feeds, strict=True), strict=True):
            again = joined([part for parts, _ in shares for part in parts])
            assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    with pytest.raises(SamDiffSRError, match=r"data\.batch is 8.*3 processes"):
        feed(photos, draws, DataConfig(crop_lr=4, batch=8), processes=3)


def test_noise_of_an_example_is_its_own_and_standard_normal():
    shape = torch.Size((4, 3, 64, 64))
    noise = normal([5, 6, 7, 8], shape, CPU)
    assert torch.equal(noise[1:3], normal([6, 7], shape, CPU))
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.05
    even = uniform(np.random.Philox(0).random_raw(10_000))
    assert 0 <= even.min() < 0.01 and 0.99 < even.max() < 1


def test_draws_follow_their_distributions(photos, tmp_path):
    """t uniform but for the share at t = T, rollout by its share, phases in 0..3; seeds all different."""
    config = tiny(photos, tmp_path, "diffusion.last_step_share=0.5", "diffusion.rollout=0.25")
    drawn = diffusion_objective(config, encoder_objective(config).network).draws(0, 10, 2000)
    t = drawn["t"]
    assert float((t == 99).float().mean()) == pytest.approx(0.505, abs=0.04)
    assert np.bincount(t[t < 99] // 33, minlength=3) / 1000 == pytest.approx([0.33] * 3, abs=0.05)
    assert len(drawn["rolled"]) == pytest.approx(500, abs=70)
    assert np.bincount(np.ravel(drawn["phase"])) == pytest.approx([1000] * 4, abs=120)
    assert len({*drawn["noise"], *drawn["rollout_noise"]}) == 2000 + len(drawn["rolled"])


def test_an_error_in_a_feeding_thread_is_raised(photos):
    def draws(*_):
        raise SamDiffSRError("here")

    with pytest.raises(SamDiffSRError, match="here"):
        next(feed(photos, draws, DataConfig(crop_lr=4, batch=1)).updates(0, 9))


def test_crops_per_image(photos):
    options = {"crop_lr": 4, "candidates": 1, "flips": True}
    source = PreparedPhotos(photos, **options, crops_per_image=3)
    stems = [source.stem(0, index) for index in range(60)]
    assert all(len(set(stems[first : first + 3])) == 1 for first in range(0, 60, 3))
    assert set(stems) == {"a", "b"}
    crops = [source.crop(0, index)[0] for index in range(3)]
    assert not np.array_equal(crops[0], crops[1])
    plain = PreparedPhotos(photos, **options)
    assert len({plain.stem(0, index) for index in range(3, 6)}) == 2


def test_accumulation_gives_the_gradient_of_the_whole_batch(photos, tmp_path):
    states = []
    for accumulate in (1, 4):
        options = [f"encoder.data.accumulate={accumulate}", "encoder.data.batch=4", "encoder.loss.pixel=l2"]
        options += ["encoder.loss.adversarial_weight=0.01", "encoder.loss.discriminator_width=4"]
        train_encoder(tiny(photos, tmp_path / str(accumulate), *options), resume=False, progress=quiet)
        states.append(load_checkpoint(tmp_path / f"{accumulate}/encoder/checkpoints")[0])
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-6, rtol=0)


def test_muon_turns_all_hidden_directions_alike(photos, tmp_path):
    """Its first step is nearly a multiple of an orthogonal matrix; the first and last layers and biases get AdamW's."""
    rate = 1e-3
    options = ["encoder.optim.optimizer=muon", "encoder.optim.updates=1", "encoder.optim.schedule=constant"]
    options += ["encoder.optim.warmup=0", f"encoder.optim.learning_rate={rate}", "encoder.optim.ema_decay=0"]
    config = tiny(photos, tmp_path / "run", *options)
    before = encoder_objective(config).network.state_dict()
    after = weights(train_encoder(config, resume=False, progress=quiet))["weights"]
    for name, tensor in before.items():
        step = after[name] - tensor
        if name.startswith(("trunk", "conv_out")) and step.ndim == 4:
            values = torch.linalg.svdvals(step.flatten(1)) / (0.2 * rate * math.sqrt(step[0].numel()))
            assert values.min() > 0.5 and values.max() < 1.5, name
        else:
            assert float(step.abs().max()) == pytest.approx(rate, rel=0.01), name


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_stays_near_float32(photos, tmp_path, precision):
    values = {}
    for kind in ("float32", precision):
        options = [f"{stage}.optim.precision={kind}" for stage in ("encoder", "diffusion")]
        config = tiny(photos, tmp_path / kind, *options, "diffusion.loss.adversarial_weight=0.01")
        train_encoder(config, resume=False, progress=quiet)
        train_diffusion(config, resume=False, progress=quiet)
        values[kind] = [record["pixel"] for record in lines(tmp_path / kind / "diffusion/metrics.jsonl")]
    assert values[precision] == pytest.approx(values["float32"], rel=0.03)
    assert values[precision] != values["float32"]


def test_the_encoder_learns_on_in_stage_2_at_its_own_rate(photos, tmp_path):
    moved = {}
    before = weights(train_encoder(tiny(photos, tmp_path / "0"), resume=False, progress=quiet))["weights"]
    for rate in (0.001, 0.1):
        options = (f"diffusion.encoder={tmp_path / '0/encoder/weights'}", f"diffusion.encoder_rate={rate}")
        after = weights(train_diffusion(tiny(photos, tmp_path / str(rate), *options), resume=False, progress=quiet))
        moved[rate] = max(float((after["encoder"][name] - before[name]).abs().max()) for name in before)
        assert all(torch.equal(before[name], after["encoder"][name]) for name in before if name.startswith("head"))
    assert moved[0.1] == pytest.approx(100 * moved[0.001], rel=0.1)


def test_adversarial_terms():
    real, fake = torch.tensor([1.5, -0.2]), torch.tensor([0.3, -2.0])
    expected = {
        "softplus": (np.log1p(np.exp([-1.5, 0.2])).mean() + np.log1p(np.exp([0.3, -2.0])).mean(), None),
        "hinge": ((0 + 1.2) / 2 + (1.3 + 0) / 2, (-0.3 + 2.0) / 2),
        "relativistic": (np.log1p(np.exp([-1.2, -1.8])).mean(), np.log1p(np.exp([1.2, 1.8])).mean()),
    }
    expected["softplus"] = (expected["softplus"][0], np.log1p(np.exp([-0.3, 2.0])).mean())
    for kind, pair in expected.items():
        assert [float(term(real, fake)) for term in TERMS[kind]] == pytest.approx(pair)


def test_gradients_of_the_adversarial_terms_go_where_they_shall():
    torch.manual_seed(0)
    opponent = Opponent(PatchDiscriminator(4), "relativistic")
    hr, base = torch.rand(2, 1, 3, 8, 8) * 2 - 1
    estimate = (hr + 0.1).requires_grad_(True)
    opponent.term(hr, estimate, base).backward()
    assert float(estimate.grad.abs().sum()) > 0
    assert all(p.grad is None and p.requires_grad for p in opponent.parameters())
    estimate.grad = None
    opponent(hr, estimate, base).backward()
    assert estimate.grad is None
    assert all(p.grad is not None for p in opponent.network.inner.parameters())


def test_the_discriminator_learns_and_its_norms_are_one():
    torch.manual_seed(0)
    opponent = Opponent(PatchDiscriminator(8), "softplus")
    adam = torch.optim.Adam(opponent.parameters(), lr=3e-3)
    hr = torch.rand(4, 3, 16, 16) * 2 - 1
    base = F.avg_pool2d(hr, 5, 1, 2)
    losses = []
    for _ in range(60):
        opponent.network.estimate_norms()
        adam.zero_grad()
        loss = opponent(hr, base, base)
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    for _ in range(30):
        opponent.network.estimate_norms()
    for layer in opponent.network.inner:
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.02)
    weight = opponent.network.inner[0].weight
    opponent(hr, base, base)
    assert torch.equal(opponent.network.inner[0].weight, weight)  # looking changes nothing


def test_the_adversarial_term_waits_for_its_start(photos, tmp_path):
    options = ("encoder.loss.adversarial_weight=0.01", "encoder.loss.adversarial_start=2")
    train_encoder(tiny(photos, tmp_path / "run", *options), resume=False, progress=quiet)
    records = lines(tmp_path / "run/encoder/metrics.jsonl")
    assert ["adversarial" in record for record in records] == [False, False, True, True]
    assert all(record["discriminator"] > 0 for record in records)


@pytest.fixture(scope="module")
def validation_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    for number, size in enumerate(((50, 40), (33, 64), (90, 90))):
        y, x = np.mgrid[: size[0], : size[1]]
        grey = (127 + 60 * np.sin(x / (3 + number)) + 60 * np.cos(y / 4)).astype(np.uint8)
        Image.fromarray(np.stack([grey, grey, 255 - grey], axis=2)).save(folder / f"{number}.png")
    return folder


def test_validation_scores_draws_and_keeps_the_best(photos, tmp_path, validation_folder):
    """Scores are those of the saved averaged weights; the best folder is of the update whose score is highest."""
    options = [
        f"validation.{key}" for key in (f"photos={validation_folder}", "every=2", "images=2", "side=48", "panel=1")
    ]
    options += ["tensorboard=true", "diffusion.optim.updates=6", "diffusion.optim.learning_rate=0.01"]
    config = tiny(photos, tmp_path / "run", *options)
    seen = {}

    def copy(update, record):  # the model of update n stands until the checkpoint of update n + 2
        if update in (3, 5):
            seen[update - 1] = weights(tmp_path / "run/model")

    train_encoder(config, resume=False, progress=quiet)
    seen[6] = weights(train_diffusion(config, resume=False, progress=copy))
    records = lines(tmp_path / "run/diffusion/validation.jsonl")
    assert [record["update"] for record in records] == [2, 4, 6]
    best = max(records, key=lambda record: record["psnr_y"])["update"]
    assert same(weights(tmp_path / "run/best"), seen[best])
    pipe = SamDiffSRPipeline.from_pretrained(tmp_path / "run/model")
    values, panel = [], None
    for number in range(2):
        hr = centre(np.asarray(Image.open(validation_folder / f"{number}.png")), 48)
        lr = imresize(hr, 1 / 4)
        sr = np.asarray(pipe(lr, generator=torch.Generator().manual_seed(0)).images[0])
        y = [16 + image.astype(float) @ [65.481, 128.553, 24.966] / 255 for image in (sr, hr)]
        inside = (slice(4, -4), slice(4, -4))
        values.append(10 * np.log10(255**2 / ((y[0] - y[1])[inside] ** 2).mean()))
        panel = np.hstack([lr.repeat(4, 0).repeat(4, 1), sr, hr]) if panel is None else panel
    assert records[-1]["psnr_y"] == pytest.approx(np.mean(values))
    assert 0 < records[-1]["ssim_y"] < 1
    assert np.array_equal(np.asarray(Image.open(tmp_path / "run/diffusion/panels/00000006.png")), panel)
    written = b"".join(file.read_bytes() for file in (tmp_path / "run/diffusion/tensorboard").iterdir())
    for tag in (b"metrics/pixel", b"validation/psnr_y", b"validation/lr | ours | hr"):
        assert tag in written
    assert (tmp_path / "run/encoder/best/config.json").exists()


def test_validation_changes_nothing(photos, tmp_path, validation_folder):
    for name, options in (("without", ()), ("with", (f"validation.photos={validation_folder}", "validation.every=1"))):
        train_encoder(tiny(photos, tmp_path / name, *options), resume=False, progress=quiet)
    assert same(*(weights(tmp_path / name / "encoder/weights") for name in ("without", "with")))


def test_validation_folders_that_cannot_be_used(photos, tmp_path):
    config = tiny(photos, tmp_path / "run", f"validation.photos={tmp_path}")
    (tmp_path / "._notes.png").write_bytes(b"what macOS leaves beside a picture")
    with pytest.raises(SamDiffSRError, match="has no image"):
        train_encoder(config, resume=False, progress=quiet)
    Image.new("RGB", (64, 31)).save(tmp_path / "small.png")
    with pytest.raises(SamDiffSRError, match=r"small\.png.*32x32"):
        train_encoder(config, resume=False, progress=quiet)


def test_centre():
    image = np.arange(11 * 14 * 3, dtype=np.uint8).reshape(11, 14, 3)
    assert np.array_equal(centre(image, 8), image[1:9, 3:11])
    assert centre(image, 99).shape == (8, 12, 3)


def test_a_loss_that_leaves_its_course_is_told(photos, tmp_path):
    """The step, the images of its batch and the last good checkpoint, and no checkpoint after it."""
    options = ["optim.updates=40", "optim.warmup=39", "optim.learning_rate=0.1", "save_every=3", "log_every=4"]
    options = [f"encoder.{option}" for option in (*options, "optim.divergence=1.5")]
    with pytest.raises(SamDiffSRError) as caught:
        train_encoder(tiny(photos, tmp_path / "far", *options), resume=False, progress=quiet)
    told = str(caught.value)
    assert "left its course at update" in told
    assert "images a, b;" in told or "images a;" in told or "images b;" in told
    update = int(told.split("at update ")[1].split()[0])
    good = checkpoints(tmp_path / "far/encoder/checkpoints")
    assert f"checkpoint is {good[-1]}:" in told
    assert int(good[-1].name) < update <= int(good[-1].name) + 3
    assert [record["update"] for record in lines(tmp_path / "far/encoder/metrics.jsonl")] == list(range(1, update))


def test_infinite_loss_is_told(photos, tmp_path):
    options = ("diffusion.optim.learning_rate=1.0e+30", "diffusion.optim.warmup=0", "diffusion.save_every=1")
    train_encoder(tiny(photos, tmp_path / "run"), resume=False, progress=quiet)
    with pytest.raises(SamDiffSRError, match=r"at update 2 \(.*(nan|inf).*checkpoints/00000001"):
        train_diffusion(tiny(photos, tmp_path / "run", *options), resume=False, progress=quiet)


def test_rare_looks_at_the_loss_change_nothing(photos, tmp_path):
    for every in (1, 3):
        train_encoder(tiny(photos, tmp_path / str(every), f"encoder.log_every={every}"), resume=False, progress=quiet)
    records = [lines(tmp_path / f"{every}/encoder/metrics.jsonl") for every in (1, 3)]
    assert [[r["update"], r["pixel"]] for r in records[0]] == [[r["update"], r["pixel"]] for r in records[1]]
    assert same(*(weights(tmp_path / f"{every}/encoder/weights") for every in (1, 3)))


def test_weights_carry_their_configuration(photos, tmp_path):
    config = tiny(photos, tmp_path / "run", "seed=5")
    train_encoder(config, resume=False, progress=quiet)
    model = train_diffusion(config, resume=False, progress=quiet)
    for part in ("encoder", "denoiser"):
        assert load_config(model / part / "diffusion_pytorch_model.safetensors", []) == config
    assert load_config(model / "denoiser/diffusion_pytorch_model.safetensors", ["seed=6"]).seed == 6
    plain = tmp_path / "run/encoder/checkpoints/00000004/tensors.safetensors"
    with pytest.raises(SamDiffSRError, match="NoneType"):
        load_config(plain, [])


def test_cost_against_a_count_by_hand(photos, tmp_path):
    """Stage 1 of tiny: convolutions of (in, out) channels at 8x8 pixels; backward costs twice the forward pass, less the
    gradient of the input of the first layer."""
    config = tiny(photos, tmp_path)
    objective = encoder_objective(config)
    cost = estimate_cost(objective, config.encoder)
    pairs = [(3, 16), (16, 16), (16, 16), (16, 16), (16, 48)]
    forward = sum(2 * 9 * a * b * 64 for a, b in pairs)
    assert cost.flop == 2 * (3 * forward - 2 * 9 * 3 * 16 * 64)
    assert (cost.learning, cost.frozen) == (sum(9 * a * b + b for a, b in pairs), 0)
    kept = 4 * 64 * (3 + 16 * 6 + 48)  # inputs of the convolutions, at the least
    assert cost.memory - 20 * cost.learning >= 2 * kept / 2
    halves = estimate_cost(
        objective, config.encoder.model_copy(update={"data": DataConfig(crop_lr=8, batch=4, accumulate=2)})
    )
    assert (halves.flop, halves.memory) == (2 * cost.flop, cost.memory)
    second = estimate_cost(diffusion_objective(config, objective.network), config.diffusion)
    assert second.frozen == cost.learning


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["train", "tiny", "--dry-run", "--set", "diffusion.loss.adversarial_weight=0.1"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    plan, costs = told.split("# encoder:")
    (tmp_path / "plan.yaml").write_text(plan)
    assert load_config(tmp_path / "plan.yaml", []) == load_config("tiny", ["diffusion.loss.adversarial_weight=0.1"])
    assert "14,368 parameters learn" in costs
    assert "14,368 are frozen" in costs
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
    assert math.isfinite(float(costs.split("takes ")[1].split()[0]))


def test_feature_channels_must_fit_the_encoder(photos, tmp_path):
    train_encoder(tiny(photos, tmp_path / "run"), resume=False, progress=quiet)
    config = tiny(photos, tmp_path / "run", "diffusion.network.feature_channels=8")
    with pytest.raises(SamDiffSRError, match="feature_channels is 8, but the encoder has 16"):
        train_diffusion(config, resume=False, progress=quiet)


def test_what_stage_2_refuses_is_refused_before_stage_1(photos, tmp_path, capsys):
    options = [f"photos={photos}", f"output={tmp_path / 'run'}", "diffusion.network.feature_channels=8"]
    with pytest.raises(SystemExit) as caught:
        main(["train", "tiny", *(word for option in options for word in ("--set", option))])
    assert caught.value.code == 2 and "but the encoder has 16" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_plan_is_of_the_encoder_that_will_be_used(photos, tmp_path):
    wide = ("encoder.network.width=24", "diffusion.network.feature_channels=24")
    started = train_encoder(tiny(photos, tmp_path / "wide", *wide), resume=False, progress=quiet)
    config = tiny(photos, tmp_path / "run", f"encoder.start={started}", wide[1])
    found = new_objective(config, "diffusion").encoder
    assert found.feature_channels == 24


def test_a_checkpoint_of_another_optimizer_is_refused(photos, tmp_path):
    train_encoder(tiny(photos, tmp_path / "run"), resume=False, progress=quiet)
    other = tiny(photos, tmp_path / "run", "encoder.optim.optimizer=muon", "encoder.optim.updates=6")
    with pytest.raises(SamDiffSRError, match="'muon', but the checkpoint is of 'adamw'"):
        train_encoder(other, resume=True, progress=quiet)


@pytest.mark.parametrize("sizes", ["width=0", "width=-3", "blocks=-1", "width=wide"])
def test_impossible_networks_are_refused(photos, tmp_path, sizes):
    for stage in ("encoder", "diffusion"):
        with pytest.raises(SamDiffSRError, match=sizes.partition("=")[2]):
            new_objective(tiny(photos, tmp_path / "run", f"{stage}.network.{sizes}"), stage)


def test_an_output_that_cannot_be_made_is_told(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SamDiffSRError, match="cannot be made"):
        train_encoder(tiny(photos, tmp_path / "file"), resume=False, progress=quiet)


def test_every_field_of_the_configuration_is_read(photos, tmp_path, validation_folder, monkeypatch):
    """Attribute reads are recorded while both stages run; printing and storing the configuration do not count."""
    options = ("encoder.optim.schedule=step", "encoder.optim.step_every=2", f"validation.photos={validation_folder}")
    config = tiny(photos, tmp_path / "run", *options, "encoder.loss.adversarial_weight=0.01")
    wanted, read, plain = set(), set(), _Frozen.__getattribute__

    def collect(section: _Frozen) -> None:
        for name, value in section:
            wanted.add((type(section).__name__, name))
            if isinstance(value, _Frozen):
                collect(value)

    def record(self, name):
        read.add((type(self).__name__, name))
        return plain(self, name)

    collect(config)
    monkeypatch.setattr(_Frozen, "__getattribute__", record)
    train_encoder(config, resume=False, progress=quiet)
    train_diffusion(config, resume=False, progress=quiet)
    assert len(wanted) > 60
    # What both stages have is read from either.
    shared = {("StageConfig", name) for kind, name in read if kind == "DiffusionConfig"}
    assert wanted - read - shared - {("DiffusionConfig", name) for kind, name in read if kind == "StageConfig"} == set()
