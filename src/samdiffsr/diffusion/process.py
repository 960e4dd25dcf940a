"""The structure-modulated diffusion process (SAM-DiffSR, arXiv 2402.17133, Section 3.2).

    q(x_t | x_{t-1}, E) = N( sqrt(alpha_t) x_{t-1} + k_t E, beta_t I )                                    (Eq. 1)
    q(x_t | x_0, E)     = N( sqrt(abar_t) x_0 + s_t E, (1 - abar_t) I ),  s_t = sqrt(alpha_t) s_{t-1} + k_t  (Eq. 2, 5)

`shift` chooses k_t, and with it s_t; `target` chooses what a network is asked for. docs/derivation.md has the proofs.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.errors import ConfigError, choose

Shift = Literal["paper", "released", "bridge", "none"]
Target = Literal["posterior_noise", "marginal_noise", "sample", "velocity"]
TARGETS = {"posterior_noise", "marginal_noise", "sample", "velocity"}
ShiftFunction = Callable[[NoiseSchedule], Tensor]


def _paper(schedule: NoiseSchedule) -> Tensor:
    """phi_t = sum_{i<=t} sqrt(abar_t beta_i / abar_i), from k_t = sqrt(beta_t) (Eq. 5)."""
    alpha_bars = schedule.alpha_bars
    return torch.sqrt(alpha_bars) * torch.cumsum(torch.sqrt(schedule.betas / alpha_bars), dim=0)


def _released(schedule: NoiseSchedule) -> Tensor:
    """(1 - abar_t) beta_t: what the released training code adds."""
    return (1 - schedule.alpha_bars) * schedule.betas


def _bridge(schedule: NoiseSchedule) -> Tensor:
    """sqrt(abar_t) (1 - abar_t): ours, zero at both ends, so that x_T really is N(0, I)."""
    return torch.sqrt(schedule.alpha_bars) * (1 - schedule.alpha_bars)


def _none(schedule: NoiseSchedule) -> Tensor:
    """0: plain DDPM, the control (SRDiff)."""
    return torch.zeros_like(schedule.betas)


SHIFTS: dict[str, ShiftFunction] = {"paper": _paper, "released": _released, "bridge": _bridge, "none": _none}


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
        shift_step: k_t, float64 (T,).
        shift_mean: s_t, float64 (T,).
    """

    def __init__(
        self, schedule: NoiseSchedule, shift: Shift | ShiftFunction = "paper", target: Target = "posterior_noise"
    ) -> None:
        choose(target, dict.fromkeys(TARGETS), "target")
        self.schedule = schedule
        self.target = target
        function = shift if callable(shift) else choose(shift, SHIFTS, "shift")
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
        """What the network shall answer at x_t; "sample" and "velocity" need `x_0` too.

        Raises:
            ConfigError: `x_0` is missing where the target needs it.
        """
        if self.target in ("sample", "velocity") and x_0 is None:
            raise ConfigError(f"training_target needs x_0 for target {self.target!r}; pass x_0=.")
        if self.target == "sample":
            assert x_0 is not None
            return x_0
        if structure is None:
            modulated = noise
        elif self.target == "posterior_noise":  # m_t = eps + k_t sqrt(1 - abar_t) / beta_t E  (Eq. 6)
            factor = self.shift_step * torch.sqrt(1 - self.schedule.alpha_bars) / self.schedule.betas
            modulated = noise + self._at(factor, t, noise) * structure
        else:  # n_t = eps + s_t / sqrt(1 - abar_t) E
            factor = self.shift_mean / torch.sqrt(1 - self.schedule.alpha_bars)
            modulated = noise + self._at(factor, t, noise) * structure
        if self.target != "velocity":
            return modulated
        assert x_0 is not None
        signal, sigma = self._signal_sigma(t, x_0)
        return signal * modulated - sigma * x_0

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

    def predict_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The estimate of x_0 that a prediction implies; unbiased for every target but "posterior_noise".

        Raises:
            ConfigError: for "posterior_noise".
        """
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
