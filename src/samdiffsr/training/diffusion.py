"""Stage 2: the denoiser learns the modulated process; the encoder is frozen."""

import torch
from torch import Tensor, nn

from samdiffsr.data.dataset import Batch
from samdiffsr.diffusion.loss import pixel_loss
from samdiffsr.diffusion.process import ModulatedProcess
from samdiffsr.diffusion.schedule import NoiseSchedule
from samdiffsr.resize import SCALE, imresize_tensor
from samdiffsr.training.config import DiffusionConfig
from samdiffsr.training.features import FeatureLoss


class DiffusionStage:
    """The loss of one update of the denoiser (Algorithm 1)."""

    def __init__(self, network: nn.Module, encoder: nn.Module, config: DiffusionConfig) -> None:
        self.network, self.encoder = network, encoder.eval().requires_grad_(False)
        self.config, self.pixel = config, config.loss.pixel
        self.process = ModulatedProcess(NoiseSchedule.cosine(config.timesteps), config.shift, config.target)
        self.weight = config.loss.features_weight
        self.features = FeatureLoss(config.loss.features_file) if config.loss.features_file else None

    def __call__(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Named loss terms; their sum is minimised. All noise comes from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        count = len(batch.hr)
        with torch.no_grad():
            features, image = self.encoder.encode(batch.lr, with_image=self.config.base == "encoder")  # pyright: ignore
            base = imresize_tensor(batch.lr, SCALE) if image is None else image.float()
            x_0 = (self.config.residual_scale * (batch.hr - base)).clamp(-1, 1)
        t = torch.randint(self.config.timesteps, (count,), generator=generator)
        noise = torch.randn(x_0.shape, generator=generator)
        start = x_0
        if self.config.rollout > 0:
            start = self._rollout(x_0, features, batch.structure, generator)
        x_t = self.process.add_noise(start, noise, t, batch.structure)
        prediction = self.network(x_t, t, features).float()
        target = self.process.training_target(noise, t, batch.structure, x_0=x_0)
        terms = {"pixel": pixel_loss(prediction, target, self.pixel)}
        if self.features is not None:
            estimate = self.process.predict_x0(x_t, prediction, t).clamp(-1, 1) / self.config.residual_scale + base
            terms["features"] = self.weight * self.features(estimate, batch.hr, generator)
        return terms

    def _rollout(self, x_0: Tensor, features: Tensor, structure: Tensor, generator: torch.Generator) -> Tensor:
        """x_0 for some examples, the network's own estimate from t = T for the others: what few-step sampling will see."""
        chosen = torch.rand(len(x_0), generator=generator) < self.config.rollout
        noise = torch.randn(x_0.shape, generator=generator)
        if not bool(chosen.any()):
            return x_0
        last = torch.full((int(chosen.sum()),), self.config.timesteps - 1)
        with torch.no_grad():
            x_t = self.process.add_noise(x_0[chosen], noise[chosen], last, structure[chosen])
            prediction = self.network(x_t, last, features[chosen]).float()
            estimate = self.process.predict_x0(x_t, prediction, last).clamp(-1, 1)
        start = x_0.clone()
        start[chosen] = estimate
        return start
