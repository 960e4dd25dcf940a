"""The modulated process against Bayes' rule, its own simulation, the paper's sums and a Gaussian whose denoiser is known."""

import inspect

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, LCMScheduler

from samdiffsr import ModulatedProcess, NoiseSchedule, SamDiffSRError
from samdiffsr.diffusion.process import SHIFTS, TARGETS
from samdiffsr.sampling.schedulers import make_scheduler, takes_generator

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


def test_without_the_released_coefficient_the_map_itself_is_added_to_the_noise():
    process = ModulatedProcess(COSINE, "unweighted", "marginal_noise")
    noise, structure, t = double(100, 3), double(100, 3, seed=1), torch.arange(100)
    found = process.training_target(noise, t, structure)
    torch.testing.assert_close(found, noise + structure, rtol=0, atol=1e-14)
    weighted = ModulatedProcess(COSINE, "released", "marginal_noise").training_target(noise, t, structure) - noise
    coefficient = COSINE.betas * (1 - COSINE.alpha_bars).sqrt()
    torch.testing.assert_close(weighted, coefficient[:, None] * structure, rtol=0, atol=1e-14)


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


M = torch.tensor([-0.5, 0.0, 0.3, 0.7], dtype=torch.float64)  # means of regions
E = torch.tensor([1.0, -1.2, 0.5, 0.0], dtype=torch.float64)  # and their structure


def sample_gaussian(shift, target, scheduler, steps, *, exact=True, deviation=0.5, noise=0.0, count=20_000):
    """Regions x_0 ~ N(M, deviation^2) with structure E, sampled in the plain state with the optimal denoiser.

    Args:
        exact: whether sampling knows E, or takes it for 0.
        noise: standard deviation of an error that the denoiser adds to each answer.

    Returns:
        The largest error of a region's mean, in standard deviations of x_0; and for each step, with the last result, the
        standard deviation of a region over that of the marginal.
    """
    m, e = (one.reshape(1, 1, 4, 1).expand(1, 1, 4, count) for one in (M, E))
    process = ModulatedProcess(COSINE, shift, target)
    estimate = e if exact else None
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    takes = {"generator": generator} if takes_generator(scheduler) else {}
    y = torch.randn(m.shape, generator=generator, dtype=torch.float64) * scheduler.init_noise_sigma
    ratios = []
    for timestep in scheduler.timesteps:
        t = torch.full((1,), int(timestep))
        bar, s = COSINE.alpha_bars[t], process.shift_mean[t]
        plain = scheduler.scale_model_input(y, timestep)
        ratios.append(plain.std(3) / (bar * deviation**2 + 1 - bar).sqrt())
        x_t = process.modulate(plain, t, estimate)
        eps = (1 - bar).sqrt() * (x_t - bar.sqrt() * m - s * e) / (bar * deviation**2 + 1 - bar)  # E[eps | x_t]
        x_0 = m + bar.sqrt() * deviation**2 * (x_t - bar.sqrt() * m - s * e) / (bar * deviation**2 + 1 - bar)
        answer = process.training_target(eps, t, e, x_0=x_0)
        answer = answer + noise * torch.randn(answer.shape, generator=generator, dtype=torch.float64)
        y = scheduler.step(process.to_plain(x_t, answer, t, estimate), timestep, y, **takes, return_dict=False)[0]
    ratios.append(y.std(3) / deviation)
    return float((y.mean(3) - M).abs().max()) / deviation, torch.cat(ratios)


def unclipped(cls, target):
    """A scheduler for Gaussians, which reach beyond [-1, 1]."""
    known = {"clip_sample": False, "thresholding": False}
    settings = {name: value for name, value in known.items() if name in inspect.signature(cls.__init__).parameters}
    return make_scheduler(cls, COSINE, target, **settings)


@shifts
def test_unmodified_ancestral_sampler_recovers_the_regions(shift):
    """Posterior noise without an estimate: right for every shift, although x_T starts from N(0, I) and not from N(s_T E, I)."""
    scheduler = unclipped(DDPMScheduler, "posterior_noise")
    error, ratios = sample_gaussian(shift, "posterior_noise", scheduler, 100, exact=False)
    assert error < 0.03
    assert (ratios - 1).abs().max() < 0.1


@shifts
@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize(("cls", "steps"), [(DDIMScheduler, 100), (DPMSolverMultistepScheduler, 50), (LCMScheduler, 4)])
def test_with_the_structure_every_shift_and_target_goes_with_every_sampler(shift, target, cls, steps):
    error, ratios = sample_gaussian(shift, target, unclipped(cls, target), steps)
    assert error < 0.03
    if cls is not LCMScheduler:  # too few steps for the variance
        assert (ratios - 1).abs().max() < 0.1


@shifts
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_without_it_the_error_is_the_one_that_is_computed(shift, target):
    """The recursion of `mean_error` against sampling; 0.03 is the sampling error."""
    cls = DDPMScheduler
    found, _ = sample_gaussian(shift, target, unclipped(cls, target), 100, exact=False)
    assert found == pytest.approx(ModulatedProcess(COSINE, shift, target).mean_error(), abs=0.03, rel=0.02)


@pytest.mark.parametrize(
    ("shift", "target", "valid"),
    [
        ("paper", "posterior_noise", True),
        ("paper", "marginal_noise", False),
        ("bridge", "sample", False),
        ("released", "velocity", True),
        ("none", "sample", True),
        (lambda schedule: 0.01 * schedule.betas, "sample", True),
        (lambda schedule: schedule.betas.sqrt(), "sample", False),
    ],
)
def test_what_needs_an_estimate_is_refused_by_its_shift_and_not_by_its_name(shift, target, valid):
    process = ModulatedProcess(COSINE, shift, target)
    if valid:
        process.check_without_estimate()
        return
    with pytest.raises(SamDiffSRError, match=r"standard deviations, more than 0\.05.*shift 'released' or 'none'"):
        process.check_without_estimate()


def test_the_bridge_is_what_it_says():
    expected = COSINE.alpha_bars.sqrt() * (1 - COSINE.alpha_bars)
    torch.testing.assert_close(ModulatedProcess(COSINE, "bridge").shift_mean, expected, rtol=0, atol=0)


@shifts
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_plain_state_and_answer_are_those_of_an_unmodulated_process(shift, target):
    process, plain = ModulatedProcess(COSINE, shift, target), ModulatedProcess(COSINE, "none", target)
    x_0, noise, e = double(100, 3, 2, 2), double(100, 3, 2, 2, seed=1), double(100, 1, 2, 2, seed=2)
    t = torch.arange(100)
    y_t, x_t = plain.add_noise(x_0, noise, t, None), process.add_noise(x_0, noise, t, e)
    torch.testing.assert_close(process.modulate(y_t, t, e), x_t, rtol=0, atol=1e-14)
    answer = process.to_plain(x_t, process.training_target(noise, t, e, x_0=x_0), t, e)
    expected = noise if target.endswith("noise") else x_0
    torch.testing.assert_close(answer, expected, rtol=1e-12, atol=1e-12)


@shifts
@pytest.mark.parametrize("target", ["posterior_noise", "marginal_noise", "velocity"])
def test_the_training_target_holds_the_structure(shift, target):
    """m_t, n_t and v_t written out: without E the paper's heart would be gone, and nothing else would show it."""
    process, t = ModulatedProcess(COSINE, shift, target), torch.arange(100)
    x_0, noise, e = double(100, 1), double(100, 1, seed=1), double(100, 1, seed=2)
    bars, betas = COSINE.alpha_bars[:, None], COSINE.betas[:, None]
    n_t = noise + process.shift_mean[:, None] / (1 - bars).sqrt() * e
    expected = {
        "posterior_noise": noise + process.shift_step[:, None] * (1 - bars).sqrt() / betas * e,
        "marginal_noise": n_t,
        "velocity": bars.sqrt() * n_t - (1 - bars).sqrt() * x_0,
    }[target]
    torch.testing.assert_close(process.training_target(noise, t, e, x_0=x_0), expected, rtol=1e-12, atol=1e-12)


def test_named_schedules():
    torch.testing.assert_close(NoiseSchedule.named("cosine", 100).betas, COSINE.betas, rtol=0, atol=0)
    assert float(NoiseSchedule.named("cosine", 100, max_beta=0.5).betas.max()) == 0.5
    assert float(NoiseSchedule.named("linear", 10, max_beta=0.9).betas.max()) == 0.9
    for timesteps in (10, 100, 1000):  # x_T is noise, whatever the number of steps
        assert float(NoiseSchedule.named("linear", timesteps).alpha_bars[-1]) < 1e-4
    with pytest.raises(SamDiffSRError, match="schedule is 'cubic', but must be one of 'cosine', 'linear'"):
        NoiseSchedule.named("cubic", 100)
