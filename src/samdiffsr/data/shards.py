"""Shards: an uncompressed tar of .npy members with an offset index beside it, memory-mapped on read.

`<key>.hr.npy` uint8 (H, W, 3), `<key>.lr.npy` uint8 (H / 4, W / 4, 3) and `<key>.structure.npy` float16 (H, W), H and W
multiples of 4; then, for each name of further targets of the encoder, `<key>.NAME.npy` as hr. Readers of such tars split a
name at its first dot, so a key has none (`key_of`).
`NAME.json` beside `NAME.tar` says where each array starts. Its presence means that the shard is whole.

Bytes depend on the content alone: no time, owner or machine is in them.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from samdiffsr.data import FORMULAS, SCHEMA
from samdiffsr.errors import ConfigError
from samdiffsr.resize import SCALE

MEMBERS = {"hr": np.dtype("u1"), "lr": np.dtype("u1"), "structure": np.dtype("<f2")}
"""Part -> dtype of its array, in the order of a shard."""

Example = tuple[np.ndarray, ...]
"""hr, lr and structure of one image, then its further targets in the order of their names."""


def key_of(stem: str) -> str:
    """The name of a photograph inside a shard: its stem with '.' as '%2E' (and '%' as '%25')."""
    return stem.replace("%", "%25").replace(".", "%2E")


def stem_of(key: str) -> str:
    """The stem that `key_of` escaped."""
    return key.replace("%2E", ".").replace("%25", "%")


class ShardWriter:
    """Appends images to an open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - see close

    def add(self, stem: str, example: Example, targets: Sequence[str] = ()) -> dict:
        """Append one image, arrays as the module's first paragraph has them; returns its key, size and offsets."""
        row = {"key": key_of(stem), "height_lr": example[1].shape[0], "width_lr": example[1].shape[1]}
        members = MEMBERS | dict.fromkeys(targets, MEMBERS["hr"])
        for (part, dtype), array in zip(members.items(), example, strict=True):
            assert array.dtype == dtype
            row[part] = self._append(f"{row['key']}.{part}.npy", array)
        return row

    def _append(self, name: str, array: np.ndarray) -> int:
        """Write one member; returns the byte of the shard at which its array starts."""
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        info = tarfile.TarInfo(name)  # time, owner and group are 0 or empty, the mode is 0o644
        info.size = content.tell()
        content.seek(0)
        self._tar.addfile(info, content)
        padded = -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return self._tar.offset - padded + info.size - array.nbytes

    def close(self) -> None:
        """Write the end of the archive; the file itself stays open."""
        self._tar.close()


class Shard:
    """One memory-mapped shard; nothing is read before an array is."""

    def __init__(self, path: Path) -> None:
        self._bytes = np.memmap(path, np.uint8, mode="r")

    def example(self, height_lr: int, width_lr: int, offsets: Sequence[int]) -> Example:
        """The arrays of one image, read-only views of the file; `offsets` are those of its parts, in their order."""
        height, width = SCALE * height_lr, SCALE * width_lr
        hr, lr, structure, *targets = offsets
        return (
            np.ndarray((height, width, 3), MEMBERS["hr"], self._bytes, hr),
            np.ndarray((height_lr, width_lr, 3), MEMBERS["lr"], self._bytes, lr),
            np.ndarray((height, width), MEMBERS["structure"], self._bytes, structure),
            *(np.ndarray((height, width, 3), MEMBERS["hr"], self._bytes, target) for target in targets),
        )


def read_manifest(folder: Path) -> dict:
    """The manifest of a finished prepared folder.

    Raises:
        ConfigError: there is none, or it is of another version.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"folder {folder} has no manifest.json: it is no prepared folder, or not finished.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the manifest of folder {folder} cannot be read ({error}); prepare the folder again."
        ) from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ConfigError(f"folder {folder} was prepared by another version; prepare it again in a new folder.")
    made_with = manifest.get("structure") or {"encoding": "rope"}
    if made_with["encoding"] != "rope" and made_with.get("formulas") != FORMULAS:
        raise ConfigError(
            f"folder {folder} was prepared with encoding {made_with['encoding']!r} when that was another formula; "
            "prepare it again in a new folder."
        )
    return manifest


def read_index(folder: Path, entry: dict) -> list[dict]:
    """The images of one shard of the manifest, after a look whether they are what the manifest was written for.

    Raises:
        ConfigError: the shard or its index is missing, or has changed.
    """
    tar, index = (folder / f"{entry['name']}{suffix}" for suffix in (".tar", ".json"))
    try:
        content, size = index.read_bytes(), tar.stat().st_size
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be read ({error.strerror}): copy the folder again or prepare it."
        ) from None
    if size != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry["index_sha256"]:
        raise ConfigError(f"shard {tar} is not the one in the manifest: copy the folder again, or finish preparing it.")
    return json.loads(content)["images"]
