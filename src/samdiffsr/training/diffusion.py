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
from samdiffsr.training.objective import Objective, Outcome, normal, uniform


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

    def read(self, words: np.ndarray) -> dict[str, Any]:
        """Besides "phase": t, seeds of the noise, and which examples start from a rolled-out estimate under which noise."""
        config = self.config
        t = (uniform(words[:, 2]) * config.timesteps).astype(np.int64)
        t[uniform(words[:, 3]) < config.last_step_share] = config.timesteps - 1
        rolled = np.flatnonzero(uniform(words[:, 4]) < config.rollout)
        return super().read(words) | {
            "t": torch.from_numpy(t),
            "noise": (words[:, 5] >> 1).tolist(),
            "rolled": torch.from_numpy(rolled),
            "rollout_noise": (words[rolled, 6] >> 1).tolist(),
        }

    def forward(self, batch: Batch, draws: dict[str, Any]) -> Outcome:
        """Gradients reach the encoder, if it learns, through its features; the base is never part of the graph."""
        scale, t = self.config.residual_scale, draws["t"]
        with nullcontext() if "encoder" in self.trained else torch.no_grad():
            features, image = self.encoder.encode(batch.lr, with_image=self.config.base == "encoder")  # pyright: ignore
        base = imresize_tensor(batch.lr, SCALE) if image is None else image.detach().float()
        x_0 = (scale * (batch.hr - base)).clamp(-1, 1)
        start = self._rollout(x_0, features, batch.structure, draws) if len(draws["rolled"]) else x_0
        noise = normal(draws["noise"], x_0.shape, x_0.device)
        x_t = self.process.add_noise(start, noise, t, batch.structure)
        prediction = self.network(x_t, t, features).float()
        target = self.process.training_target(noise, t, batch.structure, x_0=x_0)
        estimate = None
        if self.judged or self.features is not None:
            estimate = (self.process.predict_x0(x_t, prediction, t).clamp(-1, 1) / scale + base).clamp(-1, 1)
        phase = draws["phase"]
        return self._outcome(prediction, target, estimate=estimate, base=base, hr=batch.hr, phase=phase)

    @torch.no_grad()
    def _rollout(self, x_0: Tensor, features: Tensor, structure: Tensor, draws: dict[str, Any]) -> Tensor:
        """x_0 for some examples, the network's own estimate from t = T for the others: what few-step sampling will see."""
        chosen = draws["rolled"]
        noise = normal(draws["rollout_noise"], x_0.shape, x_0.device)
        last = torch.full_like(chosen, self.config.timesteps - 1)
        x_t = self.process.add_noise(x_0[chosen], noise, last, structure[chosen])
        prediction = self.network(x_t, last, features[chosen]).float()
        start = x_0.clone()
        start[chosen] = self.process.predict_x0(x_t, prediction, last).clamp(-1, 1)
        return start
