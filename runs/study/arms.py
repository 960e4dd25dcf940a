"""The settings and the arms of the study, all as overrides of a preset: `--set` wins over them."""

from dataclasses import dataclass

MAPS = {
    "none": "no map: E^ = 0",
    "head": "the model's own estimate, with the position in the whole photograph",
    "truth": "the map of the photograph's masks: the oracle",
    "felzenszwalb": "regions of similar colour in the whole bicubically enlarged photograph",
    "other": "the true map of another photograph",
    "position": "the position map, not averaged over regions",
    "base": "no diffusion: the base alone (detail 0)",
    "constant": "the root mean square of the true map, everywhere",
    "borders": "how near the next border between the true regions is, the oracle of them",
}
"""Where E^ comes from while sampling."""


@dataclass(frozen=True)
class Arm:
    """A network to train.

    Attributes:
        overrides: of `diffusion`, beside the setting's.
        maps: of `MAPS`; the network is scored with each.
        reference: the arm whose scores are subtracted.
    """

    overrides: tuple[str, ...]
    maps: tuple[str, ...]
    reference: str = "none"


_HEAD = "structure_weight=0.1"
_PAPER, _BRIDGE = ("shift=paper", _HEAD), ("shift=bridge", _HEAD)
_LEARNING = ("encoder_rate=0.1", "base=bicubic")
ARMS = {
    "none": Arm(("shift=none",), ("none", "base")),
    # Must be `none` to the bit, as the encoder is frozen: nothing but the shift tells the other arms from it.
    "none-head": Arm(("shift=none", _HEAD), ("none",)),
    "paper": Arm(_PAPER, ("truth", "head", "felzenszwalb", "other")),
    "bridge": Arm(_BRIDGE, ("truth", "head", "felzenszwalb")),
    "released": Arm(("shift=released",), ("none", "truth")),
    "bridge-other": Arm((*_BRIDGE, "structure.map=other"), ("other",)),
    "bridge-constant": Arm((*_BRIDGE, "structure.map=constant"), ("constant",)),
    "bridge-position": Arm((*_BRIDGE, "structure.map=position"), ("position",)),
    "paper-other": Arm((*_PAPER, "structure.map=other"), ("other",)),
    "paper-constant": Arm((*_PAPER, "structure.map=constant"), ("constant",)),
    "paper-position": Arm((*_PAPER, "structure.map=position"), ("position",)),
    # The ablations of the released configuration. Other encodings and normalised maps need a prepared folder of their own, and
    # `--set diffusion.structure.encoding=cosine` or what they are.
    "released-position": Arm(("shift=released", "structure.map=position"), ("none", "position")),
    "unweighted": Arm(("shift=unweighted", _HEAD), ("truth", "head")),
    "condition": Arm(("shift=none", _HEAD, "network.structure_input=true"), ("truth", "head", "other")),
    # What the same masks could teach otherwise: where regions end, in place of one number for each.
    "borders": Arm(("shift=none", _HEAD, "network.structure_input=true", "structure.map=borders"), ("borders", "head")),
    # The head shares nothing with the denoiser but the encoder: it can teach only one that learns. The base is not its
    # estimate, for the last layers of the encoder get no gradient: it fell to 15 dB.
    "learning": Arm(("shift=none", *_LEARNING), ("none",)),
    "learning-head": Arm(("shift=none", *_LEARNING, _HEAD), ("none",), "learning"),
    "learning-paper": Arm((*_PAPER, *_LEARNING), ("truth", "head"), "learning"),
}

CONTRASTS = (
    ("paper/truth", "paper-other/other"),
    ("paper/truth", "paper-constant/constant"),
    ("paper/truth", "paper-position/position"),
    ("paper/head", "paper/truth"),
    ("paper/felzenszwalb", "paper/truth"),
    ("paper/other", "paper/truth"),
    ("bridge/truth", "bridge-other/other"),
    ("bridge/truth", "bridge-constant/constant"),
    ("bridge/truth", "bridge-position/position"),
    ("bridge/head", "bridge/truth"),
    ("condition/truth", "condition/other"),
    ("bridge/felzenszwalb", "bridge/truth"),
)
"""Pairs of arm/map to subtract, besides each arm and its reference."""


@dataclass(frozen=True)
class Setting:
    """What all arms of a study have in common.

    Attributes:
        preset: of `samdiffsr train`.
        common: overrides of the preset, at any size.
        small: overrides that make it fit a CPU and an hour.
        posterior: whether the shift `paper` predicts the noise of the posterior, as its equations have it.
        side: of the held-out photographs' central squares, in HR pixels, at size "small".
    """

    preset: str
    common: tuple[str, ...]
    small: tuple[str, ...]
    posterior: bool
    side: int


# A norm over head and denoiser would couple them, and so would Muon, which treats the last convolution in another way than the
# others: with a head that is the head's.
_ALL = ("tensorboard=false", "diffusion.optim.clip_norm=null", "diffusion.optim.optimizer=adamw")
_NOISE = (*_ALL, "diffusion.target=marginal_noise")
# Every value of the protocol: the preset follows the default model, whose losses and steps change.
_FEW_STEPS = (
    "diffusion.optim={updates: 2000, learning_rate: 1.0e-3, warmup: 100, ema_decay: 0.99, precision: bfloat16}",
    "diffusion.loss={pixel: l1}",
    *(
        f"diffusion.{override}"
        for override in (
            *("target=sample", "base=encoder", "residual_scale=4.0", "last_step_share=0", "rollout=0.5"),
            *("timesteps=100", "schedule=cosine", "scheduler=lcm", "steps=4", "detail=1"),
        )
    ),
    *_ALL,
)
_FEW_CROPS = ("diffusion.data={crop_lr: 16, batch: 8, candidates: 1}", "diffusion.optim.warmup=20")
_SHORT = tuple(
    f"diffusion.optim.{override}"
    for override in ("schedule=cosine", "step_every=null", "learning_rate=1.0e-3", "ema_decay=0.99")
)
_SMALL_ENCODER = (
    "encoder.network={channels: 32, blocks: 3, growth: 16}",
    "encoder.data={crop_lr: 16, batch: 8}",
    "encoder.optim={updates: 600, learning_rate: 1.0e-3, warmup: 20, ema_decay: 0.99}",
)
SETTINGS = {
    # Few steps over a frozen encoder's estimate.
    "light": Setting(
        "light-cpu",
        _FEW_STEPS,
        (*_FEW_CROPS, "diffusion.network={width: 64, blocks: 4}"),
        False,
        128,
    ),
    # The paper's process (the residual over bicubic, noise targets, all of 100 steps) with the light networks.
    "paper-light": Setting(
        "paper",
        (*_NOISE, "family=light", "diffusion.network={}"),
        (*_FEW_CROPS, *_SHORT, "diffusion.network={width: 48, blocks: 3}", "diffusion.optim.precision=bfloat16"),
        True,
        96,
    ),
    # The same with the paper's networks.
    "paper": Setting(
        "paper",
        _NOISE,
        (*_FEW_CROPS, *_SHORT, "diffusion.network={dim: 16, multipliers: [1, 2, 2]}", *_SMALL_ENCODER),
        True,
        64,
    ),
}
