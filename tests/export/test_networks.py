"""`samdiffsr export --networks`: the ONNX files and their runner give what the networks and diffusers' schedulers give."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, LCMScheduler
from PIL import Image

from samdiffsr import (
    ConditionalUNet,
    LightDenoiser,
    LightEncoder,
    NoiseSchedule,
    RRDBEncoder,
    SamDiffSRError,
    SamDiffSRPipeline,
    imresize,
)
from samdiffsr.cli import main
from samdiffsr.export import trace as trace_module
from samdiffsr.export.networks import describe, export_networks
from samdiffsr.export.run_onnx import Upscaler, bicubic, gaussian
from samdiffsr.export.run_onnx import main as run_onnx
from samdiffsr.sampling.schedulers import make_scheduler

SIZES = [(7, 5), (33, 20), (1, 1)]


def light() -> SamDiffSRPipeline:
    """The light pair with random weights that heed the time; its base is the encoder's estimate."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, denoiser = LightEncoder(width=16, blocks=1), LightDenoiser(width=16, blocks=1, feature_channels=16)
        torch.nn.init.normal_(denoiser.trunk[0].film.weight, std=0.3)
        torch.nn.init.normal_(denoiser.head.weight, std=0.1)
    scheduler = make_scheduler(LCMScheduler, NoiseSchedule.cosine(20), "sample")
    return SamDiffSRPipeline(
        encoder,
        denoiser,
        scheduler,
        base="encoder",
        residual_scale=1.5,
        detail=0.7,
        shift="released",
        target="sample",
        steps=3,
    )


def paper() -> SamDiffSRPipeline:
    """The paper's networks, small; the base is bicubic and darker, the scheduler the released one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = RRDBEncoder(channels=8, blocks=2, growth=4)
        denoiser = ConditionalUNet(dim=8, multipliers=(1, 2, 3, 4), feature_channels=encoder.feature_channels)
    scheduler = make_scheduler(DDPMScheduler, NoiseSchedule.cosine(20), "marginal_noise")
    return SamDiffSRPipeline(encoder, denoiser, scheduler, target="marginal_noise", steps=20, lr_divisor=256)


FAMILIES = {"light": light, "paper": paper}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Both families' folders; tracing takes seconds, so once. The paper's goes into a folder that exists."""
    parent = tmp_path_factory.mktemp("onnx")
    (parent / "paper").mkdir()
    (parent / "paper/notes.txt").write_text("mine")
    for name, make in FAMILIES.items():
        export_networks(make(), parent / name, overwrite=name == "paper")
    assert sorted(path.name for path in parent.iterdir()) == ["light", "paper"]
    assert (parent / "paper/notes.txt").read_text() == "mine"
    (parent / "paper/notes.txt").unlink()
    return {name: parent / name for name in FAMILIES}


def again(folder, pipe, tmp_path):
    """What an export of `pipe`, whose networks `folder` holds, would give."""
    shutil.copytree(folder, tmp_path / "again")
    checksums = json.loads((folder / "config.json").read_text())["sha256"]
    (tmp_path / "again/config.json").write_text(json.dumps(describe(pipe) | {"sha256": checksums}))
    return tmp_path / "again"


def picture(height, width):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def calm(height, width):
    """Of noise of full contrast the default encoder makes 1000 times as much of rounding as of photographs."""
    return picture(height, width) // 4 + 96


def torch_noise(seed=0):
    """The numbers of a torch generator, as the runner asks for them."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator).numpy()


@torch.inference_mode()
def reference(pipe, image, steps):
    """The method written out: the networks, a stock scheduler, one generator for x_T and the steps."""
    generator = torch.Generator().manual_seed(0)
    height, width = image.shape[:2]
    multiple, least = pipe.denoiser.hr_multiple // 4, pipe.denoiser.hr_minimum // 4
    rows, columns = (max(least, -(-side // multiple) * multiple) for side in (height, width))
    lr = torch.from_numpy(image / 255).float().permute(2, 0, 1)[None]
    padded = F.pad(lr, (0, columns - width, 0, rows - height), mode="replicate")
    features, estimate = pipe.encoder.encode(2 * padded - 1, with_image=True)
    if pipe.config["base"] == "bicubic":
        base = 2 * imresize(image / pipe.config["lr_divisor"], 4) - 1
    else:
        base = estimate[0].permute(1, 2, 0).numpy()[: 4 * height, : 4 * width]
    pipe.scheduler.set_timesteps(steps)
    x_t = torch.randn(1, 3, 4 * rows, 4 * columns, generator=generator)
    options = {} if isinstance(pipe.scheduler, DDIMScheduler) else {"generator": generator}
    for t in pipe.scheduler.timesteps:
        answer = pipe.process.to_plain(x_t, pipe.denoiser(x_t, t[None], features), t[None], None)
        x_t = pipe.scheduler.step(answer, t, x_t, **options, return_dict=False)[0]
    x_0 = x_t[0].clamp(-1, 1).permute(1, 2, 0).numpy()[: 4 * height, : 4 * width]
    return (x_0 * (pipe.config["detail"] / pipe.config["residual_scale"]) + base).clip(-1, 1) / 2 + 0.5


@pytest.mark.parametrize(
    ("scheduler", "options", "steps"),
    [
        (LCMScheduler, {}, 1),
        (LCMScheduler, {}, 4),
        (LCMScheduler, {"original_inference_steps": 10, "timestep_scaling": 0.1}, 3),
        (DDIMScheduler, {"timestep_spacing": "trailing"}, 3),
        (DDIMScheduler, {"set_alpha_to_one": False, "steps_offset": 1}, 4),
        (DDPMScheduler, {}, 20),
        (DDPMScheduler, {"variance_type": "fixed_large", "timestep_spacing": "trailing"}, 3),
        (DDPMScheduler, {"variance_type": "fixed_small_log", "timestep_spacing": "linspace"}, 5),
        (DDPMScheduler, {"clip_sample": False, "timestep_spacing": "linspace"}, 2),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_runner_repeats_every_scheduler(exported, family, scheduler, options, steps, tmp_path):
    pipe = FAMILIES[family]()
    pipe.scheduler = make_scheduler(scheduler, NoiseSchedule.cosine(20), pipe.config["target"], **options)
    pipe.register_to_config(steps=steps)
    upscaler = Upscaler(again(exported[family], pipe, tmp_path))
    for size in SIZES:
        image = picture(*size)
        found = upscaler(image, noise=torch_noise())
        assert found.shape == (4 * size[0], 4 * size[1], 3)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, reference(pipe, image, steps), atol=1e-4)
        assert np.abs(found - upscaler(image, noise=torch_noise(1))).max() > 0.005  # the noise is heard


@pytest.mark.parametrize("scheduler", [LCMScheduler, DDIMScheduler, DDPMScheduler])
def test_runner_repeats_velocity(exported, scheduler, tmp_path):
    pipe = light()
    pipe.scheduler = make_scheduler(scheduler, NoiseSchedule.cosine(20), "velocity")
    pipe.register_to_config(target="velocity")
    found = Upscaler(again(exported["light"], pipe, tmp_path))(picture(7, 5), 4, torch_noise())
    np.testing.assert_allclose(found, reference(pipe, picture(7, 5), 4), atol=1e-4)


def test_runner_repeats_posterior_noise_in_all_steps_only(exported, tmp_path):
    pipe = paper()
    pipe.scheduler = make_scheduler(DDPMScheduler, NoiseSchedule.cosine(20), "posterior_noise")
    pipe.register_to_config(target="posterior_noise")
    other = paper()
    other.scheduler = make_scheduler(DDIMScheduler, NoiseSchedule.cosine(20), "posterior_noise")
    other.register_to_config(target="posterior_noise")
    with pytest.raises(SamDiffSRError, match="can only be sampled by DDPMScheduler"):
        describe(other)
    upscaler = Upscaler(again(exported["paper"], pipe, tmp_path))
    np.testing.assert_allclose(
        upscaler(picture(7, 5), noise=torch_noise()), reference(pipe, picture(7, 5), 20), atol=1e-4
    )
    with pytest.raises(ValueError, match="all 20"):
        upscaler(picture(7, 5), 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_runner_gives_the_same_in_tiles(exported, family):
    """A window ends with the picture at its borders, and begins where the denoiser's coarsest level has a pixel."""
    image = picture(150, 61)
    whole, tiled = (Upscaler(exported[family], tile=tile) for tile in (0, 21))
    np.testing.assert_allclose(tiled(image, noise=torch_noise()), whole(image, noise=torch_noise()), atol=1e-5)
    seen = []
    tiled._run = lambda name, inputs: seen.append((name, inputs)) or whole._run(name, inputs)
    tiled(image, 1, torch_noise())
    sides = [max(inputs["lr"].shape[2:]) for name, inputs in seen if name == "encoder.onnx"]
    assert len(sides) > 4
    assert max(sides) < 150


def test_runner_takes_the_accelerator_that_is_there(exported, monkeypatch):
    asked = []
    made = onnxruntime.InferenceSession

    def spy(network, options, providers):
        asked.append(providers)
        return made(network, options, providers=["CPUExecutionProvider"])

    there = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    Upscaler(exported["light"])
    Upscaler(exported["light"], providers=["CPUExecutionProvider"])
    assert asked == [["CUDAExecutionProvider", "CPUExecutionProvider"]] * 2 + [["CPUExecutionProvider"]] * 2


def test_default_model_agrees_with_its_pipeline(tmp_path, capsys):
    """DDIM adds no noise, so from the same state each step of both must end in the same state, but for rounding."""
    assert samdiffsr("export", "--networks", "-o", tmp_path / "m", "--scheduler", "ddim") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "m")
    upscaler = Upscaler(tmp_path / "m", threads=1)
    image = calm(7, 5)
    lr = image.transpose(2, 0, 1)[None] / np.float32(255)
    level = upscaler.level(lr, 0.25)
    features, base = upscaler.encode(lr, level)
    states = list(upscaler.states(features, 4, gaussian(0), level))
    pipe = SamDiffSRPipeline.from_pretrained("default")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = make_scheduler(
        DDIMScheduler, NoiseSchedule.cosine(100), pipe.config["target"], timestep_spacing="trailing"
    )

    def follow(pipe, step, timestep, values):
        assert timestep == upscaler.sampler.plan(4)[step][0]
        if step:
            np.testing.assert_allclose(values["latents"].numpy(), states[step], atol=1e-4)
        return {"latents": torch.from_numpy(states[step])}

    (result,) = pipe(image, 4, output_type="np", clean=0.25, callback_on_step_end=follow).images
    np.testing.assert_allclose(upscaler.finish(states[-1], base), result, atol=1e-4)
    pipe.scheduler = SamDiffSRPipeline.from_pretrained("default").scheduler
    assert describe(pipe)["timesteps"] == [99]
    found = Upscaler(again(tmp_path / "m", pipe, tmp_path))(calm(33, 20), noise=torch_noise(), clean=0)
    np.testing.assert_allclose(found, reference(pipe, calm(33, 20), 1), atol=1e-4)


def test_files_are_small_free_in_size_and_tell_nothing_of_this_machine(exported):
    for family, folder in exported.items():
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json",
            "denoiser.onnx",
            "encoder.onnx",
            "run_onnx.py",
        ]
        assert b"samdiffsr/models" not in b"".join(path.read_bytes() for path in folder.glob("*.onnx"))
        for name in ("encoder", "denoiser"):
            model = onnx.load(folder / f"{name}.onnx")
            assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
            for tensor in (*model.graph.input, *model.graph.output):
                dims = tensor.type.tensor_type.shape.dim
                assert all(bool(dim.dim_param) == (place != 1) for place, dim in enumerate(dims)), (family, tensor)
    outputs = {family: onnx.load(folder / "encoder.onnx").graph.output for family, folder in exported.items()}
    assert {family: [one.name for one in found] for family, found in outputs.items()} == {
        "light": ["features", "estimate"],
        "paper": ["features"],  # the half that makes the estimate is not exported
    }


def test_bicubic_is_matlabs():
    for size in [(1, 1), (1, 4), (2, 3), (5, 8)]:
        image = np.random.default_rng(0).random((*size, 3))
        np.testing.assert_allclose(bicubic(image.transpose(2, 0, 1)).transpose(1, 2, 0), imresize(image, 4), atol=1e-12)


def test_runner_needs_neither_torch_nor_samdiffsr(exported, tmp_path):
    Image.fromarray(picture(6, 9)).save(tmp_path / "in.png")
    script = exported["light"] / "run_onnx.py"
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'diffusers', 'samdiffsr'): sys.modules[name] = None\n"
        f"sys.argv = ['run_onnx.py', 'in.png', 'out.png', '--seed', '4', '--steps', '2', '--threads', '1']\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    expected = Upscaler(exported["light"], threads=1)(picture(6, 9), 2, gaussian(4))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.round(expected * 255).astype(np.uint8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


def test_runner_tells_bad_input_in_a_sentence(exported, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (3, 2)).save("in.png")
    Image.new("RGBA", (3, 2)).save("clear.png")
    Image.new("I;16", (3, 2)).save("deep.png")
    broken = shutil.copytree(exported["light"], tmp_path / "broken")
    (broken / "denoiser.onnx").write_bytes(b"nothing")
    for arguments, told in [
        (("none.png", "out.png"), "none.png"),
        (("clear.png", "out.png"), "RGBA"),
        (("deep.png", "out.png"), "I;16"),
        (("in.png", "in.png"), "exists already"),
        (("in.png", "out.xyz"), ".xyz"),
        (("in.png", "out.png", "--steps", "0"), "from 1 to 20"),
        (("in.png", "out.png", "--clean", "0.5"), "not trained to clean"),
        (("in.png", "out.png", "--clean", "2"), "from 0 to 1"),
        (("in.png", "out.png", "--tile", "-1"), "tile is -1"),
        (("in.png", "out.png", "--folder", "nowhere"), "nowhere"),
        (("in.png", "out.png", "--folder", "broken"), "denoiser.onnx"),
    ]:
        options = () if "--folder" in arguments else ("--folder", str(exported["light"]))
        assert run_onnx([*arguments, *options]) == 2
        error = capsys.readouterr().err
        assert told in error and error.startswith("Error: ") and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "clear.png", "deep.png", "in.png"]


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((4, 4), np.uint8), "(4, 4)"),
        (np.zeros((0, 4, 3), np.uint8), "(0, 4, 3)"),
        (np.zeros((2, 2, 3), np.int32), "int32"),
        (np.full((2, 2, 3), np.nan), "nan"),
        (np.full((2, 2, 3), 2.0), "2"),
    ],
)
def test_runner_refuses_what_is_no_image(exported, image, told):
    with pytest.raises(ValueError, match=r".") as caught:
        Upscaler(exported["light"])(image)
    assert told in str(caught.value)


def test_runner_refuses_the_files_of_another_version(exported, tmp_path):
    shutil.copytree(exported["light"], tmp_path / "m")
    (tmp_path / "m/config.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="format 2"):
        Upscaler(tmp_path / "m")


@pytest.mark.parametrize(
    ("scheduler", "options", "told"),
    [
        (EulerDiscreteScheduler, {}, "EulerDiscreteScheduler"),
        (DDIMScheduler, {"thresholding": True}, "thresholding"),
        (DDPMScheduler, {"variance_type": "learned"}, "'learned'"),
        (LCMScheduler, {"original_inference_steps": 2}, "from 1 to 2"),
    ],
)
def test_what_the_runner_cannot_sample_is_refused(scheduler, options, told, tmp_path):
    pipe = light()
    pipe.scheduler = make_scheduler(scheduler, NoiseSchedule.cosine(20), "sample", **options)
    with pytest.raises(SamDiffSRError, match=told):
        export_networks(pipe, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_scheduler_that_misreads_the_prediction_is_refused(tmp_path):
    pipe = light()
    pipe.scheduler = make_scheduler(LCMScheduler, NoiseSchedule.cosine(20), "marginal_noise")
    with pytest.raises(SamDiffSRError, match=r"'epsilon'.*'sample'"):
        export_networks(pipe, tmp_path / "m")


def test_nothing_is_written_if_the_files_do_not_repeat_the_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_module, "TOLERANCE", -1.0)  # no difference is small enough
    with pytest.raises(SamDiffSRError, match="differs by"):
        export_networks(light(), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_what_exists_is_kept_unless_told_otherwise(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(SamDiffSRError, match=r"exists already.*--overwrite"):
        export_networks(light(), tmp_path / "m")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SamDiffSRError, match="exists already"):
        export_networks(light(), tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"
    assert not list((tmp_path / "m").iterdir())


def samdiffsr(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code or 0


def test_command_line_errors_are_one_sentence(tmp_path, tiny_pipe_dir, capsys, monkeypatch):
    for arguments, told in [
        (("-m", tiny_pipe_dir, "-o", tmp_path), "exists already"),
        (("-m", tiny_pipe_dir, "-o", tiny_pipe_dir / "model_index.json/m"), "Cannot write"),
        (("-m", tiny_pipe_dir, "-o", tmp_path / "m", "--scheduler", "euler"), "'lcm'"),
        (("-m", "nowhere", "-o", tmp_path / "m"), "nowhere"),
    ]:
        assert samdiffsr("export", "--networks", *arguments) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    for name in ("trace", "image", "networks"):
        monkeypatch.delitem(sys.modules, f"samdiffsr.export.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert samdiffsr("export", "--networks", "-m", tiny_pipe_dir, "-o", tmp_path / "m") == 2
    assert 'pip install "samdiffsr[onnx]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
