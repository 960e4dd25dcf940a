"""Noise schedules: float64 tables of beta_t, alpha_t and abar_t. Index 0 is the paper's t = 1."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from samdiffsr.errors import ConfigError, choose


@dataclass(frozen=True)
class NoiseSchedule:
    """The variances of a forward process of T steps.

    Attributes:
        betas: beta_t, float64 (T,), each in (0, 1).
    """

    betas: Tensor

    def __post_init__(self) -> None:
        betas = self.betas
        if betas.ndim != 1 or len(betas) == 0 or betas.dtype != torch.float64:
            raise ConfigError(f"betas must be float64 of shape (T,), got {betas.dtype} of shape {tuple(betas.shape)}.")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ConfigError(f"betas must lie in (0, 1), got values from {betas.min():.6g} to {betas.max():.6g}.")

    @classmethod
    def cosine(cls, timesteps: int = 100, *, offset: float = 0.008, max_beta: float = 0.999) -> "NoiseSchedule":
        """The cosine schedule (arXiv 2102.09672) as the released code tabulates it: the angle runs over T + 1 points."""
        _check_timesteps(timesteps)
        x = torch.linspace(0, timesteps + 1, timesteps + 1, dtype=torch.float64)
        f = torch.cos((x / (timesteps + 1) + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls((1 - f[1:] / f[:-1]).clamp(0, max_beta))

    @classmethod
    def linear(cls, timesteps: int = 1000, *, max_beta: float = 0.999) -> "NoiseSchedule":
        """beta_t rising linearly from 1e-4 to 0.02 at 1000 steps (arXiv 2006.11239), and 1000 / T times as fast at T steps, so
        that x_T is noise for every T (arXiv 2102.09672)."""
        _check_timesteps(timesteps)
        betas = torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64) * (1000 / timesteps)
        return cls(betas.clamp(max=max_beta))

    @classmethod
    def named(cls, name: str, timesteps: int, *, max_beta: float = 0.999) -> "NoiseSchedule":
        """The schedule "cosine" or "linear"; ConfigError names the choices."""
        return choose(name, {"cosine": cls.cosine, "linear": cls.linear}, "schedule")(timesteps, max_beta=max_beta)

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def alphas(self) -> Tensor:
        """alpha_t = 1 - beta_t, float64 (T,)."""
        return 1 - self.betas

    @property
    def alpha_bars(self) -> Tensor:
        """abar_t = alpha_1 ... alpha_t, float64 (T,)."""
        return torch.cumprod(self.alphas, dim=0)


def _check_timesteps(timesteps: int) -> None:
    if timesteps < 1:
        raise ConfigError(f"timesteps is {timesteps}, but must be at least 1.")
