"""Configurations: bad ones are refused by key, presets are valid, every field is read."""

import json

import pytest
import torch

from samdiffsr import ConditionalUNet, LightDenoiser, LightEncoder, RRDBEncoder, SamDiffSRError
from samdiffsr.models.weights import DEFAULT_MODEL
from samdiffsr.sampling.schedulers import check_scheduler, named_scheduler
from samdiffsr.training.config import PRESETS, _Frozen, load_config
from samdiffsr.training.run import train_diffusion, train_encoder
from support import quiet, tiny

POSTERIOR = ("diffusion.target=posterior_noise", "diffusion.scheduler=ddpm", "diffusion.steps=100")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["diffusion.shft=paper"], "diffusion.shft"),
        (["diffusion.shift=papr"], "'bridge'"),
        (["encoder.optim.updates=many"], "encoder.optim.updates"),
        (["encoder.optim.updates=1"], "warmup"),
        (["diffusion.target=posterior_noise"], "posterior_noise"),
        (["diffusion.shift=bridge"], "0.43 standard deviations"),
        (["diffusion.shift=paper"], "structure_weight above 0"),
        (["diffusion.schedule=cubic"], "'linear'"),
        (["diffusion.max_beta=1"], "max_beta"),
        (["diffusion.steps=101"], "101"),
        (["diffusion.structure={map: position, encoding: cosine}"], "choose rope, sincos or linear"),
        (["diffusion.structure={map: position, normalise: unit}"], "choose none"),
        (["diffusion.network.structure_input=true"], "structure_weight above 0"),
        (["diffusion.shift=unweighted"], "structure_weight above 0"),
        (["diffusion.encoder_rate=0.1"], "choose encoder_rate 0 or base 'bicubic'"),
        (["encoder.loss.features_weight=0.1"], "features_file"),
        (["seed"], "section.key=value"),
        (["seed=["], "seed=["),
        (["encoder.optim.schedule=step"], "step_every"),
        (["encoder.optim.step_every=2"], "step_every"),
        (["encoder.optim.precision=int8"], "precision"),
        (["encoder.loss.adversarial=wasserstein"], "'hinge'"),
        (["encoder.loss.targets={}"], "encoder.loss.targets"),
        (["encoder.loss.targets={hr: 0}"], "encoder.loss.targets.hr"),
        (["diffusion.loss.targets={hr: 1}"], "diffusion.loss.targets"),
        (["validation.best=distance"], "validation.distance"),
        ([*POSTERIOR, "diffusion.loss.adversarial_weight=0.1"], "adversarial_weight"),
        (["family.x=1"], "not a section"),
    ],
)
def test_bad_configurations_name_the_key(overrides, reason):
    with pytest.raises(SamDiffSRError) as caught:
        load_config("tiny", overrides)
    assert reason in str(caught.value)


def test_unreadable_configurations(tmp_path):
    with pytest.raises(SamDiffSRError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml", [])
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(SamDiffSRError, match="mapping"):
        load_config(tmp_path / "list.yaml", [])


@pytest.mark.parametrize("preset", sorted(file.stem for file in PRESETS.glob("*.yaml")))
def test_presets_are_valid(preset, feature_file):
    overrides = [f"diffusion.loss.features_file={feature_file}"] if preset.startswith("light") else []
    config = load_config(preset, overrides)
    assert config.family == ("paper" if preset in ("paper", "released") else "light")
    stage, process = config.diffusion, config.diffusion.process()
    estimated = stage.structure_weight > 0
    scheduler = named_scheduler(stage.scheduler, process.schedule, stage.target, estimated=estimated)
    assert stage.warning is None and check_scheduler(scheduler, process, stage.steps, estimated=estimated) is None
    assert estimated or process.mean_error() < 0.05


def test_released_and_paper_say_what_they_are():
    """The sizes of the released model; its modulation against the paper's equations, and nothing else between the two."""
    released, paper = (load_config(preset, []) for preset in ("released", "paper"))
    with torch.device("meta"):
        networks = RRDBEncoder(**released.encoder.network), ConditionalUNet(**released.diffusion.network)
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [12_381_443, 12_934_915]
    assert paper.encoder == released.encoder
    theirs, ours = (config.diffusion.model_dump() for config in (released, paper))
    found = {key: (theirs[key], ours[key]) for key in theirs if theirs[key] != ours[key]}
    assert found.pop("loss")[1]["pixel"] == "l2"
    assert found.pop("shift") == ("released", "paper")
    assert found.pop("target") == ("marginal_noise", "posterior_noise")
    assert found.pop("structure")[0] == {
        "map": "regions",
        "encoding": "rope",
        "mean_over": "image",
        "overlap": "last",
        "normalise": "none",
    }
    assert found == {"structure_weight": (0.0, 0.1)}


def test_light_is_the_default_model(feature_file):
    """The networks are those of the embedded weights; process and losses are those of its recipe, but for when the
    discriminator starts."""
    light, cpu = (
        load_config(preset, [f"diffusion.loss.features_file={feature_file}"]) for preset in ("light", "light-cpu")
    )
    for network, config, folder in (
        (LightEncoder, light.encoder, "encoder"),
        (LightDenoiser, light.diffusion, "denoiser"),
    ):
        ours = network(**config.network).config
        embedded = json.loads((DEFAULT_MODEL / folder / "config.json").read_text())
        assert {key: ours[key] for key in embedded if key[0] != "_"} == {
            k: v for k, v in embedded.items() if k[0] != "_"
        }
    theirs, ours = (
        config.diffusion.model_dump(exclude={"data", "optim", "save_every", "log_every"}) for config in (cpu, light)
    )
    assert (
        theirs["loss"].pop("adversarial_start") < ours["loss"].pop("adversarial_start") < light.diffusion.optim.updates
    )
    assert ours == theirs


def test_weights_carry_their_configuration(photos, tmp_path):
    config = tiny(photos, tmp_path / "run", "seed=5")
    train_encoder(config, resume=False, on_update=quiet)
    model = train_diffusion(config, resume=False, on_update=quiet)
    for part in ("encoder", "denoiser"):
        assert load_config(model / part / "diffusion_pytorch_model.safetensors", []) == config
    assert load_config(model / "denoiser/diffusion_pytorch_model.safetensors", ["seed=6"]).seed == 6
    plain = tmp_path / "run/encoder/checkpoints/00000004/tensors.safetensors"
    with pytest.raises(SamDiffSRError, match="carry no configuration; give a preset"):
        load_config(plain, [])


def test_every_field_of_the_configuration_is_read(photos, tmp_path, validation_folder, monkeypatch):
    """Attribute reads are recorded while both stages run; printing and storing the configuration do not count."""
    options = ("encoder.optim.schedule=step", "encoder.optim.step_every=2", f"validation.photos={validation_folder}")
    config = tiny(photos, tmp_path / "run", *options, "encoder.loss.adversarial_weight=0.01")
    wanted, read, plain = set(), set(), _Frozen.__getattribute__

    def owner(kind: type, name: str) -> str:  # both stages read fields of one class
        return [base.__name__ for base in kind.__mro__ if name in vars(base).get("__annotations__", ())][-1]

    def collect(section: _Frozen) -> None:
        for name, value in section:
            wanted.add((owner(type(section), name), name))
            if isinstance(value, _Frozen):
                collect(value)

    def record(self, name):
        if name in type(self).model_fields:
            read.add((owner(type(self), name), name))
        return plain(self, name)

    collect(config)
    monkeypatch.setattr(_Frozen, "__getattribute__", record)
    train_encoder(config, resume=False, on_update=quiet)
    train_diffusion(config, resume=False, on_update=quiet)
    assert len(wanted) > 60
    assert wanted - read == set()
