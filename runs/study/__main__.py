"""Does structure modulation help? Train and score pairs of networks that differ in nothing else:

    python runs/study OUTPUT --data DATA --heldout HR --masks MASKS [--setting light paper-light] [--arms none paper] \\
        [--seeds 0 1 2] [--updates 1000] [--encoder FOLDER] [--size small] [--set diffusion.data.batch=16]

DATA: a prepared folder. HR: photographs that are not in it, MASKS: their region masks. Same initial weights, crops, times,
noise and number of updates in all arms of a seed. All arms of a seed come before the next seed, so what is finished is a
result at any time. Interrupted, the same command goes on. OUTPUT/SETTING/ gets table.md, study.json, differences.svg and
pictures/; docs/study.md has what came out.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from samdiffsr import SamDiffSRPipeline
from samdiffsr.data.dataset import PreparedImages
from samdiffsr.errors import ConfigError, SamDiffSRError
from samdiffsr.evaluation.metrics import SqueezeDistance
from samdiffsr.files import write_json
from samdiffsr.models.weights import DEFAULT_MODEL, load_network
from samdiffsr.training.config import TrainConfig, load_config
from samdiffsr.training.run import ENCODERS, train_diffusion, train_encoder

from arms import ARMS, SETTINGS  # isort: skip - this folder
from heldout import Photograph, photographs, results, scores  # isort: skip
from summary import summarise  # isort: skip


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        for name in options.setting:
            _check(options, options.output / name)
        trained_on = set(PreparedImages(options.data).stems)
        held_out = {
            name: photographs(
                options.heldout,
                options.masks,
                options.side or SETTINGS[name].side,
                trained_on,
                configuration(options, name, "first", ()).diffusion.structure,
            )
            for name in options.setting
        }
        for name in options.setting:
            (options.output / name / "scores").mkdir(parents=True, exist_ok=True)
            write_json(_identity(options), options.output / name / "options.json", indent=1)
        for seed in options.seeds:
            for name in options.setting:
                for arm in options.arms:
                    _run(options, name, arm, seed, held_out[name])
                summarise(options.output / name, held_out[name])
    except SamDiffSRError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    for name in ("--data", "--heldout", "--masks"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS)[:2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, help="of each denoiser; default: the preset's")
    parser.add_argument("--encoder", type=Path, help="trained light encoder; default: the embedded model's")
    parser.add_argument("--side", type=int, help="HR pixels of the held-out squares; default: the setting's")
    parser.add_argument(
        "--size", choices=("small", "full"), default="small", help="full: the preset's networks and crops"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override for all arms")
    return parser.parse_args(arguments)


def _identity(options: argparse.Namespace) -> dict:
    """What decides the scores, and must not change in a folder."""
    keys = ("data", "heldout", "masks", "updates", "encoder", "side", "size", "set")
    return {key: json.loads(json.dumps(getattr(options, key), default=str)) for key in keys}


def _check(options: argparse.Namespace, folder: Path) -> None:
    """Refuse a folder that holds the scores of another study."""
    file = folder / "options.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for key, value in _identity(options).items():
        if before and before[key] != value:
            raise ConfigError(f"{key} is {value!r}, but the study in {folder} has {before[key]!r}; use a new folder.")


def configuration(options: argparse.Namespace, setting: str, output: str, more: tuple[str, ...]) -> TrainConfig:
    """Of one run, as `samdiffsr train` would have it."""
    shared = SETTINGS[setting]
    common = [f"photos={options.data}", f"output={options.output / setting / output}", *shared.common]
    common += shared.small if options.size == "small" else ()
    common += [] if options.updates is None else [f"diffusion.optim.updates={options.updates}"]
    return load_config(shared.preset, [*common, *options.set, *more])


def overrides(setting: str, arm: str, seed: int) -> tuple[str, ...]:
    """Those in which the runs of a setting differ."""
    own = tuple(f"diffusion.{override}" for override in ARMS[arm].overrides)
    if SETTINGS[setting].posterior and "shift=paper" in ARMS[arm].overrides:
        own += ("diffusion.target=posterior_noise",)
    return (*own, f"seed={seed}")


def _run(options: argparse.Namespace, setting: str, arm: str, seed: int, chosen: list[Photograph]) -> None:
    """Train one network, unless its scores are there, and score it with each of its maps."""
    folder = options.output / setting
    file = folder / "scores" / f"{seed}-{arm}.json"
    if file.exists():
        return
    started = time.monotonic()
    encoder, channels = _encoder(options, setting)
    given = (f"diffusion.encoder={encoder}", f"diffusion.network.feature_channels={channels}")
    records: list[dict] = []
    model = train_diffusion(
        configuration(options, setting, f"runs/{arm}-{seed}", (*overrides(setting, arm, seed), *given)),
        resume=True,
        on_update=lambda _, record: records.append(record),
    )
    trained = time.monotonic()
    pipe = SamDiffSRPipeline.from_pretrained(model or "")
    pipe.set_progress_bar_config(disable=True)
    distance, rows = SqueezeDistance(), []
    learned = "borders" if "borders" in ARMS[arm].maps else "truth"
    for name in ARMS[arm].maps:
        pictures = folder / "results" / f"{arm}-{name}-{seed}"
        pictures.mkdir(parents=True, exist_ok=True)
        for photograph, sr, error in results(pipe, chosen, name, seed, learned=learned):
            row = {"seed": seed, "arm": arm, "map": name, "image": photograph.stem, "map_error": error}
            rows.append(row | scores(sr, photograph, distance))
            Image.fromarray(sr).save(pictures / f"{photograph.stem}.png")
    write_json(rows, file)
    psnr = ", ".join(
        f"{name} {np.mean([row['psnr_y'] for row in rows if row['map'] == name]):.3f}" for name in ARMS[arm].maps
    )
    loss = float(np.mean([record["pixel"] for record in records[-100:]])) if records else float("nan")
    times = f"trained {trained - started:.0f} s, scored {time.monotonic() - trained:.0f} s"
    print(f"{setting} seed {seed} {arm}: PSNR-Y {psnr}; last losses {loss:.4f}; {times}", flush=True)


def _encoder(options: argparse.Namespace, setting: str) -> tuple[Path, int]:
    """The encoder that all arms start from, and its channels: the one given or embedded or, for the paper's networks, one
    that is trained here first."""
    config = configuration(options, setting, "first", ())
    folder = options.encoder or DEFAULT_MODEL / "encoder"
    if config.family != "light":
        folder = train_encoder(config, resume=True, on_update=lambda update, record: None)
    assert folder is not None
    return folder, load_network(ENCODERS[config.family], folder).feature_channels


if __name__ == "__main__":
    sys.exit(main())
