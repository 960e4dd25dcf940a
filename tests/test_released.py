"""Reading released checkpoints: parity with the released sampler, a clear sentence for each file that does not fit."""

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from samdiffsr.errors import CheckpointError
from samdiffsr.released import load_released, read_released, read_released_encoder
from samdiffsr.resize import imresize
from support import GOLDEN

CHECKPOINT = GOLDEN / "released_small.ckpt"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "released_small.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def original() -> dict:
    return torch.load(CHECKPOINT, weights_only=True)


@pytest.fixture
def content(original) -> dict:
    """A copy to change; the tensors themselves are shared, so replace them and do not write into them."""
    return {**original, "state_dict": {"model": dict(original["state_dict"]["model"])}}


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "changed.ckpt"


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def to_batch(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) in [0, 1] -> (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() * 2 - 1


# --- what a good file gives


def test_every_size_and_number_is_read(original):
    released = read_released(CHECKPOINT)
    encoder, denoiser = released.encoder.config, released.denoiser.config
    assert [encoder[key] for key in ("channels", "blocks", "growth", "scale", "image_channels")] == [16, 5, 8, 4, 3]
    assert [denoiser[key] for key in ("dim", "feature_channels", "scale", "image_channels")] == [16, 32, 4, 3]
    assert list(denoiser["multipliers"]) == [1, 2, 3, 4]
    assert released.global_step == 400_000
    assert not released.encoder.training
    assert not released.denoiser.training
    model = original["state_dict"]["model"]
    for prefix, network in (("rrdb.", released.encoder), ("denoise_fn.", released.denoiser)):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, model[prefix + name]), name


def test_betas_are_the_released_cosine_schedule():
    """Facts of the released code: a cosine over 101 points, clipped at 0.999; the file rounds it to float32."""
    x = np.linspace(0, 101, 101)
    f = np.cos(((x / 101) + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = read_released(CHECKPOINT).betas
    assert betas.dtype == torch.float64
    assert np.abs(betas.numpy() - np.clip(1 - f[1:] / f[:-1], 0, 0.999)).max() < 6e-8


def test_stock_scheduler_reproduces_the_released_sampler(golden):
    """Measured 2.9e-6. The encoder sees lr / 255, the upscaler lr / 256; either one wrong gives 4.7e-5 or 7e-3."""
    released = read_released(CHECKPOINT)
    scheduler = DDPMScheduler(
        num_train_timesteps=100,
        trained_betas=released.betas.tolist(),
        clip_sample=True,
        variance_type="fixed_small",
        prediction_type="epsilon",
    )
    scheduler.set_timesteps(100)
    up = to_batch(imresize(golden["lr"] / 256, scale=4))
    assert np.abs(up.numpy()[0].transpose(1, 2, 0) / 2 + 0.5 - golden["lr_up"]).max() < 1e-6
    generator = torch.Generator().manual_seed(int(golden["sample_seed"]))
    with torch.no_grad():
        features, _ = released.encoder.encode(to_batch(golden["lr"] / 255))
        x = torch.randn(up.shape, generator=generator)
        for t in scheduler.timesteps:
            noise = released.denoiser(x, t[None], features)
            x = scheduler.step(noise, int(t), x, generator=generator, return_dict=False)[0]
    assert np.abs((x.clamp(-1, 1) / 2 + up).numpy() - golden["sr"]).max() < 2e-5


def test_load_released_reproduces_the_released_sampler(golden):
    """Measured 1.4e-6 in [0, 1]; 2.4e-5 when the encoder, too, sees lr / 256."""
    pipeline = load_released(CHECKPOINT, released_preprocessing=True)
    generator = torch.Generator().manual_seed(int(golden["sample_seed"]))
    pipeline.set_progress_bar_config(disable=True)
    images = np.asarray(pipeline(golden["lr"], generator=generator, output_type="np", return_dict=False)[0])
    expected = np.clip(golden["sr"].transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1)
    assert images.shape == expected.shape
    assert np.abs(images - expected).max() < 1e-5


@pytest.mark.parametrize(("released_preprocessing", "divisor"), [(False, 255), (True, 256)])
def test_load_released_states_what_the_model_is(released_preprocessing, divisor):
    pipeline = load_released(CHECKPOINT, released_preprocessing=released_preprocessing)
    expected = {
        "base": "bicubic",
        "residual_scale": 2.0,
        "shift": "released",
        "target": "marginal_noise",
        "steps": 100,
        "lr_divisor": divisor,
    }
    assert {key: pipeline.config[key] for key in expected} == expected
    scheduler = pipeline.scheduler.config
    assert (scheduler["clip_sample"], scheduler["variance_type"]) == (True, "fixed_small")
    assert (scheduler["num_train_timesteps"], scheduler["prediction_type"]) == (100, "epsilon")


@pytest.mark.parametrize("zipped", [True, False])
def test_parallel_prefix_and_both_containers(content, file, zipped):
    model = content["state_dict"]["model"]
    content["state_dict"]["model"] = {f"module.{name}": tensor for name, tensor in model.items()}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert (file.read_bytes()[:2] == b"PK") is zipped
    expected, got = read_released(CHECKPOINT), read_released(str(file))
    assert same_weights(expected.encoder, got.encoder)
    assert same_weights(expected.denoiser, got.denoiser)


def test_half_precision_becomes_float32_and_the_step_may_be_absent(content, file):
    model = content["state_dict"]["model"]
    model.update({name: tensor.half() for name, tensor in model.items() if name.startswith("rrdb.")})
    del content["global_step"]
    torch.save(content, file)
    released = read_released(file)
    assert released.encoder.dtype == torch.float32
    assert released.global_step is None


def test_an_encoder_of_its_own(content, file):
    model = content["state_dict"]["model"]
    own = {name.removeprefix("rrdb."): tensor for name, tensor in model.items() if name.startswith("rrdb.")}
    torch.save({**content, "state_dict": {"model": own}}, file)
    assert same_weights(read_released_encoder(file), read_released(CHECKPOINT).encoder)
    with pytest.raises(CheckpointError, match="use read_released_encoder"):
        read_released(file)
    with pytest.raises(CheckpointError, match=r"use read_released\."):
        read_released_encoder(CHECKPOINT)


def test_an_encoder_for_scale_8(content, file):
    model = content["state_dict"]["model"]
    own = {name.removeprefix("rrdb."): tensor for name, tensor in model.items() if name.startswith("rrdb.")}
    own |= {f"upconv3.{part}": own[f"upconv2.{part}"] for part in ("weight", "bias")}
    torch.save({"state_dict": {"model": own}}, file)
    assert read_released_encoder(file).config["scale"] == 8


# --- tensors that do not fit, by name


@pytest.mark.parametrize(
    "name",
    [
        "betas",
        "posterior_mean_coef2",
        "rrdb.conv_first.weight",
        "rrdb.RRDB_trunk.4.RDB3.conv5.bias",
        "rrdb.conv_last.bias",
        "denoise_fn.cond_proj.weight",
        "denoise_fn.mlp.0.weight",
        "denoise_fn.downs.0.0.res_conv.weight",
        "denoise_fn.ups.2.2.conv.0.bias",
        "denoise_fn.final_conv.1.bias",
    ],
)
def test_tensors_are_named(content, file, name):
    """Missing, misshapen, not finite, not floating: each is reported under its own name, and nothing else is blamed."""
    model = content["state_dict"]["model"]
    tensor = model[name]
    changes = {
        "is missing": None,
        "instead of": torch.cat((tensor, tensor[:1])),
        "not finite": torch.full_like(tensor, float("nan")),
        "no dense floating tensor": tensor.long(),
    }
    for problem, changed in changes.items():
        del model[name]
        if changed is not None:
            model[name] = changed
        torch.save(content, file)
        with pytest.raises(CheckpointError) as caught:
            read_released(file)
        assert f"released model: {name} " in str(caught.value)
        assert problem in str(caught.value)
        assert ";" not in str(caught.value)
        model[name] = tensor


@pytest.mark.parametrize("name", ["gammas", "rrdb.upconv4.weight", "denoise_fn.downs.4.a", "rrdb.RRDB_trunk.5.b"])
def test_unknown_tensors_are_named(content, file, name):
    content["state_dict"]["model"][name] = torch.zeros(64, 16)
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=f"released model: {name} is unknown"):
        read_released(file)


def test_a_missing_half_is_named(content, file):
    model = content["state_dict"]["model"]
    content["state_dict"]["model"] = {name: tensor for name, tensor in model.items() if not name.startswith("rrdb.")}
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"rrdb\.RRDB_trunk"):
        read_released(file)
    content["state_dict"]["model"] = {name: tensor for name, tensor in model.items() if "." in name}
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="alphas_cumprod"):
        read_released(file)


def test_long_lists_are_cut(content, file):
    model = content["state_dict"]["model"]
    content["state_dict"]["model"] = {name: tensor for name, tensor in model.items() if ".RDB2." not in name}
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"RRDB_trunk\.0\.RDB2\.conv1\.weight is missing.* and 42 more\.$"):
        read_released(file)


def test_sizes_no_model_can_have(content, file):
    model = content["state_dict"]["model"]
    fewer = {name: tensor for name, tensor in model.items() if "RRDB_trunk." not in name or "RRDB_trunk.0." in name}
    torch.save({"state_dict": {"model": fewer}}, file)
    with pytest.raises(CheckpointError, match="blocks of the encoder is 1"):
        read_released(file)


# --- a schedule that contradicts itself


def test_every_schedule_buffer_is_compared_with_the_betas(content, file):
    model = content["state_dict"]["model"]
    buffers = [name for name in model if "." not in name and name != "betas"]
    assert len(buffers) == 11
    for name in buffers:
        original = model[name]
        model[name] = original.clone()
        model[name][50] *= 1 + 1e-3
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=f"contradicts itself: {name} is .* at step 50"):
            read_released(file)
        model[name] = original


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1])
def test_betas_must_be_probabilities(content, file, value):
    model = content["state_dict"]["model"]
    model["betas"] = model["betas"].clone()
    model["betas"][7] = value
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="must lie between 0 and 1"):
        read_released(file)


# --- files that are no checkpoints


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [3, 40, 1000, 30_000, 0.5, 0.999])
def test_truncated_files(original, file, zipped, kept):
    torch.save(original, file, _use_new_zipfile_serialization=zipped)
    data = file.read_bytes()
    file.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(CheckpointError, match=r"changed\.ckpt is (truncated|not a PyTorch checkpoint)"):
        read_released(file)


def test_a_file_that_ends_within_the_length_of_a_name(file):
    """The one truncation that torch.load reports as a bare struct.error."""
    data = CHECKPOINT.read_bytes()
    file.write_bytes(data[: data.index(b"alphas_cumprod") - 2])
    with pytest.raises(CheckpointError, match=r"truncated, damaged .* \(error\)"):
        read_released(file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_flipped_bytes_never_escape_as_another_error(file):
    data = bytearray(CHECKPOINT.read_bytes())
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        damaged = copy.copy(data)
        for position in generator.integers(0, 40_000, 3):  # the pickle, before the numbers
            damaged[position] ^= int(generator.integers(1, 256))
        file.write_bytes(damaged)
        try:
            read_released(file)
        except CheckpointError as error:
            assert "changed.ckpt" in str(error)  # noqa: PT017 - a few flips change nothing that matters
            refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1", "is not a PyTorch checkpoint: it starts with b'vers'"),
        (b"PK\x03\x04 and no archive", "is truncated, damaged or not a PyTorch checkpoint"),
        (pickle.dumps({"state_dict": 1}, 2), "is truncated, damaged or not a PyTorch checkpoint"),
    ],
)
def test_other_files(file, data, message):
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_released(file)


def test_no_file(file, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_released(file)
    with pytest.raises(CheckpointError, match="is not a file"):
        read_released(tmp_path)


def test_a_file_that_may_not_be_read(file, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    file.write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)  # chmod would not stop root, and CI may be root
    with pytest.raises(CheckpointError, match="cannot be opened: Permission denied"):
        read_released(file)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
def test_code_is_refused_and_not_run(content, file, tmp_path, container):
    marker = tmp_path / "ran"
    content["optimizer_states"] = Payload(marker)
    if container == "pickle":
        file.write_bytes(pickle.dumps(Payload(marker), 2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(CheckpointError, match=r"is refused because it refers to '\w+\.mkdir', which could run code"):
        read_released(file)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "no weights under 'state_dict' / 'model'"),
        ({"weights": {}}, "no weights under 'state_dict' / 'model'"),
        ({"state_dict": {"rrdb.conv_first.bias": torch.zeros(1)}}, "no weights under 'state_dict' / 'model'"),
        ({"state_dict": {"model": {}}}, "no weights under 'state_dict' / 'model'"),
        ({"state_dict": {"model": {"a": 1.0}}}, "has 'a' among its weights, a float and no tensor"),
        ({"state_dict": {"model": {"b": torch.zeros(1), "module.b": torch.zeros(1)}}}, "holds 'b' twice"),
        ({"state_dict": {"model": {"b": torch.zeros(1)}}, "global_step": "9"}, "global_step '9'"),
        ({"state_dict": {"model": {"b": torch.zeros(1)}}}, "not a full released model"),
    ],
)
def test_other_contents(file, content, message):
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=message):
        read_released(file)
