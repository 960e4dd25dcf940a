"""`samdiffsr export`: the one ONNX file gives what the pipeline gives from the same noise, from an image alone."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from samdiffsr import (
    ConditionalUNet,
    LightDenoiser,
    LightEncoder,
    NoiseSchedule,
    RRDBEncoder,
    SamDiffSRError,
    SamDiffSRPipeline,
)
from samdiffsr.cli import main
from samdiffsr.export import trace as trace_module
from samdiffsr.export.image import export_image
from samdiffsr.sampling.schedulers import make_scheduler


def light(scheduler=LCMScheduler, *, level=False, with_structure=False, **config) -> SamDiffSRPipeline:
    """A light pair with random weights that heed the time and the level."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = {"width": 16, "blocks": 1, "convs": 3, "activation": "silu", "level": level}
        encoder = LightEncoder(**trunk)
        denoiser = LightDenoiser(feature_channels=16, with_structure=with_structure, **trunk)
        torch.nn.init.normal_(denoiser.trunk[0].film.weight, std=0.3)
        torch.nn.init.normal_(denoiser.head.weight, std=0.1)
        if level:
            torch.nn.init.normal_(encoder.trunk[0].film.weight, std=0.3)
            torch.nn.init.normal_(denoiser.level_embedding.out.weight, std=0.3)
            torch.nn.init.constant_(encoder.level_head.out.bias, 0.4)
    target = "velocity" if scheduler is DDIMScheduler else "sample"
    config = {"base": "encoder", "steps": 2, "detail": 0.7, "residual_scale": 1.5} | config
    made = make_scheduler(scheduler, NoiseSchedule.cosine(20), target)
    pipe = SamDiffSRPipeline(encoder, denoiser, made, shift="released", target=target, **config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_level() -> SamDiffSRPipeline:
    return light(level=True)


def plain() -> SamDiffSRPipeline:
    return light(DDIMScheduler, base="bicubic", lr_divisor=256, steps=3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tracing takes seconds, so once: two models whose files have all inputs, and one in float16 that needs an image alone."""
    folder = tmp_path_factory.mktemp("onnx")
    export_image(with_level(), folder / "level.onnx", inputs=True)
    export_image(plain(), folder / "plain.onnx", inputs=True)
    export_image(with_level(), folder / "half.onnx", precision="float16", clean=0.25)
    assert sorted(path.name for path in folder.iterdir()) == ["half.onnx", "level.onnx", "plain.onnx"]
    return folder


def session(path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # the warning of inputs with defaults
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def picture(height, width, batch=1):
    return np.random.default_rng(height).random((batch, 3, height, width), np.float32)


def constants(path) -> dict[str, np.ndarray]:
    found = onnx.load(path).graph.initializer
    return {one.name: onnx.numpy_helper.to_array(one) for one in found if one.name in ("noise", "detail", "clean")}


def numbers(**values) -> dict[str, np.ndarray]:
    return {name: np.array([value], np.float32) for name, value in values.items()}


@pytest.mark.parametrize("size", [(7, 5), (60, 33), (1, 1)])
@pytest.mark.parametrize(
    ("name", "options"),
    [("level", {}), ("level", {"clean": 0.8, "detail": 1.3}), ("level", {"clean": 0.0}), ("plain", {"detail": 0.5})],
)
def test_file_equals_its_pipeline_given_the_same_noise(files, name, options, size):
    pipe = {"level": with_level, "plain": plain}[name]()
    image = picture(*size)
    wanted = pipe(torch.from_numpy(image[0]), generator=torch.Generator().manual_seed(5), output_type="pt", **options)
    source = torch.Generator().manual_seed(5)
    shape = (1, 3, 4 * size[0], 4 * size[1])
    draws = len(constants(files / f"{name}.onnx")["noise"])
    noise = torch.cat([torch.randn(shape, generator=source) for _ in range(draws)]).numpy()
    run = session(files / f"{name}.onnx").run
    (found,) = run(None, {"image": image, "noise": noise, **numbers(**options)})
    np.testing.assert_allclose(found, wanted.images.numpy(), atol=1e-4)
    if name == "level" and size != (1, 1):
        other = numbers(**options | {"clean": 0.5})
        assert np.abs(run(None, {"image": image, "noise": noise, **other})[0] - found).max() > 1e-3  # it is heard
    assert np.abs(run(None, {"image": image, "noise": -noise, **numbers(**options)})[0] - found).max() > 1e-3


def test_an_image_is_enough(files):
    for name in ("level", "plain"):
        model, image = session(files / f"{name}.onnx"), picture(70, 20)
        assert [one.name for one in model.get_inputs()] == ["image"]
        (found,) = model.run(None, {"image": image})
        assert found.shape == (1, 3, 280, 80)
        given = constants(files / f"{name}.onnx")
        tiled = np.tile(given["noise"], (1, 1, 2, 1))  # repeated to the size of the result
        assert np.array_equal(model.run(None, {"image": image, **given, "noise": tiled})[0], found)
        assert found.min() >= 0
        assert found.max() <= 1


def test_pictures_of_a_batch_do_not_see_each_other(files):
    model, images = session(files / "level.onnx"), picture(9, 30, batch=3)
    alone = np.concatenate([model.run(None, {"image": one[None]})[0] for one in images])
    np.testing.assert_allclose(model.run(None, {"image": images})[0], alone, atol=1e-5)


def test_half_precision_is_close_and_half_the_size(files):
    model = onnx.load(files / "half.onnx")
    assert [one.name for one in model.graph.input] == ["image"]
    assert {one.type.tensor_type.elem_type for one in (*model.graph.input, *model.graph.output)} == {
        onnx.TensorProto.FLOAT
    }
    given = constants(files / "half.onnx")
    assert given["clean"] == 0.25
    image = picture(40, 50)
    (found,) = session(files / "half.onnx").run(None, {"image": image})
    (wanted,) = session(files / "level.onnx").run(None, {"image": image, **given})
    assert 0 < np.abs(found - wanted).max() < 0.01
    weights = [one for one in model.graph.initializer if "conv" in one.name]
    assert weights
    assert {one.data_type for one in weights} == {onnx.TensorProto.FLOAT16}


def test_programs_can_infer_the_scale_and_learn_nothing_of_this_machine(files):
    for name in ("half", "level", "plain"):
        model = onnx.load(files / f"{name}.onnx")
        assert b"samdiffsr/models" not in (files / f"{name}.onnx").read_bytes()
        assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
        for dim, side in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 16, 24), strict=True):
            dim.dim_value = side
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0]
        assert [dim.dim_value for dim in inferred.type.tensor_type.shape.dim][1:] == [3, 64, 96]


def paper() -> SamDiffSRPipeline:
    encoder = RRDBEncoder(channels=8, blocks=2, growth=4)
    denoiser = ConditionalUNet(dim=8, multipliers=(1, 2, 2, 4), feature_channels=encoder.feature_channels)
    scheduler = make_scheduler(DDIMScheduler, NoiseSchedule.cosine(20), "marginal_noise")
    return SamDiffSRPipeline(encoder, denoiser, scheduler, target="marginal_noise", steps=4)


@pytest.mark.parametrize(
    ("pipe", "options", "named"),
    [
        (light(steps=9), {}, r"9 steps.*--networks"),
        (paper(), {}, r"ConditionalUNet.*--networks"),
        (light(level=True, with_structure=True), {}, "structure map"),
        (light(), {"clean": 0.5}, "not trained to clean"),
        (light(level=True), {"clean": 1.5}, r"1\.5"),
        (light(), {"precision": "float8"}, "float8.*float16"),
    ],
)
def test_what_cannot_be_one_file_is_refused(pipe, options, named, tmp_path):
    with pytest.raises(SamDiffSRError, match=named):
        export_image(pipe, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_if_the_file_does_not_repeat_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr("samdiffsr.export.image.IMAGE_TOLERANCE", 0.0)
    assert trace_module.TOLERANCE > 0
    with pytest.raises(SamDiffSRError, match="differs by"):
        export_image(light(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def samdiffsr(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code or 0


def test_default_model_is_one_file(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert samdiffsr("export", "--detail", "0.4") == 0
    assert capfd.readouterr() == ("model.onnx\n", "")  # no remarks of diffusers and onnxruntime
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert constants(tmp_path / "model.onnx")["detail"] == np.float32(0.4)
    model, image = session(tmp_path / "model.onnx"), picture(11, 8)
    assert [one.name for one in model.get_inputs()] == ["image"]
    assert not model.get_overridable_initializers()
    (found,) = model.run(None, {"image": image})
    pipe = SamDiffSRPipeline.from_pretrained("default")
    pipe.set_progress_bar_config(disable=True)
    first = pipe(torch.from_numpy(image[0]), generator=torch.Generator().manual_seed(1), output_type="pt", detail=0.4)
    np.testing.assert_allclose(found, first.images.numpy(), atol=0.2)  # another noise


def test_command_line_errors_are_one_sentence(tmp_path, tiny_pipe_dir, capsys):
    (tmp_path / "there.onnx").write_text("mine")
    for arguments, named in [
        (("-o", tmp_path / "there.onnx"), "exists already"),
        (("-o", tmp_path / "model"), ".onnx"),
        (("-o", tmp_path / "m.onnx", "--networks", "--inputs"), "--inputs"),
        (("-o", tmp_path / "m.onnx", "--detail", "3"), "3"),
        (("-o", tmp_path / "there.onnx" / "m.onnx"), "there.onnx' is not a folder; choose another output."),
        (("-o", tmp_path / "m.onnx", "--steps", "0"), "0"),
    ]:
        assert samdiffsr("export", "-m", tiny_pipe_dir, *arguments) == 2
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert (tmp_path / "there.onnx").read_text() == "mine"
