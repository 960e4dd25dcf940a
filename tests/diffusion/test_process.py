"""The modulated process against Bayes' rule, its own simulation, the paper's sums and a Gaussian whose denoiser is known."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from samdiffsr import ModulatedProcess, NoiseSchedule, SamDiffSRError
from samdiffsr.diffusion.process import SHIFTS, TARGETS
from samdiffsr.sampling.schedulers import make_scheduler

COSINE = NoiseSchedule.cosine(100)
shifts = pytest.mark.parametrize("shift", SHIFTS)


def double(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_released_table():
    assert len(COSINE) == 100
    assert [round(float(beta), 4) for beta in COSINE.betas[:3]] == [0.0006, 0.0011, 0.0016]
    assert float(COSINE.betas[-1]) == 0.999
    assert COSINE.betas.dtype == COSINE.alphas.dtype == COSINE.alpha_bars.dtype == torch.float64
    torch.testing.assert_close(COSINE.alpha_bars, torch.cumprod(1 - COSINE.betas, 0), rtol=0, atol=0)


def test_linear_table():
    betas = NoiseSchedule.linear(1000).betas
    assert (float(betas[0]), float(betas[-1]), len(betas)) == (1e-4, 0.02, 1000)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (lambda: NoiseSchedule.cosine(0), "timesteps is 0"),
        (lambda: NoiseSchedule(torch.tensor([0.5, 1.5], dtype=torch.float64)), "1.5"),
        (lambda: NoiseSchedule(torch.tensor([0.5])), "float32"),
        (lambda: ModulatedProcess(COSINE, "bridges"), "'bridge'"),
        (lambda: ModulatedProcess(COSINE, "paper", "noise"), "'marginal_noise'"),
        (lambda: ModulatedProcess(COSINE, lambda schedule: schedule.betas[:5]), "(100,)"),
    ],
)
def test_bad_arguments_are_named(bad, told):
    with pytest.raises(SamDiffSRError) as caught:
        bad()
    assert told in str(caught.value)


@shifts
def test_shift_recursion(shift):
    """s_t = sqrt(alpha_t) s_{t-1} + k_t, s_0 = 0."""
    process = ModulatedProcess(COSINE, shift)
    s = torch.zeros((), dtype=torch.float64)
    for k, alpha, expected in zip(process.shift_step, COSINE.alphas, process.shift_mean, strict=True):
        s = alpha.sqrt() * s + k
        assert abs(float(s - expected)) < 1e-13


def test_paper_shift_is_equation_5():
    process = ModulatedProcess(COSINE, "paper")
    bars, betas = COSINE.alpha_bars, COSINE.betas
    phi = torch.stack([torch.sqrt(bars[t] * betas[: t + 1] / bars[: t + 1]).sum() for t in range(100)])
    torch.testing.assert_close(process.shift_mean, phi, rtol=1e-12, atol=0)
    torch.testing.assert_close(process.shift_step, betas.sqrt(), rtol=0, atol=1e-13)
    assert float(phi[-1]) == pytest.approx(1.08, abs=0.01)
    assert float(phi.max()) == pytest.approx(6.56, abs=0.01)


def test_bridge_vanishes_at_both_ends_and_none_everywhere():
    bridge = ModulatedProcess(COSINE, "bridge").shift_mean
    assert float(bridge[0]) < 1e-3
    assert float(bridge[-1]) < 1e-3
    assert float(bridge.max()) > 0.3
    assert not ModulatedProcess(COSINE, "none").shift_step.any()


def test_released_shift():
    mean = ModulatedProcess(COSINE, "released").shift_mean
    torch.testing.assert_close(mean, (1 - COSINE.alpha_bars) * COSINE.betas, rtol=0, atol=0)


@shifts
def test_posterior_is_bayes_rule(shift):
    """Against the Gaussian conditioning formula on the joint of (x_{t-1}, x_t) given x_0, error < 1e-12."""
    process = ModulatedProcess(COSINE, shift)
    x_0, x_t, e = double(1, 3), double(1, 3, seed=1), double(1, 3, seed=2)
    for t in range(1, 100):
        alpha, beta, before = COSINE.alphas[t], COSINE.betas[t], COSINE.alpha_bars[t - 1]
        k, s = process.shift_step[t], process.shift_mean[t - 1]
        prior_mean, prior_var = before.sqrt() * x_0 + s * e, 1 - before
        evidence_var = alpha * prior_var + beta
        gain = alpha.sqrt() * prior_var / evidence_var
        expected = prior_mean + gain * (x_t - alpha.sqrt() * prior_mean - k * e)
        mean, variance = process.posterior(x_0, x_t, torch.tensor([t]), e)
        assert float((mean - expected).abs().max()) < 1e-12
        assert abs(float(variance) - float(prior_var * beta / evidence_var)) < 1e-12


@shifts
def test_posterior_of_the_first_step_is_x_0(shift):
    x_0, x_t, e = double(2, 3), double(2, 3, seed=1), double(2, 3, seed=2)
    mean, variance = ModulatedProcess(COSINE, shift).posterior(x_0, x_t, torch.zeros(2, dtype=torch.long), e)
    torch.testing.assert_close(mean, x_0, rtol=0, atol=1e-15)
    assert not variance.any()


@shifts
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_true_answer_gives_the_exact_reverse_step(shift, target):
    """Eq. 6: with m_t the unmodified ancestral mean is the posterior's; the others give x_0 back exactly."""
    process = ModulatedProcess(COSINE, shift, target)
    t = torch.arange(100)
    x_0, noise, e = double(100, 3, 2, 2), double(100, 3, 2, 2, seed=1), double(100, 1, 2, 2, seed=2)
    x_t = process.add_noise(x_0, noise, t, e)
    answer = process.training_target(noise, t, e, x_0=x_0)
    if target == "posterior_noise":
        expected, _ = process.posterior(x_0, x_t, t, e)
        error = (process.previous_mean(x_t, answer, t) - expected).abs().amax((1, 2, 3))
        assert float(error.max()) < 1e-12
        with pytest.raises(SamDiffSRError, match="biased"):
            process.predict_x0(x_t, answer, t)
    else:
        scale = COSINE.alpha_bars.rsqrt().clamp(min=1).reshape(-1, 1, 1, 1)  # conditioning of x_0 in x_t
        assert float(((process.predict_x0(x_t, answer, t) - x_0) / scale).abs().max()) < 1e-14 * 10
        expected, _ = process.posterior(x_0, x_t, t, None)
        gap = (process.previous_mean(x_t, answer, t) - expected).abs() / scale
        assert float(gap.max()) < 1e-12


@shifts
def test_chain_reaches_the_closed_form(shift):
    """200,000 chains simulated step by step have the mean and variance of q(x_t | x_0, E)."""
    process = ModulatedProcess(COSINE, shift)
    generator = torch.Generator().manual_seed(3)
    x_0, e, count = 0.4, 1.3, 200_000
    x = torch.full((count,), x_0, dtype=torch.float64)
    for t in range(100):
        noise = torch.randn(count, generator=generator, dtype=torch.float64)
        x = COSINE.alphas[t].sqrt() * x + process.shift_step[t] * e + COSINE.betas[t].sqrt() * noise
        if t in (0, 30, 70, 99):
            bar, s = COSINE.alpha_bars[t], process.shift_mean[t]
            sigma = float((1 - bar).sqrt())
            assert abs(float(x.mean() - bar.sqrt() * x_0 - s * e)) < 5 * sigma / count**0.5
            assert float(x.var()) == pytest.approx(sigma**2, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_without_shift_it_is_diffusers_add_noise_bit_for_bit(dtype):
    scheduler = DDPMScheduler(num_train_timesteps=100, trained_betas=COSINE.betas.tolist())
    process = ModulatedProcess(COSINE, "none")
    x_0, noise = double(100, 3, 4, 4).to(dtype), double(100, 3, 4, 4, seed=1).to(dtype)
    t, e = torch.arange(100), double(100, 1, 4, 4, seed=2).to(dtype)
    plain = scheduler.add_noise(x_0, noise, t)
    assert torch.equal(process.add_noise(x_0, noise, t, e), plain)
    assert torch.equal(process.add_noise(x_0, noise, t, None), plain)
    assert torch.equal(process.training_target(noise, t, e), noise)


def test_zero_structure_is_no_structure():
    x_0, noise, t = double(4, 3, 2, 2), double(4, 3, 2, 2, seed=1), torch.tensor([0, 20, 60, 99])
    process = ModulatedProcess(COSINE, "paper", "velocity")
    zero = torch.zeros(4, 1, 2, 2, dtype=torch.float64)
    assert torch.equal(process.add_noise(x_0, noise, t, zero), process.add_noise(x_0, noise, t, None))
    with_zero = process.training_target(noise, t, zero, x_0=x_0)
    assert torch.equal(with_zero, process.training_target(noise, t, None, x_0=x_0))


@pytest.mark.parametrize("target", ["sample", "velocity"])
def test_target_that_needs_x_0_says_so(target):
    with pytest.raises(SamDiffSRError, match="x_0"):
        ModulatedProcess(COSINE, "paper", target).training_target(double(1, 1), torch.tensor([3]), None)


def test_a_custom_shift_is_one_function():
    process = ModulatedProcess(COSINE, lambda schedule: 0.5 * schedule.alpha_bars)
    torch.testing.assert_close(process.shift_mean, 0.5 * COSINE.alpha_bars, rtol=0, atol=0)
    x_0 = double(1, 1, 1, 1)
    mean, _ = process.posterior(x_0, double(1, 1, 1, 1, seed=1), torch.tensor([0]), double(1, 1, 1, 1, seed=2))
    torch.testing.assert_close(mean, x_0)


def sample_gaussian(shift, target, scheduler_class, steps, variance=0.25, count=20_000):
    """Regions of x_0 ~ N(m, variance) with structure e, sampled from N(0, I) by a stock scheduler with the optimal denoiser.

    Returns the largest error of a region's mean, in standard deviations of x_0, and the ratios of the variances.
    """
    m = torch.tensor([-0.5, 0.0, 0.3, 0.7], dtype=torch.float64).reshape(4, 1).expand(4, count)
    e = torch.tensor([1.0, -1.2, 0.5, 0.0], dtype=torch.float64).reshape(4, 1).expand(4, count)
    process = ModulatedProcess(COSINE, shift, target)
    options = {} if scheduler_class is DPMSolverMultistepScheduler else {"clip_sample": False}
    scheduler = make_scheduler(scheduler_class, COSINE, target, **options)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, count, generator=generator, dtype=torch.float64)
    for t in scheduler.timesteps.tolist():
        bar, s = COSINE.alpha_bars[t], process.shift_mean[t]
        noise = (1 - bar).sqrt() * (x - bar.sqrt() * m - s * e) / (bar * variance + 1 - bar)  # E[eps | x_t]
        prediction = process.training_target(noise, torch.tensor([t]), e)
        extra = {"generator": generator} if scheduler_class is DDPMScheduler else {}
        x = scheduler.step(prediction, t, x, **extra, return_dict=False)[0]
    error = float((x.mean(1) - m[:, 0]).abs().max()) / variance**0.5
    return error, np.asarray(x.var(1) / variance)


@shifts
def test_unmodified_ancestral_sampler_recovers_the_regions(shift):
    """Posterior noise: right for every shift, although x_T starts from N(0, I) and not from N(s_T E, I)."""
    error, ratio = sample_gaussian(shift, "posterior_noise", DDPMScheduler, 100)
    assert error < 0.03
    assert np.abs(ratio - 1).max() < 0.1


@pytest.mark.parametrize("shift", ["released", "none"])
@pytest.mark.parametrize(("scheduler", "steps"), [(DDIMScheduler, 100), (DPMSolverMultistepScheduler, 50)])
def test_deterministic_samplers_recover_the_regions(shift, scheduler, steps):
    """Marginal noise, where the shift is negligible at the times that matter."""
    error, ratio = sample_gaussian(shift, "marginal_noise", scheduler, steps)
    assert error < 0.03
    assert np.abs(ratio - 1).max() < 0.1


@pytest.mark.parametrize(("scheduler", "steps"), [(DDIMScheduler, 100), (DPMSolverMultistepScheduler, 50)])
def test_deterministic_samplers_and_larger_shifts(scheduler, steps):
    """DDIM goes from x_t to x_{t-1} without s_{t-1} E, which it cannot know: small for "bridge", not for "paper"."""
    assert sample_gaussian("bridge", "marginal_noise", scheduler, steps)[0] < 0.35
    assert sample_gaussian("paper", "marginal_noise", scheduler, steps)[0] > 1


def test_posterior_noise_and_a_sampler_through_x_0_do_not_go_together():
    assert sample_gaussian("paper", "posterior_noise", DDIMScheduler, 100)[0] > 1
