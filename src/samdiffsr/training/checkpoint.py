"""Checkpoints: everything a run needs to go on, as one folder per checkpoint that appears whole or not at all.

`FOLDER/00000500/tensors.safetensors` holds every tensor, `numbers.json` the rest and the checksum of the tensors.
"""

import json
import shutil
import zlib
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from samdiffsr.errors import CheckpointError
from samdiffsr.files import sweep, whole_folder

CHECKPOINTS = "checkpoints"  # the folder of a stage's checkpoints
TENSORS, NUMBERS = "tensors.safetensors", "numbers.json"


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    return sorted(found for found in Path(folder).glob("*") if found.name.isdigit())


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], numbers: dict, *, keep: int) -> None:
    """Write a checkpoint named by `numbers["update"]`, then remove all but the newest `keep`; a kill leaves the former ones.

    Tensors may be on any device and in any memory layout; they are stored contiguous, on the CPU.
    """
    sweep(folder, idle_seconds=0)  # a run has one writer, so these are of a killed process
    with whole_folder(Path(folder) / f"{numbers['update']:08d}") as fresh:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, fresh / TENSORS)
        (fresh / NUMBERS).write_text(json.dumps({"checksum": _checksum(fresh / TENSORS)} | numbers), encoding="utf-8")
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """Tensors and numbers of the newest checkpoint, or None if there is none.

    Raises:
        CheckpointError: the newest one is damaged. No older one is taken silently.
    """
    found = checkpoints(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        numbers = json.loads((newest / NUMBERS).read_text(encoding="utf-8"))
        if numbers.pop("checksum") != _checksum(newest / TENSORS):
            raise ValueError("its checksum is wrong")
        return load_file(newest / TENSORS), numbers
    except (OSError, ValueError, KeyError) as error:
        rest = f"go on from {found[-2].name}" if len(found) > 1 else "start anew"
        raise CheckpointError(f"checkpoint {newest} is damaged ({error}); remove that folder to {rest}.") from None


def _checksum(file: Path) -> int:
    value = 0
    with open(file, "rb") as stream:
        while block := stream.read(2**20):
            value = zlib.crc32(block, value)
    return value
