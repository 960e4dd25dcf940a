"""Which schedulers sample a model right: a perturbed exact denoiser in every valid combination, refusals and warnings."""

import diffusers
import numpy as np
import pytest
import torch

from samdiffsr import ModulatedProcess, NoiseSchedule, SamDiffSRError, SamDiffSRPipeline
from samdiffsr.diffusion.process import MOST_MEAN_ERROR, SHIFTS, TARGETS
from samdiffsr.sampling.schedulers import REFUSED, TESTED, make_scheduler, named_scheduler, takes_generator

COSINE = NoiseSchedule.cosine(100)
IMAGE = np.full((3, 2, 3), 90, np.uint8)
M = torch.tensor([-0.3, 0.0, 0.2, 0.4]).reshape(1, 1, 4, 1).expand(1, 1, 4, 3000)  # means of regions of x_0
E = torch.tensor([1.0, -1.2, 0.5, 0.0]).reshape(1, 1, 4, 1).expand(1, 1, 4, 3000)  # and their structure
DEVIATION, ERROR = 0.2, 0.1  # of x_0; of the error in each answer


def deviations(scheduler, process, steps, *, exact=True):
    """Standard deviation of the plain state over the marginal's: at each step; and of the result over that of x_0."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    takes = {"generator": generator} if takes_generator(scheduler) else {}
    y = torch.randn(M.shape, generator=generator) * scheduler.init_noise_sigma
    ratios = []
    for timestep in scheduler.timesteps:
        t = torch.full((1,), int(timestep))
        bar, s = COSINE.alpha_bars[t].float(), process.shift_mean[t].float()
        y_t = scheduler.scale_model_input(y, timestep)
        variance = bar * DEVIATION**2 + 1 - bar
        ratios.append(y_t.std(3) / variance.sqrt())
        x_t = process.modulate(y_t, t, E if exact else None)
        distance = x_t - bar.sqrt() * M - s * E
        x_0, eps = M + bar.sqrt() * DEVIATION**2 * distance / variance, (1 - bar).sqrt() * distance / variance
        answer = process.training_target(eps, t, E, x_0=x_0) + ERROR * torch.randn(M.shape, generator=generator)
        plain = process.to_plain(x_t, answer, t, E if exact else None)
        y = scheduler.step(plain, timestep, y, **takes, return_dict=False)[0]
    return torch.cat(ratios), float(y.std(3).max()) / DEVIATION, float((y.mean(3) - M[..., 0]).abs().max())


def combinations():
    for shift in SHIFTS:
        for target in sorted(TARGETS):
            yield shift, target, True
            valid = ModulatedProcess(COSINE, shift, target).mean_error() <= MOST_MEAN_ERROR
            if valid and target != "posterior_noise":  # which then cannot be clipped, see below
                yield shift, target, False


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++", "unipc"])
@pytest.mark.parametrize(("shift", "target", "exact"), list(combinations()))
def test_an_imperfect_denoiser_stays_on_the_marginal_in_every_valid_combination(shift, target, exact, name):
    scheduler = named_scheduler(name, COSINE, target, estimated=exact)
    ratios, _, error = deviations(scheduler, ModulatedProcess(COSINE, shift, target), 50, exact=exact)
    assert (ratios - 1).abs().max() < 0.2
    assert error < 0.05


@pytest.mark.parametrize("target", ["sample", "velocity"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_of_lcm_stay_on_the_marginal(target, steps):
    """Of targets that say something of x_0 at t = T; the clipped x_0 of a noise target is noise there."""
    scheduler = named_scheduler("lcm", COSINE, target, estimated=True)
    ratios, result, error = deviations(scheduler, ModulatedProcess(COSINE, "paper", target), steps)
    assert (ratios - 1).abs().max() < 0.2 and error < 0.1 and result < 1.2


def test_without_an_estimate_posterior_noise_multiplies_the_error():
    """Why training warns: 1/sqrt(alpha_T) = 31.6 in the first step, and nothing can clip it."""
    scheduler = named_scheduler("ddpm", COSINE, "posterior_noise")
    ratios, _, _ = deviations(scheduler, ModulatedProcess(COSINE, "paper", "posterior_noise"), 100, exact=False)
    assert ratios.max() > 2


@pytest.mark.parametrize("name", TESTED)
@pytest.mark.parametrize("target", ["marginal_noise", "sample"])
def test_every_tested_scheduler_samples_right(name, target):
    if target == "marginal_noise" and not TESTED[name]:
        pytest.skip("it cannot clip x_0: the pipeline warns")
    scheduler = make_scheduler(getattr(diffusers, name), COSINE, target)
    assert all(scheduler.config[key] == value for key, value in TESTED[name].items())
    ratios, _, error = deviations(scheduler, ModulatedProcess(COSINE, "none", target), 50)
    assert ratios.max() < 1.3 and error < 0.05  # LCM's result is narrower than the marginal


@pytest.mark.parametrize("name", TESTED)
def test_x_0_is_clipped_wherever_it_can_be(name):
    """A wild answer, as an imperfect network gives at the first step."""
    scheduler = make_scheduler(getattr(diffusers, name), COSINE, "marginal_noise")
    if not TESTED[name]:
        return
    scheduler.set_timesteps(1)
    result = scheduler.step(torch.zeros(1, 3, 4, 4), scheduler.timesteps[0], torch.ones(1, 3, 4, 4), return_dict=False)
    assert result[0].abs().max() < 1.5  # without: 1 / sqrt(abar_T) = 2000, for those that start there


@pytest.mark.parametrize("name", [name for name in REFUSED if hasattr(diffusers, name)])  # older ones have fewer
def test_what_draws_rubbish_in_silence_is_refused_in_a_sentence(tiny_pipe, name):
    tiny_pipe.scheduler = getattr(diffusers, name).from_config(tiny_pipe.scheduler.config)
    with pytest.raises(
        SamDiffSRError, match=rf"^{name} cannot sample this model, for .*; choose one of DDPMScheduler, "
    ):
        tiny_pipe(IMAGE)


def test_an_unknown_scheduler_warns(tiny_pipe):
    class HomeMadeScheduler(diffusers.DDIMScheduler):
        pass

    tiny_pipe.scheduler = HomeMadeScheduler.from_config(tiny_pipe.scheduler.config)
    warnings = []
    tiny_pipe(IMAGE, on_warning=warnings.append)
    assert len(warnings) == 1 and warnings[0].startswith(
        "HomeMadeScheduler is not one of the schedulers that were tested"
    )
    with pytest.warns(RuntimeWarning, match="HomeMadeScheduler is not one of"):
        tiny_pipe(IMAGE)


def test_noise_that_nothing_clips_warns(tiny_pipe):
    tiny_pipe.register_to_config(target="marginal_noise")
    tiny_pipe.scheduler = make_scheduler(
        diffusers.UniPCMultistepScheduler, COSINE, "marginal_noise", thresholding=False
    )
    warnings = []
    tiny_pipe.check(4, on_warning=warnings.append)
    assert "does not clip x_0" in warnings[0] and "thresholding=True and sample_max_value=1.0" in warnings[0]


def test_other_betas_than_the_models_are_refused(tiny_pipe):
    tiny_pipe.scheduler = make_scheduler(diffusers.DDIMScheduler, NoiseSchedule.linear(100), "sample")
    with pytest.raises(
        SamDiffSRError, match="the betas of DDIMScheduler are not those that the model was trained with"
    ):
        tiny_pipe(IMAGE)


def test_a_schedule_travels_with_the_saved_pipeline(tiny_pipe, tmp_path):
    schedule = NoiseSchedule.named("linear", 40, max_beta=0.4)
    parts = {"encoder": tiny_pipe.encoder, "denoiser": tiny_pipe.denoiser}
    scheduler = named_scheduler("ddim", schedule, "sample")
    pipe = SamDiffSRPipeline(**parts, scheduler=scheduler, shift="none", target="sample", steps=2)
    pipe.save_pretrained(tmp_path)
    loaded = SamDiffSRPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.process.schedule.betas, schedule.betas, rtol=0, atol=0)


def test_every_name_clips_unless_its_x_0_is_biased():
    for name in ("ddpm", "ddim", "lcm", "dpmsolver++", "unipc"):
        for target in sorted(TARGETS):
            for estimated in (False, True):
                config = named_scheduler(name, COSINE, target, estimated=estimated).config
                clips = bool(config.get("clip_sample") or config.get("thresholding"))
                assert clips == (estimated or target != "posterior_noise")
