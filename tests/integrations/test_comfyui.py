"""The ComfyUI nodes in a small ComfyUI: schema, pixels, progress, interrupt, and the files that are published with them."""

import dataclasses
import json
import re
import sys
import tomllib
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from comfyui_host import Host, InterruptProcessingException

from samdiffsr.errors import CheckpointError, ConfigError
from samdiffsr.images import Picture, to_8_bit, to_16_bit
from samdiffsr.models.weights import with_options
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.settings import Settings
from samdiffsr.upscale.size import MAX_SCALE
from support import ROOT

FOLDER = ROOT / "integrations/comfyui"
LOAD, UPSCALE = "SamDiffSR_LoadModel", "SamDiffSR_Upscale"
RGBA = np.random.default_rng(5).integers(0, 256, (2, 7, 9, 4), dtype=np.uint8)
OWN = {"scale": 4.0, "detail": -1.0, "clean": -1.0, "steps": 0, "tile": -1}
"""The nodes' words for None, which no widget can hold."""


@pytest.fixture
def host(monkeypatch):
    host = Host()
    for name, module in host.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    host.load(FOLDER)
    yield host
    for name in [name for name in sys.modules if name.startswith(str(FOLDER))]:
        del sys.modules[name]


@pytest.fixture
def images():
    return torch.from_numpy(RGBA / np.float32(255))


def inputs_of(host, node_id):
    return {one.id: one for one in host.schema(host.nodes[node_id]).inputs}


def test_identities_of_the_nodes_never_change(host):
    """Saved workflows refer to them."""
    assert list(host.nodes) == [LOAD, UPSCALE]
    names = [host.schema(node).display_name for node in host.nodes.values()]
    assert names == ["Load SamDiffSR Model", "Upscale with SamDiffSR"]
    assert list(inputs_of(host, UPSCALE)) == [
        *(
            "model",
            "image",
            "scale",
            "detail",
            "clean",
            "steps",
            "seed",
            "tile",
            "structure",
            "consistency",
            "precision",
        )
    ]


def test_the_node_has_the_settings_with_their_ranges_and_defaults(host):
    inputs, hints = inputs_of(host, UPSCALE), get_type_hints(Settings)
    settings = {one.name: one for one in dataclasses.fields(Settings)}
    assert set(inputs) - {"model", "image"} == set(settings) - {"size"}  # ComfyUI has nodes for sizes
    for name in set(inputs) & set(settings):
        node, own = inputs[name], settings[name]
        assert node.tooltip
        assert node.default == (OWN[name] if own.default is None else own.default)
        allowed = own.metadata["range"]
        if allowed is not None:
            assert node.min in (allowed.least, OWN.get(name)) and node.max <= allowed.most
            assert node.max == allowed.most or allowed.most == float("inf")
    assert inputs["scale"].min == 1 and inputs["scale"].max == MAX_SCALE
    for name in ("structure", "precision"):
        assert tuple(inputs[name].options) == get_args(hints[name])
    assert inputs["seed"].control_after_generate is True


def as_levels(image):
    return (image.numpy() * 65_535).round().astype(np.uint16)


def test_the_batch_is_what_enlarge_makes_of_each_image(host, tiny_pipe, images):
    chosen = {"scale": 3.0, "detail": 0.5, "steps": 3, "seed": 11, "structure": "none"}
    found, _ = host.run(UPSCALE, model=tiny_pipe, image=images, **chosen)
    assert found.shape == (2, 21, 27, 4)
    for image, rgba in zip(found, RGBA, strict=True):
        picture = Picture(to_16_bit(rgba[..., :3]), to_16_bit(rgba[..., 3]))
        wanted = enlarge(tiny_pipe, picture, Settings(**chosen))
        assert np.array_equal(as_levels(image), np.dstack([wanted.rgb, wanted.alpha]))


def test_without_alpha_its_8_bits_are_those_of_the_command_line(host, tiny_pipe, images):
    found, _ = host.run(UPSCALE, model=tiny_pipe, image=images[:1, ..., :3])
    wanted = enlarge(tiny_pipe, Picture(RGBA[0, ..., :3].copy()), Settings())
    assert np.array_equal(to_8_bit(as_levels(found[0])), wanted.rgb)


def test_defaults_are_those_of_the_model(host, tiny_pipe, images):
    found, _ = host.run(UPSCALE, model=tiny_pipe, image=images[..., :3])
    assert found.shape == (2, 28, 36, 3)
    same, _ = host.run(UPSCALE, model=tiny_pipe, image=images[..., :3], steps=2, detail=1.0, clean=0.0, tile=0)
    assert torch.equal(found, same)
    other, level = host.run(UPSCALE, model=tiny_pipe, image=images[..., :3], seed=1)
    assert not torch.equal(found, other) and level == 0


def test_clean_is_estimated_unless_it_is_given(host, tiny_pipe, images):
    encoder, denoiser = with_options(tiny_pipe.encoder, level=True), with_options(tiny_pipe.denoiser, level=True)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for name, weight in (*encoder.named_parameters(), *denoiser.named_parameters()):
            if "level_embedding" in name or "film" in name:
                weight.normal_(std=0.5)
        encoder.level_head.out.bias.fill_(0.5)
    tiny_pipe.register_modules(encoder=encoder.eval(), denoiser=denoiser.eval())
    rgb = images[:1, ..., :3]
    estimated, level = host.run(UPSCALE, model=tiny_pipe, image=rgb)
    wanted = enlarge(tiny_pipe, Picture(to_16_bit(RGBA[0, ..., :3])), Settings())
    assert np.array_equal(as_levels(estimated[0]), wanted.rgb)
    assert 0 < level == wanted.level < 1
    _, mean = host.run(UPSCALE, model=tiny_pipe, image=torch.cat([rgb, rgb / 8]))
    other = enlarge(tiny_pipe, Picture((to_16_bit(RGBA[0, ..., :3]) / 8).round().astype(np.uint16)), Settings()).level
    assert other != level and mean == pytest.approx((level + other) / 2, abs=1e-4)
    assert host.run(UPSCALE, model=tiny_pipe, image=rgb, clean=0.25)[1] == 0.25
    assert not torch.equal(estimated, host.run(UPSCALE, model=tiny_pipe, image=rgb, clean=0.0)[0])


def test_values_outside_black_and_white_count_as_black_and_white(host, tiny_pipe):
    image = torch.tensor([-0.5, 0.5, 1.5]).expand(1, 6, 6, 3)
    found, _ = host.run(UPSCALE, model=tiny_pipe, image=image)
    same, _ = host.run(UPSCALE, model=tiny_pipe, image=image.clamp(0, 1))
    assert torch.equal(found, same)


def test_progress_goes_through_the_batch(host, tiny_pipe, images):
    host.run(UPSCALE, model=tiny_pipe, image=images)
    [(total, values)] = host.bars
    assert (total, values) == (2000, [333, 667, 1000, 1333, 1667, 2000])  # the encoder, then two steps
    assert host.freed == [(2**30, torch.device("cpu"))]


def test_cancel_stops_after_the_step(host, tiny_pipe, images):
    host.calls_until_interrupt = 3  # before the first image, after its encoder, after its first step
    with pytest.raises(InterruptProcessingException):
        host.run(UPSCALE, model=tiny_pipe, image=images)
    assert host.bars[0][1] == [333]


def test_the_named_model_is_loaded(host, tiny_pipe_dir, tiny_pipe, images):
    (model,) = host.run(LOAD, model=f" {tiny_pipe_dir} ")
    found, _ = host.run(UPSCALE, model=model, image=images)
    assert torch.equal(found, host.run(UPSCALE, model=tiny_pipe, image=images)[0])
    (default,) = host.run(LOAD)
    assert default.config["steps"] >= 1
    with pytest.raises(CheckpointError, match="'nowhere' does not exist"):
        host.run(LOAD, model="nowhere")


def test_out_of_memory_halves_the_tile(host, tiny_pipe, monkeypatch):
    image = torch.rand(1, 40, 40, 3, generator=torch.Generator().manual_seed(0))
    wanted, _ = host.run(UPSCALE, model=tiny_pipe, image=image, tile=0)
    forward, refused = tiny_pipe.denoiser.forward, []

    def with_little_memory(x_t, *args, **kwargs):
        if x_t.shape[2] * x_t.shape[3] > 120**2:
            refused.append(x_t.shape)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(x_t, *args, **kwargs)

    monkeypatch.setattr(tiny_pipe.denoiser, "forward", with_little_memory)
    found, _ = host.run(UPSCALE, model=tiny_pipe, image=image)
    assert refused and (found - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.rand(6, 6, 3), r"shape \(6, 6, 3\), but must be \(batch"),
        (torch.rand(1, 6, 6, 1), "3 or 4 channels"),
        (torch.rand(0, 6, 6, 3), "shape"),
        (torch.full((1, 6, 6, 3), torch.nan), "no numbers"),
    ],
)
def test_an_image_that_is_none_is_one_sentence(host, tiny_pipe, image, sentence):
    with pytest.raises(ValueError, match=sentence):
        host.run(UPSCALE, model=tiny_pipe, image=image)


def test_settings_that_contradict_each_other_are_one_sentence(host, tiny_pipe, images):
    with pytest.raises(ConfigError, match="consistency"):
        host.run(UPSCALE, model=tiny_pipe, image=images, consistency=True, clean=0.5)
    with pytest.raises(ValueError, match="17"):
        host.run(UPSCALE, model=tiny_pipe, image=images, scale=17.0)


def test_without_samdiffsr_the_nodes_appear_and_say_how_to_install_it(host, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "samdiffsr"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "samdiffsr", None)
    fresh = Host()
    fresh.load(FOLDER)
    with pytest.raises(RuntimeError, match=r"samdiffsr is not installed.*pip install samdiffsr"):
        fresh.run(LOAD)


def test_the_example_workflow_fits_the_nodes(host):
    """A workflow holds the widgets' values in the order of the schema, and a control behind each seed."""
    files = list((FOLDER / "example_workflows").glob("*.json"))
    assert files
    for file in files:
        workflow = json.loads(file.read_text(encoding="utf-8"))
        nodes = {node["id"]: node for node in workflow["nodes"]}
        for number, start, slot, end, place, kind in workflow["links"]:
            assert number in nodes[start]["outputs"][slot]["links"] and nodes[start]["outputs"][slot]["type"] == kind
            assert nodes[end]["inputs"][place]["link"] == number and nodes[end]["inputs"][place]["type"] == kind
        ours = [node for node in nodes.values() if node["type"] in host.nodes]
        assert {node["type"] for node in ours} == {LOAD, UPSCALE}
        for node in ours:
            inputs = inputs_of(host, node["type"])
            values = iter(node["widgets_values"])
            for one in (one for one in inputs.values() if hasattr(one, "default")):
                one.check(next(values))
                if one.widgets == 2:
                    assert next(values) in ("fixed", "increment", "decrement", "randomize")
            assert next(values, None) is None
            assert [link["name"] for link in node["inputs"]] == [
                one.id for one in inputs.values() if not hasattr(one, "default")
            ]


def test_every_node_has_a_help_page_with_every_input(host):
    assert {file.stem for file in (host.web / "docs").glob("*.md")} == set(host.nodes)
    for node_id in host.nodes:
        page = (host.web / f"docs/{node_id}.md").read_text(encoding="utf-8")
        named = re.findall(r"^\| (\w+) \|", page.partition("| output")[0], re.MULTILINE)
        assert named == ["input", *inputs_of(host, node_id)]


def test_what_the_registry_asks_for():
    with (FOLDER / "pyproject.toml").open("rb") as file:
        found = tomllib.load(file)
    project, comfy = found["project"], found["tool"]["comfy"]
    assert "comfyui" not in project["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert comfy["PublisherId"] and comfy["DisplayName"] and project["urls"]["Repository"]
    named = {re.split(r"[^\w-]", one)[0] for one in project["dependencies"]}
    assert named == {"samdiffsr"}  # never torch, torchvision or numpy
    lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").split()
    assert lines == project["dependencies"]
