"""Scores of a model on benchmark sets:  python benchmarks/quality.py BENCH [-m MODEL] [--steps 1 2 4] [--distance WEIGHTS]

BENCH holds SET/HR/*.png and SET/LR/*.png of the same names (LR: MATLAB bicubic x1/4). PSNR on Y (BT.601), border 4, and the
squeeze distance (see samdiffsr.evaluation.metrics; not LPIPS) on the whole image, both on 8-bit results, mean over images.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from samdiffsr import imresize
from samdiffsr.evaluation.metrics import SqueezeDistance, psnr_y
from samdiffsr.upscale import load_model


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--sets", nargs="+", default=["Set5", "Set14", "BSD100"])
    parser.add_argument("--steps", nargs="+", type=int, default=[None], help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distance", type=Path, help="weights of the squeeze distance")
    parser.add_argument("--scheduler", help="class of diffusers, for example DPMSolverMultistepScheduler")
    options = parser.parse_args()
    pipe = load_model(options.model, "cpu")
    pipe.set_progress_bar_config(disable=True)
    if options.scheduler:
        import diffusers

        pipe.scheduler = getattr(diffusers, options.scheduler).from_config(pipe.scheduler.config)
    distance = SqueezeDistance(options.distance) if options.distance else None

    def model(steps: int | None):
        def run(lr: np.ndarray) -> np.ndarray:
            generator = torch.Generator().manual_seed(options.seed)
            return np.asarray(pipe(lr, num_inference_steps=steps, generator=generator).images[0])

        return run

    methods = {"bicubic": lambda lr: imresize(lr, 4)}
    methods |= {f"{options.model}, {steps or pipe.config.steps} steps": model(steps) for steps in options.steps}
    print(f"{'set':8} {'method':40} PSNR-Y    distance")
    for name in options.sets:
        files = sorted((options.bench / name / "LR").glob("*.png"))
        if not files:
            raise SystemExit(f"{options.bench / name}/LR has no PNG image.")
        for method, run in methods.items():
            scores = []
            for file in files:
                sr, hr = run(pixels(file)), pixels(options.bench / name / "HR" / file.name)
                hr = hr[: sr.shape[0], : sr.shape[1]]
                scores.append((psnr_y(sr, hr), distance(sr, hr) if distance else float("nan")))
            psnr, perceptual = np.mean(scores, axis=0)
            print(f"{name:8} {method:40} {psnr:6.2f} dB {perceptual:8.4f}", flush=True)


if __name__ == "__main__":
    main()
