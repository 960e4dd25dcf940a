"""runs/study at a size of seconds: the arms are pairs, the command goes on where it stood, and the intervals are right."""

import importlib
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from samdiffsr.data.prepare import prepare_folder
from samdiffsr.training.config import LossConfig
from support import ROOT, lines, photograph, write_masks

FOLDER = ROOT / "runs/study"
TINY = (
    "diffusion.network={width: 8, blocks: 1}",
    "diffusion.data={crop_lr: 8, batch: 2}",
    "diffusion.optim.warmup=0",
    "diffusion.optim.precision=float32",
)


ARMS_MAPS = {
    "released-position": ("none", "position"),
    "unweighted": ("truth", "head"),
    "condition": ("truth", "head", "other"),
    "borders": ("borders", "head"),
}


PROTOCOL = {
    "light": {"rollout": 0.5, "last_step_share": 0, "residual_scale": 4, "scheduler": "lcm", "steps": 4, "detail": 1},
    "paper": {"rollout": 0, "last_step_share": 0, "residual_scale": 2, "scheduler": "ddpm", "steps": 100, "detail": 1},
}
"""What docs/study.md says of all arms, whatever the presets become."""


@pytest.fixture
def module(monkeypatch):
    """Modules of the study by name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photographs and masks: a and b prepared for training, c and d held out."""
    root = tmp_path_factory.mktemp("study")
    for folder in ("photos", "heldout", "masks"):
        (root / folder).mkdir()
    for number, (stem, folder) in enumerate({"a": "photos", "b": "photos", "c": "heldout", "d": "heldout"}.items()):
        photograph(number, (64, 48)).save(root / folder / f"{stem}.png")
        _, x = np.mgrid[:48, :64]
        write_masks(root / f"masks/{stem}.json", [x < 20 + number, x >= 20 + number])
    prepare_folder(root / "photos", root / "masks", root / "data")
    return root


def study(place, *more, output="out"):
    options = ["--data", "data", "--heldout", "heldout", "--masks", "masks", "--setting", "light", "--side", "32"]
    overrides = [word for override in TINY for word in ("--set", override)]
    words = [sys.executable, str(FOLDER), output, *options, "--seeds", "0", "--updates", "2", *overrides, *more]
    return subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)


def test_interrupted_it_goes_on_and_the_table_has_the_arms(place):
    done = study(place, "--arms", "none")
    assert done.returncode == 0, done.stderr
    scores = place / "out/light/scores"
    first = (scores / "0-none.json").stat().st_mtime_ns
    arms = ("--arms", "none", "paper", "none-head")
    assert study(place, *arms).returncode == 0
    assert (scores / "0-none.json").stat().st_mtime_ns == first, "it was trained or scored again"
    table = (place / "out/light/table.md").read_text()
    for row in (
        "none/none",
        "none/base",
        "paper/truth",
        "paper/head",
        "paper/truth - none/none",
        "paper/head - paper/truth",
    ):
        assert f"| {row} |" in table
    assert "paper/truth - paper-other" not in table, "an arm that was not trained was subtracted"
    assert "paper/truth - none/none" in (place / "out/light/differences.svg").read_text()
    assert len(list((place / "out/light/pictures").iterdir())) == 2

    made = (scores / "0-paper.json").read_bytes()
    (scores / "0-paper.json").unlink()
    assert study(place, *arms).returncode == 0
    assert (scores / "0-paper.json").read_bytes() == made

    def results(name):
        return [
            {key: value for key, value in row.items() if key != "arm"} for row in read(name) if row["map"] == "none"
        ]

    def read(name):
        return json.loads((scores / f"0-{name}.json").read_text())

    assert results("none") == results("none-head"), "the arms differ in more than the shift"
    runs = place / "out/light/runs"
    losses = {name: lines(runs / f"{name}-0/diffusion/metrics.jsonl")[0]["pixel"] for name in ("none", "paper")}
    assert losses["none"] != losses["paper"]
    rows = {row["map"]: row for row in json.loads(made) if row["image"] == "c"}
    assert rows["truth"]["map_error"] == 0 < min(rows[name]["map_error"] for name in ("head", "other", "felzenszwalb"))

    other = study(place, "--arms", "none", "--size", "full")
    assert other.returncode == 2 and "use a new folder" in other.stderr and "Traceback" not in other.stderr


def test_the_ablations_train_and_score(place):
    arms = ("released-position", "unweighted", "condition", "borders")
    sizes = ("--set", "diffusion.network.width=8", "--set", "diffusion.network.blocks=1")
    done = study(place, "--arms", "none", *arms, *sizes, output="ablations")
    assert done.returncode == 0, done.stderr
    scores = {arm: json.loads((place / f"ablations/light/scores/0-{arm}.json").read_text()) for arm in arms}
    rows = {f"{arm}/{row['map']}": row for arm in arms for row in scores[arm] if row["image"] == "c"}
    assert set(rows) == {f"{arm}/{name}" for arm in arms for name in ARMS_MAPS[arm]}
    assert all(np.isfinite(row["psnr_y"]) for row in rows.values())
    assert rows["borders/borders"]["map_error"] == 0 < rows["borders/head"]["map_error"]
    config = json.loads(next((place / "ablations/light/runs").rglob("condition-0/**/denoiser/config.json")).read_text())
    assert config["structure_input"], "another override took it away"


def test_the_maps_are_those_of_the_configuration(place, module):
    from samdiffsr.training.config import StructureConfig

    heldout = module("heldout")

    def truth(**options):
        found = heldout.photographs(place / "heldout", place / "masks", 32, set(), StructureConfig(**options))
        return found[0].maps["truth"]

    rope, signed, area = truth(), truth(normalise="signed"), truth(encoding="cosine")
    assert signed.min() == -1 and signed.max() == 1  # both regions reach into the square
    np.testing.assert_allclose(np.unique(signed), (np.unique(rope) > np.unique(rope).mean()) * 2 - 1)
    np.testing.assert_allclose(np.unique(area) ** 2, [22 / 64, 42 / 64], atol=1e-6)  # shares of the photograph's area


def test_a_photograph_that_was_trained_on_is_refused(place):
    done = study(place, "--arms", "none", "--heldout", "photos", output="other")
    assert done.returncode == 2 and "in the prepared folder too" in done.stderr
    assert not (place / "other").exists(), "the right command would be refused now"


def test_every_arm_of_every_setting_is_a_valid_configuration(module):
    arms, main = module("arms"), FOLDER / "__main__.py"
    spec = importlib.util.spec_from_file_location("study_main", main)
    assert spec and spec.loader
    study_main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study_main)
    for setting in arms.SETTINGS:
        for size in ("small", "full"):
            options = study_main._parse(["out", "--data", "d", "--heldout", "h", "--masks", "m", "--size", size])
            for arm, given in arms.ARMS.items():
                config = study_main.configuration(options, setting, "run", study_main.overrides(setting, arm, 3))
                assert config.diffusion.shift == given.overrides[0].partition("=")[2]
                posterior = setting != "light" and config.diffusion.shift == "paper"
                assert (config.diffusion.target == "posterior_noise") == posterior
                assert config.diffusion.loss == LossConfig(pixel="l1" if setting == "light" else "l2"), (
                    "not in the protocol"
                )
                seen = config.diffusion.model_dump(include=set(PROTOCOL["light"]))
                assert seen == PROTOCOL["light" if setting == "light" else "paper"]
                assert config.diffusion.optim.optimizer == "adamw" and config.diffusion.optim.clip_norm is None


def test_intervals(module):
    """They cover the truth about as often as they say, and know that seeds and images both vary."""
    interval = module("summary").interval
    assert interval(np.full((3, 5), 0.25)) == pytest.approx((0.25, 0.25, 0.25))
    rng, covered, trials = np.random.default_rng(0), 0, 60
    for _ in range(trials):
        of_images, of_seeds = rng.normal(0.5, 1, (1, 30)), rng.normal(0, 1, (20, 1))
        _, low, high = interval(of_images + of_seeds + rng.normal(0, 0.3, (20, 30)))
        covered += low < 0.5 < high
    assert 0.83 * trials < covered <= trials
    mean, low, high = interval(np.array([[1.0, 2.0, np.nan], [1.5, 2.5, np.nan]]))
    assert mean == 1.75 and 1 <= low < mean < high <= 2.5


def test_edges_are_judged_at_borders_and_inside(module):
    heldout = module("heldout")
    rows = np.arange(32)
    left = (rows[None, :] < 16) & np.ones((32, 1), bool)
    border = heldout._border([np.flatnonzero(left.T), np.flatnonzero(~left.T)], (32, 32))
    assert border[0].nonzero()[0].tolist() == [13, 14, 15, 16, 17]
    hr = np.full((32, 32, 3), 100, np.uint8)
    hr[:, 16:] = 150
    flat = np.full_like(hr, 100)
    photo = heldout.Photograph("a", hr, np.zeros((8, 8, 3), np.uint8), {}, border)
    found = heldout.scores(flat, photo, lambda sr, hr: 0.0)
    assert found["edge_border"] > 5 and found["edge_inside"] == 0
