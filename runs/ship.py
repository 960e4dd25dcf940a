"""A trained pipeline folder to the weights that the package carries:  python runs/ship.py MODEL TARGET

Weights become float16 and keep the configuration that made them, if any; the model card (README.md) of TARGET is kept.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from samdiffsr import SamDiffSRPipeline
from samdiffsr.training.config import METADATA


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    pipe = SamDiffSRPipeline.from_pretrained(source)
    pipe.to(torch.float16).save_pretrained(target)
    for file in target.rglob("*.json"):  # where the model lay on this machine is nobody's business
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in sorted(target.rglob("*.safetensors")):
        with safe_open(source / file.relative_to(target), "pt") as trained:
            config = json.loads((trained.metadata() or {}).get(METADATA, "null"))
        metadata = {"format": "pt"} | ({METADATA: json.dumps(_without_folders(config))} if config else {})
        save_file(load_file(file), file, metadata=metadata)
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


def _without_folders(value: Any) -> Any:
    """The same configuration with the last name of each path only."""
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    return Path(value).name if isinstance(value, str) and "/" in value else value


if __name__ == "__main__":
    main()
