"""A trained pipeline folder to the weights that the package carries:  python runs/ship.py MODEL TARGET

Weights become float16; the model card (README.md) of TARGET is kept.
"""

import json
import sys
from pathlib import Path

import torch

from samdiffsr import SamDiffSRPipeline


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    pipe = SamDiffSRPipeline.from_pretrained(source)
    pipe.to(torch.float16).save_pretrained(target)
    for file in target.rglob("*.json"):  # where the model lay on this machine is nobody's business
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in sorted(target.rglob("*.safetensors")):
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
