"""Stage 2: the denoiser learns the modulated process; the encoder is frozen or learns on more slowly."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samdiffsr.data.dataset import Batch
from samdiffsr.diffusion.process import ModulatedProcess
from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.resize import SCALE, imresize_tensor
from samdiffsr.training.config import DiffusionConfig
from samdiffsr.training.objective import Objective, Outcome


class DiffusionStage(Objective):
    """The loss of the denoiser (Algorithm 1)."""

    def __init__(self, network: nn.Module, encoder: nn.Module, config: DiffusionConfig) -> None:
        super().__init__(config.loss)
        self.config = config
        self.network, self.encoder = network, encoder.requires_grad_(config.encoder_rate > 0)
        self.trained, self.rates = {"denoiser": network}, {"denoiser": 1.0}
        if config.encoder_rate > 0:
            self.trained["encoder"], self.rates["encoder"] = encoder, config.encoder_rate
        else:
            encoder.eval()
        self.process = ModulatedProcess(NoiseSchedule.cosine(config.timesteps), config.shift, config.target)

    def draw(self, rng: np.random.Generator, side_hr: int) -> dict[str, Any]:
        """t, noise, and whether and with which noise x_t comes from a rolled-out estimate."""
        config, shape = self.config, (3, side_hr, side_hr)
        drawn = super().draw(rng, side_hr) | {"noise": rng.standard_normal(shape, np.float32)}
        t = rng.integers(config.timesteps)
        drawn["t"] = np.int64(config.timesteps - 1 if rng.random() < config.last_step_share else t)
        if config.rollout > 0:
            drawn["rolled"] = np.bool_(rng.random() < config.rollout)
            drawn["rollout_noise"] = rng.standard_normal(shape, np.float32)
        return drawn

    def forward(self, batch: Batch, draws: dict[str, Any]) -> Outcome:
        """Gradients reach the encoder, if it learns, through its features; the base is never part of the graph."""
        scale, t = self.config.residual_scale, draws["t"]
        with nullcontext() if "encoder" in self.trained else torch.no_grad():
            features, image = self.encoder.encode(batch.lr, with_image=self.config.base == "encoder")  # pyright: ignore
        base = imresize_tensor(batch.lr, SCALE) if image is None else image.detach().float()
        x_0 = (scale * (batch.hr - base)).clamp(-1, 1)
        start = self._rollout(x_0, features, batch.structure, draws) if self.config.rollout > 0 else x_0
        x_t = self.process.add_noise(start, draws["noise"], t, batch.structure)
        prediction = self.network(x_t, t, features).float()
        target = self.process.training_target(draws["noise"], t, batch.structure, x_0=x_0)
        estimate = None
        if self.config.target != "posterior_noise":
            estimate = (self.process.predict_x0(x_t, prediction, t).clamp(-1, 1) / scale + base).clamp(-1, 1)
        phase = draws["phase"]
        return self._outcome(prediction, target, estimate=estimate, base=base, hr=batch.hr, phase=phase)

    @torch.no_grad()
    def _rollout(self, x_0: Tensor, features: Tensor, structure: Tensor, draws: dict[str, Any]) -> Tensor:
        """x_0 for some examples, the network's own estimate from t = T for the others: what few-step sampling will see."""
        chosen = draws["rolled"]
        if not bool(chosen.any()):
            return x_0
        last = torch.full((int(chosen.sum()),), self.config.timesteps - 1, device=x_0.device)
        x_t = self.process.add_noise(x_0[chosen], draws["rollout_noise"][chosen], last, structure[chosen])
        prediction = self.network(x_t, last, features[chosen]).float()
        start = x_0.clone()
        start[chosen] = self.process.predict_x0(x_t, prediction, last).clamp(-1, 1)
        return start
