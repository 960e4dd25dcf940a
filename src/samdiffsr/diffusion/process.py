"""The structure-modulated diffusion process (SAM-DiffSR, arXiv 2402.17133, Section 3.2).

    q(x_t | x_{t-1}, E) = N( sqrt(alpha_t) x_{t-1} + k_t E, beta_t I )                                    (Eq. 1)
    q(x_t | x_0, E)     = N( sqrt(abar_t) x_0 + s_t E, (1 - abar_t) I ),  s_t = sqrt(alpha_t) s_{t-1} + k_t  (Eq. 2, 5)

`shift` chooses k_t, and with it s_t; `target` chooses what a network is asked for. Sampling works on the plain state
y_t = x_t - s_t E, which is an unmodulated diffusion for every shift. docs/derivation.md has the proofs.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.errors import ConfigError, choose

Shift = Literal["paper", "released", "unweighted", "bridge", "none"]
Target = Literal["posterior_noise", "marginal_noise", "sample", "velocity"]
TARGETS = {"posterior_noise", "marginal_noise", "sample", "velocity"}
MOST_MEAN_ERROR = 0.05  # of a region, in standard deviations of x_0; what more than that is refused
X0_DEVIATION, STRUCTURE = 0.5, 1.2  # of the regions that `mean_error` reckons with: |E| of rope reaches sqrt(2)
ShiftFunction = Callable[[NoiseSchedule], Tensor]


def _paper(schedule: NoiseSchedule) -> Tensor:
    """phi_t = sum_{i<=t} sqrt(abar_t beta_i / abar_i), from k_t = sqrt(beta_t) (Eq. 5)."""
    alpha_bars = schedule.alpha_bars
    return torch.sqrt(alpha_bars) * torch.cumsum(torch.sqrt(schedule.betas / alpha_bars), dim=0)


def _released(schedule: NoiseSchedule) -> Tensor:
    """(1 - abar_t) beta_t: what the released training code adds."""
    return (1 - schedule.alpha_bars) * schedule.betas


def _unweighted(schedule: NoiseSchedule) -> Tensor:
    """sqrt(1 - abar_t): the released code with its coefficient off, which adds E itself to the noise, n_t = eps + E."""
    return torch.sqrt(1 - schedule.alpha_bars)


def _bridge(schedule: NoiseSchedule) -> Tensor:
    """sqrt(abar_t) (1 - abar_t): ours, zero at both ends, so that x_T really is N(0, I)."""
    return torch.sqrt(schedule.alpha_bars) * (1 - schedule.alpha_bars)


def _none(schedule: NoiseSchedule) -> Tensor:
    """0: plain DDPM, the control (SRDiff)."""
    return torch.zeros_like(schedule.betas)


SHIFTS: dict[str, ShiftFunction] = {
    "paper": _paper,
    "released": _released,
    "unweighted": _unweighted,
    "bridge": _bridge,
    "none": _none,
}


class ModulatedProcess:
    """The forward process, its posterior and its training targets, for one schedule, shift and target.

    All methods take x (N, C, H, W) or any (N, ...), `t` a LongTensor (N,) counted from 0, and `structure` E that broadcasts
    against x, for example (N, 1, H, W), or None for E = 0. Float64 tensors are computed with float64 tables; for narrower
    ones abar_t is tabulated in float32 exactly as diffusers' schedulers do it, so that training and sampling see one number.

    Args:
        schedule: the noise schedule.
        shift: a name of `SHIFTS`, or a function from the schedule to s_t, float64 (T,).
        target: what the network predicts; "posterior_noise" m_t (Eq. 6), "marginal_noise" n_t, "sample" x_0, "velocity" v_t.

    Attributes:
        shift: the shift's name.
        shift_step: k_t, float64 (T,).
        shift_mean: s_t, float64 (T,).
    """

    def __init__(
        self, schedule: NoiseSchedule, shift: Shift | ShiftFunction = "paper", target: Target = "posterior_noise"
    ) -> None:
        choose(target, dict.fromkeys(TARGETS), "target")
        self.schedule = schedule
        self.target: Target = target
        function = shift if callable(shift) else choose(shift, SHIFTS, "shift")
        self.shift = getattr(shift, "__name__", shift)
        self.shift_mean = function(schedule)
        if self.shift_mean.shape != schedule.betas.shape or self.shift_mean.dtype != torch.float64:
            got = f"{self.shift_mean.dtype} of shape {tuple(self.shift_mean.shape)}"
            raise ConfigError(f"a shift must return s_t as float64 of shape ({len(schedule)},), got {got}.")
        previous = torch.cat([torch.zeros(1, dtype=torch.float64), self.shift_mean[:-1]])
        self.shift_step = self.shift_mean - torch.sqrt(schedule.alphas) * previous

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor, structure: Tensor | None) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise + s_t E (Eq. 2)."""
        signal, sigma = self._signal_sigma(t, x_0)
        x_t = signal * x_0 + sigma * noise
        return x_t if structure is None else x_t + self._at(self.shift_mean, t, x_0) * structure

    def training_target(
        self, noise: Tensor, t: Tensor, structure: Tensor | None, *, x_0: Tensor | None = None
    ) -> Tensor:
        """The right answer of the network at x_t; "sample" and "velocity" need `x_0` too.

        Raises:
            ConfigError: `x_0` is missing where the target needs it.
        """
        if self.target in ("sample", "velocity") and x_0 is None:
            raise ConfigError(f"training_target needs x_0 for target {self.target!r}; pass x_0=.")
        if self.target == "sample":
            assert x_0 is not None
            return x_0
        modulated = noise  # m_t or n_t
        if structure is not None:
            modulated = noise + self._at(self._share(), t, noise) * structure
        if self.target != "velocity":
            return modulated
        assert x_0 is not None
        signal, sigma = self._signal_sigma(t, x_0)
        return signal * modulated - sigma * x_0

    def modulate(self, y_t: Tensor, t: Tensor, structure: Tensor | None) -> Tensor:
        """x_t = y_t + s_t E: the plain state as the network was trained to see it."""
        return y_t if structure is None else y_t + self._at(self.shift_mean, t, y_t) * structure

    def to_plain(self, x_t: Tensor, prediction: Tensor, t: Tensor, structure: Tensor | None) -> Tensor:
        """The network's answer at x_t as one about y_t: x_0 for "sample" and "velocity", eps for the noise targets.

        Exact for every shift and target if `structure` is E. None stands for E = 0, as everywhere: then the noise targets
        are returned as they are.
        """
        if self.target == "sample":
            return prediction
        if self.target == "velocity":
            signal, sigma = self._signal_sigma(t, x_t)
            return signal * x_t - sigma * prediction
        return prediction if structure is None else prediction - self._at(self._share(), t, x_t) * structure

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, structure: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (broadcastable) of q(x_{t-1} | x_t, x_0, E), exact for every shift (Eq. 7, 8).

        The product of two Gaussians in x_{t-1}: N(x_t; sqrt(alpha_t) x_{t-1} + k_t E, beta_t) and
        N(x_{t-1}; sqrt(abar_{t-1}) x_0 + s_{t-1} E, 1 - abar_{t-1}).
        """
        betas, alphas, alpha_bars = self.schedule.betas, self.schedule.alphas, self.schedule.alpha_bars
        one = torch.ones(1, dtype=torch.float64)
        before = torch.cat([one, alpha_bars[:-1]])
        rest = 1 - alpha_bars
        mean = (
            self._at(torch.sqrt(before) * betas / rest, t, x_t) * x_0
            + self._at(torch.sqrt(alphas) * (1 - before) / rest, t, x_t) * x_t
        )
        if structure is not None:
            shift_before = torch.cat([0 * one, self.shift_mean[:-1]])
            shift = (betas * shift_before - torch.sqrt(alphas) * (1 - before) * self.shift_step) / rest
            mean = mean + self._at(shift, t, x_t) * structure
        return mean, self._at((1 - before) / rest * betas, t, x_t)

    def predict_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor, structure: Tensor | None = None) -> Tensor:
        """The estimate of x_0 that a prediction implies; unbiased for every target, for "posterior_noise" only given E.

        Raises:
            ConfigError: for "posterior_noise" without `structure`.
        """
        if self.target == "posterior_noise" and structure is not None:
            signal, sigma = self._signal_sigma(t, x_t)
            y_t = x_t - self._at(self.shift_mean, t, x_t) * structure
            return (y_t - sigma * self.to_plain(x_t, prediction, t, structure)) / signal
        if self.target == "posterior_noise":
            raise ConfigError(
                "predict_x0 is undefined for target 'posterior_noise': its x_0 is biased by the unknown structure map; "
                "use previous_mean (the ancestral step), or train with 'marginal_noise', 'sample' or 'velocity'."
            )
        if self.target == "sample":
            return prediction
        signal, sigma = self._signal_sigma(t, x_t)
        if self.target == "velocity":
            return signal * x_t - sigma * prediction
        return (x_t - sigma * prediction) / signal

    def previous_mean(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Mean of the unmodified ancestral step x_t -> x_{t-1}, which knows no E (Eq. 6).

        Exact in expectation for "posterior_noise"; the other targets go through their unbiased x_0.
        """
        if self.target != "posterior_noise":
            return self.posterior(self.predict_x0(x_t, prediction, t), x_t, t, None)[0]
        betas = self.schedule.betas
        factor = betas / torch.sqrt(1 - self.schedule.alpha_bars)
        return (x_t - self._at(factor, t, x_t) * prediction) / self._at(torch.sqrt(self.schedule.alphas), t, x_t)

    def mean_error(self) -> float:
        """How far sampling without an estimate of E puts the mean of a region off, in standard deviations of x_0.

        Of a region x_0 ~ N(0, `X0_DEVIATION`^2) with |E| = `STRUCTURE`, drawn by the ancestral sampler in all steps, where the
        network answers the conditional expectation and knows E: the worst case, since one that must infer E from x_t
        follows what it sees. Everything is linear, so the mean follows a recursion in s_t and needs no sampling.
        """
        bars, variance = self.schedule.alpha_bars, X0_DEVIATION**2
        signal, rest = torch.sqrt(bars), 1 - bars
        gain = signal * variance / (bars * variance + rest)  # of E[x_0 | x_t] in x_t - s_t E
        # Read as eps, the answer holds this much E, where n_t would hold s_t / sqrt(1 - abar_t) of it.
        bias = torch.zeros_like(bars)
        if self.target == "posterior_noise":
            bias = (self.shift_mean - torch.sqrt(rest) * self._share()) / signal
        before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
        of_x_0 = torch.sqrt(before) * self.schedule.betas / rest
        of_x_t = torch.sqrt(self.schedule.alphas) * (1 - before) / rest
        mean = 0.0  # of y_T ~ N(0, I)
        for t in reversed(range(len(self.schedule))):
            x_0 = gain[t] * (mean - self.shift_mean[t]) + bias[t]
            mean = float(of_x_0[t] * x_0 + of_x_t[t] * mean)
        return abs(mean) * STRUCTURE / X0_DEVIATION

    def check_without_estimate(self) -> None:
        """Refuse to sample without an estimate of E where regions would get another mean.

        Raises:
            ConfigError: `mean_error` exceeds `MOST_MEAN_ERROR`.
        """
        error = self.mean_error()
        if error > MOST_MEAN_ERROR:
            others = (ModulatedProcess(self.schedule, shift, self.target) for shift in ("released", "none"))
            valid = " or ".join(repr(other.shift) for other in others if other.mean_error() <= MOST_MEAN_ERROR)
            raise ConfigError(
                f"without an estimate of the structure map, shift {self.shift!r} with target {self.target!r} moves the mean of "
                f"a region by {error:.2g} standard deviations, more than {MOST_MEAN_ERROR}: let the model estimate the map "
                f"(a structure head) or give one, or train with shift {valid}."
            )

    def _share(self) -> Tensor:
        """How much E a noise target holds beside eps, float64 (T,): m_t (Eq. 6) or n_t."""
        if self.target == "posterior_noise":
            return self.shift_step * torch.sqrt(1 - self.schedule.alpha_bars) / self.schedule.betas
        return self.shift_mean / torch.sqrt(1 - self.schedule.alpha_bars)

    def _at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """table[t] in the dtype and on the device of `like`, shaped to broadcast against it."""
        value = table.to(like.dtype).to(like.device)[t.to(like.device)]  # in this order: MPS has no float64
        return value.reshape(-1, *(1,) * (like.ndim - 1))

    def _signal_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t); below float64 rounded in the order of diffusers' `add_noise`."""
        if like.dtype == torch.float64:
            alpha_bars = self.schedule.alpha_bars
        else:
            alpha_bars = torch.cumprod(1.0 - self.schedule.betas.float(), dim=0)
        alpha_bar = self._at(alpha_bars, t, like)
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
