"""The encoder learns from further targets: an upscaler's results."""

import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr import SamDiffSRError, imresize
from samdiffsr.cli import main
from samdiffsr.data.dataset import Batch
from samdiffsr.data.prepare import prepare_folder
from samdiffsr.training.cost import estimate_cost
from samdiffsr.training.run import check, encoder_objective, train_encoder
from support import EXAMPLES, ROOT, lines, quiet, tiny, write_masks

BLEND = "encoder.loss.targets={hr: 0.25, teacher: 0.75}"


@pytest.fixture
def distilled(tmp_path):
    """A prepared folder of one photograph, whose teacher inverts it."""
    for name in ("hr", "masks", "teacher"):
        (tmp_path / name).mkdir()
    y, x = np.mgrid[:64, :64]
    grey = (127 + 90 * np.sin(x / 7) * np.cos(y / 9)).astype(np.uint8)
    Image.fromarray(np.stack([grey] * 3, axis=2)).save(tmp_path / "hr/a.png")
    Image.fromarray(np.stack([255 - grey] * 3, axis=2)).save(tmp_path / "teacher/a.png")
    write_masks(tmp_path / "masks/a.json", [x < 32])
    prepare_folder(tmp_path / "hr", tmp_path / "masks", tmp_path / "data", targets={"teacher": tmp_path / "teacher"})
    return tmp_path / "data"


@pytest.mark.parametrize("pixel", ["l1", "l2"])
def test_the_loss_is_the_weighted_sum_over_targets(distilled, tmp_path, pixel):
    objective = encoder_objective(tiny(distilled, tmp_path / "run", BLEND, f"encoder.loss.pixel={pixel}"))
    lr, hr, teacher = (torch.rand(2, 3, side, side) * 2 - 1 for side in (4, 16, 16))
    batch = Batch(hr, lr, torch.zeros(2, 1, 16, 16), torch.zeros(2), {"teacher": teacher})
    with torch.no_grad():
        found = objective(batch, objective.draws(0, 0, 2)).terms["pixel"]
        estimate = objective.network(lr)
    power = {"l1": 1, "l2": 2}[pixel]
    wanted = sum(w * ((estimate - image).abs() ** power).mean() for w, image in ((0.25, hr), (0.75, teacher)))
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)


def test_the_encoder_learns_from_the_teacher_alone(distilled, tmp_path):
    """The teacher inverts its pictures: after some updates the estimate is nearer to it than to the original."""
    options = (
        "optim.updates=80",
        "optim.learning_rate=0.01",
        "save_every=80",
        "data.crop_lr=16",
        "loss.targets={teacher: 1}",
    )
    config = tiny(distilled, tmp_path / "run", *(f"encoder.{option}" for option in options))
    train_encoder(config, resume=False, on_update=quiet)
    losses = [record["pixel"] for record in lines(tmp_path / "run/encoder/metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_unknown_targets_are_refused_before_the_start(distilled, photos, tmp_path, capsys):
    for folder, there in ((photos, "none"), (distilled, "'teacher'")):
        for more in ((), ("--dry-run",)):
            options = (f"photos={folder}", f"output={tmp_path / 'run'}", "encoder.loss.targets={hr: 1, other: 1}")
            with pytest.raises(SystemExit) as end:
                main(["train", "tiny", *more, *(word for option in options for word in ("--set", option))])
            assert end.value.code == 2
            assert f"has no targets 'other' (it has {there})" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(SamDiffSRError, match="'teacher'"):
        train_encoder(tiny(photos, tmp_path / "run", BLEND), resume=False, on_update=quiet)


def test_the_plan_counts_the_same_operations(distilled, tmp_path):
    config = tiny(distilled, tmp_path / "run", BLEND)
    plain = tiny(distilled, tmp_path / "run")
    costs = [estimate_cost(check(one, ["encoder"])["encoder"], one.encoder) for one in (config, plain)]
    assert costs[0].flop == costs[1].flop


def test_the_commands_of_the_guide(tmp_path, monkeypatch):
    """docs/training.md, run as written; the upscaler whose results are learnt is the embedded model."""
    text = (ROOT / "docs/training.md").read_text()
    section = text.partition("## Distil any upscaler's outputs into your own small one")[2]
    script = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert script and block
    (tmp_path / "photos").mkdir()
    original = Image.open(min((EXAMPLES / "originals").glob("*.png"))).convert("RGB")
    original.crop((0, 0, 50, 43)).save(tmp_path / "photos/a.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(script.group(1), "docs/training.md", "exec"), {})
    hr = np.asarray(original.crop((0, 0, 48, 40)))
    assert np.array_equal(np.asarray(Image.open("lr/a.png")), imresize(hr, 1 / 4))
    for line in block.group(1).splitlines():
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line)[1:])
        assert end.value.code == 0, line
    assert (tmp_path / "small/model/model_index.json").exists()
