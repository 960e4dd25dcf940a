"""A run's folder as files small enough to be carried: OUTPUT/pieces/00.bin and so on, with their checksums in index.json."""

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

from samdiffsr.errors import CheckpointError
from samdiffsr.files import whole_folder
from samdiffsr.training.checkpoint import checkpoints

PIECES, INDEX = "pieces", "index.json"
BYTES = 15_900_000  # of a piece, at most
RESULTS = {"encoder": "encoder/weights", "diffusion": "model"}  # what each stage leaves


def split(output: Path) -> list[Path]:
    """Write and return the pieces of `output`: the result of each finished stage, the newest checkpoint of another."""
    kept = [path for stage in RESULTS for path in _kept(output, stage)]
    with whole_folder(output / PIECES) as fresh:
        whole = fresh / "whole.tar"
        with tarfile.open(whole, "w") as tar:
            for path in kept:
                tar.add(path, path.relative_to(output))
        entries = []
        with open(whole, "rb") as file:
            while content := file.read(BYTES):
                name = f"{len(entries):02d}.bin"
                (fresh / name).write_bytes(content)
                entries.append({"name": name, "sha256": hashlib.sha256(content).hexdigest()})
        whole.unlink()
        (fresh / INDEX).write_text(json.dumps({"pieces": entries}, indent=1))
    return [output / PIECES / entry["name"] for entry in entries]


def join(output: Path) -> bool:
    """Put the pieces together again where the run itself is missing. False: nothing to do.

    Raises:
        CheckpointError: a piece is missing or damaged.
    """
    folder = output / PIECES
    if not (folder / INDEX).is_file() or (output / "encoder").exists():
        return False
    with whole_folder(output / "joined") as fresh:
        whole = fresh / "whole.tar"
        with open(whole, "wb") as file:
            for entry in json.loads((folder / INDEX).read_text())["pieces"]:
                piece = folder / entry["name"]
                content = piece.read_bytes() if piece.is_file() else b""
                if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                    raise CheckpointError(f"piece {piece} is missing or damaged: bring it again.")
                file.write(content)
        with tarfile.open(whole) as tar:
            tar.extractall(fresh, filter="data")
        whole.unlink()
    for path in sorted(
        (output / "joined").iterdir(), key=lambda path: path.name == "encoder"
    ):  # "encoder" last: it ends the joining
        if path.is_dir():
            shutil.rmtree(output / path.name, ignore_errors=True)
        os.replace(path, output / path.name)
    (output / "joined").rmdir()
    return True


def finish(output: Path, stage: str) -> None:
    """Mark a stage as finished, which is to have a result and no checkpoints."""
    stale = output / stage / ".finished"
    os.replace(output / stage / "checkpoints", stale)
    shutil.rmtree(stale)


def finished(output: Path, stage: str) -> bool:
    """Whether the stage has come to its end."""
    return (output / RESULTS[stage]).is_dir() and not checkpoints(output / stage / "checkpoints")


def _kept(output: Path, stage: str) -> list[Path]:
    records = sorted((output / stage).glob("*.json*"))
    if finished(output, stage):
        return [output / RESULTS[stage], *records]
    return [*checkpoints(output / stage / "checkpoints")[-1:], *records]
