"""Networks from folders: all of their weights, nothing but their weights, and finite ones."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from samdiffsr.errors import CheckpointError, ConfigError, first_line

DEFAULT_MODEL = Path(__file__).parents[1] / "weights" / "default"
# What a damaged or foreign folder makes diffusers and torch raise. Theirs are long; the first line says what it is.
LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    AttributeError,
    LookupError,
    ImportError,
    TypeError,
    ArithmeticError,
    SafetensorError,
)


def load_network(kind: type[nn.Module], folder: Path) -> Any:
    """A network of class `kind` from the folder that its `save_pretrained` wrote, in float32.

    Not by `from_pretrained`, which imports torch's compiler, a second and more, to ask whether the network was compiled.

    Raises:
        CheckpointError: it is missing, damaged, of another network, or not finite.
    """
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        if config["_class_name"] != kind.__name__:
            raise ValueError(f"it holds a {config['_class_name']}, but a {kind.__name__} is wanted")
        network = kind(**{name: value for name, value in config.items() if not name.startswith("_")})
        network.load_state_dict(load_file(folder / SAFETENSORS_WEIGHTS_NAME), strict=False)
    except (ConfigError, *LOADING_ERRORS) as error:
        raise CheckpointError(f"network folder {folder} cannot be loaded: {first_line(error)}") from error
    check_weights(network, folder)
    return network.eval()


def move(network: nn.Module, *where: Any, **layout: Any) -> None:
    """`network.to` without that of diffusers, which imports torch's compiler to look for hooks that none of ours has yet."""
    nn.Module.to(network, *where, **layout)


def with_options(network: Any, seed: int = 0, **options: Any) -> Any:
    """A copy of a light network with other options, which take none of its weights away.

    Args:
        seed: of new weights.
        options: `level`, an input that changes nothing before it is trained, or `limit`.
    """
    arguments = {name: value for name, value in network.config.items() if not name.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copy = type(network)(**arguments | options)
    unknown = copy.load_state_dict(network.state_dict(), strict=False).unexpected_keys
    assert not unknown, unknown
    return copy.train(network.training)


def check_weights(network: nn.Module, folder: Path) -> None:
    """Refuse what diffusers only warns of: tensors that were not in the folder's files and are therefore random.

    Raises:
        CheckpointError: the files lack a tensor, hold another one, or one that is not finite.
    """
    held: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            held |= set(tensors.keys())
    state = network.state_dict()
    if wrong := sorted(held ^ state.keys()):
        raise CheckpointError(
            f"the weights in {folder} do not fit its config.json: tensor {wrong[0]} is "
            f"{'not wanted' if wrong[0] in held else 'missing'}."
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"tensor {name} of the weights in {folder} is not finite.")
