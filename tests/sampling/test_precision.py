"""The type of the convolutions: small differences, the same tiles, and a result that does not suffice is made again."""

import numpy as np
import pytest
import torch

from samdiffsr.errors import ConfigError
from samdiffsr.evaluation.methods import model
from samdiffsr.images import Picture
from samdiffsr.sampling.precision import autocast_type
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.settings import Settings, from_text

SHORT = ["bfloat16", "float16"]
LR = np.random.default_rng(0).integers(0, 256, (21, 26, 3), dtype=np.uint8)


def sampled(pipe, image=LR, output_type="np", **options):
    return pipe(image, generator=torch.Generator().manual_seed(0), output_type=output_type, **options).images[0]


@pytest.mark.parametrize("precision", SHORT)
def test_close_to_float32_but_not_it(tiny_pipe, precision):
    exact, short = sampled(tiny_pipe), sampled(tiny_pipe, precision=precision)
    assert short.dtype == np.float32
    assert 0 < np.sqrt(((exact - short) ** 2).mean()) < 10 ** (-50 / 20)


@pytest.mark.parametrize("precision", SHORT)
def test_only_the_networks_compute_in_it(tiny_pipe, precision):
    """With detail 0 and an encoder that adds nothing, what is left is the bicubic base, to the bit."""
    torch.nn.init.zeros_(tiny_pipe.encoder.head.weight)
    torch.nn.init.zeros_(tiny_pipe.encoder.head.bias)
    exact, short = (sampled(tiny_pipe, detail=0, precision=kind) for kind in ("float32", precision))
    np.testing.assert_array_equal(exact, short)


@pytest.mark.parametrize("tile", [4, 9, 16])
@pytest.mark.parametrize("precision", SHORT)
def test_tiles_agree_with_the_whole_image(tiny_pipe, precision, tile):
    whole, tiled = (sampled(tiny_pipe, tile=side, precision=precision) for side in (0, tile))
    assert np.abs(whole - tiled).max() <= 1 / 255


def break_in_float16(pipe, part):
    """Weights whose answers float32 holds and float16 does not: 1e6 times as large."""
    network = pipe.encoder if part == "encoder" else pipe.denoiser
    with torch.no_grad():
        network.conv_in.weight.mul_(1e6)


@pytest.mark.parametrize("part", ["encoder", "denoiser"])
def test_an_overflow_is_computed_again_in_float32(tiny_pipe, part):
    break_in_float16(tiny_pipe, part)
    warnings: list[str] = []
    exact = sampled(tiny_pipe)
    assert np.isfinite(exact).all()
    again = sampled(tiny_pipe, precision="float16", on_warning=warnings.append)
    np.testing.assert_array_equal(again, exact)
    words = "float16 did not suffice, a number is not finite: the picture is computed again in float32"
    assert warnings == [words]


def test_a_picture_that_became_one_colour_is_computed_again(tiny_pipe):
    with torch.no_grad():  # a bias that float32 and bfloat16 hold: white everywhere
        tiny_pipe.encoder.head.bias.fill_(1e4)
    warnings: list[str] = []
    sampled(tiny_pipe, detail=0, precision="bfloat16", on_warning=warnings.append)
    assert warnings == ["bfloat16 did not suffice, the result has one colour: the picture is computed again in float32"]
    sampled(tiny_pipe, np.full_like(LR, 7), detail=0, precision="bfloat16", on_warning=warnings.append)
    assert len(warnings) == 1  # a picture of one colour may stay one


def test_files_are_warned_of_too(tiny_pipe):
    break_in_float16(tiny_pipe, "denoiser")
    result = enlarge(tiny_pipe, Picture(LR), Settings(precision="float16"))
    assert any("computed again in float32" in note for note in result.notes)


def test_auto_is_what_the_processor_has(tiny_pipe, monkeypatch):
    cpu = torch.device("cpu")
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda: False)
    assert autocast_type("auto", cpu) is None
    np.testing.assert_array_equal(sampled(tiny_pipe, precision="auto"), sampled(tiny_pipe))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert autocast_type("auto", cpu) is torch.bfloat16
    assert autocast_type("auto", cpu, repeats_released=True) is None
    assert autocast_type("bfloat16", cpu, repeats_released=True) is torch.bfloat16
    assert autocast_type("auto", torch.device("meta")) is None
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")  # private in torch: it may go
    assert autocast_type("auto", cpu) is None


def test_unknown_precisions_are_refused(tiny_pipe, tiny_pipe_dir):
    words = r"precision is 'half', but must be one of 'auto', 'float32', 'bfloat16', 'float16'"
    for call in (
        lambda: sampled(tiny_pipe, precision="half"),
        lambda: from_text(Settings, {"precision": "half"}),
        lambda: model(f"{tiny_pipe_dir}@precision=half", "cpu"),
    ):
        with pytest.raises(ConfigError, match=words):
            call()


def test_evaluate_records_it(tiny_pipe_dir):
    assert model(str(tiny_pipe_dir), "cpu").record["precision"] == "float32"
    assert model(f"{tiny_pipe_dir}@precision=bfloat16", "cpu").record["precision"] == "bfloat16"
