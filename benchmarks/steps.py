"""Quality against steps for five samplers:  python benchmarks/steps.py BENCH [--steps 1 2 4 8]

BENCH holds SET/HR and SET/LR; the scores are PSNR-Y and the squeeze distance (docs/evaluation.md).
"seconds" is this process's CPU time for the whole set, so it holds on a busy
machine. Each sampler runs on the model's own betas; what is "trailing" starts at the noisiest step, what is "leading" does not.
The last lines name the knee: the fewest steps whose distance is within --slack of the sampler's best.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from samdiffsr.evaluation.metrics import SqueezeDistance, psnr_y
from samdiffsr.load import load_model

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LCM": ("LCMScheduler", {}),
    "DDPM": ("DDPMScheduler", {"timestep_spacing": "trailing", "variance_type": "fixed_small"}),
    "DDIM": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    "UniPC": ("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
}


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--sets", nargs="+", default=["Set5"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slack", type=float, default=0.01, help="of the knee, relative")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pairs = [
        (pixels(file), pixels(options.bench / name / "HR" / file.name))
        for name in options.sets
        for file in sorted((options.bench / name / "LR").glob("*.png"))
    ]
    if not pairs:
        raise SystemExit(f"{options.bench} has no PNG image in {', '.join(options.sets)}.")
    distance = SqueezeDistance()
    pipe = load_model(options.model, "cpu")
    config = pipe.scheduler.config
    pipe(pairs[0][0][:16, :16])  # the first call is slower

    print(f"{'sampler':14} {'steps':>5} {'PSNR-Y':>8} {'distance':>9} {'seconds':>8}   {' '.join(options.sets)}")
    knees = []
    for sampler in options.samplers:
        name, settings = SAMPLERS[sampler]
        pipe.scheduler = getattr(diffusers, name).from_config(config, **settings)
        rows = []
        for steps in options.steps:
            start, scores = time.process_time(), []
            results = [
                pipe(lr, steps, generator=torch.Generator().manual_seed(options.seed), output_type="uint8").images[0]
                for lr, _ in pairs
            ]
            seconds = time.process_time() - start
            for sr, (_, whole) in zip(results, pairs, strict=True):
                hr = whole[: sr.shape[0], : sr.shape[1]]
                scores.append((psnr_y(sr, hr), distance(sr, hr)))
            psnr, perceptual = np.mean(scores, axis=0)
            rows.append((steps, perceptual))
            print(f"{sampler:14} {steps:5} {psnr:8.3f} {perceptual:9.4f} {seconds:8.1f}", flush=True)
        best = min(score for _, score in rows)
        knees.append((sampler, next(s for s, score in rows if score <= best + options.slack * best), best))
    for sampler, steps, best in knees:
        print(f"knee of {sampler}: {steps} steps (best {best:.4f})")


if __name__ == "__main__":
    main()
