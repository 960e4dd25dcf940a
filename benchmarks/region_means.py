"""The table of region means in docs/derivation.md:  python benchmarks/region_means.py

How far the structure map moves the mean of a region of x_0 ~ N(m, 0.5^2), in standard deviations, when the optimal denoiser,
which knows E, is sampled by a stock scheduler on the cosine schedule of 100 steps; the largest of |E| = 1.2. Everything is
linear without clipping, so the answer is exact: it is the difference of two runs with the same noise, one with E and one
without. One thread, some seconds.
"""

import inspect

import diffusers
import torch

from samdiffsr import ModulatedProcess, NoiseSchedule
from samdiffsr.diffusion.process import SHIFTS, STRUCTURE, X0_DEVIATION
from samdiffsr.sampling.schedulers import make_scheduler, takes_generator

SCHEDULE = NoiseSchedule.cosine(100)
SAMPLERS = {
    "DDPM-100": (diffusers.DDPMScheduler, 100),
    "DDIM-100": (diffusers.DDIMScheduler, 100),
    "DPM-Solver++-50": (diffusers.DPMSolverMultistepScheduler, 50),
    "UniPC-50": (diffusers.UniPCMultistepScheduler, 50),
    "LCM-4": (diffusers.LCMScheduler, 4),
}


def sample(process: ModulatedProcess, cls: type, steps: int, structure: float, *, exact: bool) -> torch.Tensor:
    """One x_0 under seed 0; `exact` is whether sampling knows E, or takes it for 0."""
    known = inspect.signature(cls.__init__).parameters
    unclipped = {name: False for name in ("clip_sample", "thresholding") if name in known}
    scheduler = make_scheduler(cls, SCHEDULE, process.target, **unclipped)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    takes = {"generator": generator} if takes_generator(scheduler) else {}
    e = torch.full((1, 1, 1, 1), structure, dtype=torch.float64)
    y = torch.randn(e.shape, generator=generator, dtype=torch.float64)
    for timestep in scheduler.timesteps:
        t = torch.full((1,), int(timestep))
        bar, s = SCHEDULE.alpha_bars[t], process.shift_mean[t]
        x_t = process.modulate(y, t, e if exact else None)
        variance = bar * X0_DEVIATION**2 + 1 - bar
        x_0, eps = bar.sqrt() * X0_DEVIATION**2 * (x_t - s * e) / variance, (1 - bar).sqrt() * (x_t - s * e) / variance
        answer = process.training_target(eps, t, e, x_0=x_0)
        plain = process.to_plain(x_t, answer, t, e if exact else None)
        y = scheduler.step(plain, timestep, y, **takes, return_dict=False)[0]
    return y


def main() -> None:
    torch.set_num_threads(1)
    print("| shift | target | " + " | ".join(SAMPLERS) + " | `mean_error` |")
    print("|---|---|" + "---|" * (len(SAMPLERS) + 1))
    worst = 0.0
    for shift in SHIFTS:
        for target in ("posterior_noise", "marginal_noise", "sample", "velocity"):
            process, cells = ModulatedProcess(SCHEDULE, shift, target), []
            for cls, steps in SAMPLERS.values():
                errors = []
                for exact in (True, False):
                    runs = [sample(process, cls, steps, e, exact=exact) for e in (STRUCTURE, 0.0)]
                    errors.append(float((runs[0] - runs[1]).abs()) / X0_DEVIATION)
                worst = max(worst, errors[0])
                cells.append(f"{errors[1]:.3f}")
            print(f"| {shift} | {target} | " + " | ".join(cells) + f" | {process.mean_error():.3f} |", flush=True)
    print(f"\nWith the exact E^: at most {worst:.1e} in every cell.")


if __name__ == "__main__":
    main()
