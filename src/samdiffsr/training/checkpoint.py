"""Checkpoints: everything a run needs to go on, written to a temporary name and renamed."""

import os
import pickle
from pathlib import Path

import torch

from samdiffsr.errors import CheckpointError

NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write `state` (tensors and plain values) as the folder's checkpoint; a kill leaves the former one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{NAME}.tmp"
    torch.save(state, temporary)
    os.replace(temporary, folder / NAME)


def load_checkpoint(folder: Path) -> dict | None:
    """The folder's checkpoint, or None if there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = folder / NAME
    if not file.exists():
        return None
    try:
        return torch.load(file, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"checkpoint {file} is damaged ({error}); remove it to start anew.") from None
