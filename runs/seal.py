"""Seal a new default model:  python runs/seal.py

Writes what `samdiffsr doctor` compares with: checksums of the embedded model's files, and its own result on the small test
picture.
"""

import hashlib

from samdiffsr.cli.doctor import synthetic_picture
from samdiffsr.images import Picture, write_image
from samdiffsr.load import load_model
from samdiffsr.models.weights import DEFAULT_MODEL
from samdiffsr.upscale.enlarge import enlarge

SEALED = ("*/*.safetensors", "*/*.json", "model_index.json")


def main() -> None:
    files = sorted(file for pattern in SEALED for file in DEFAULT_MODEL.glob(pattern))
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(DEFAULT_MODEL)}\n" for file in files]
    (DEFAULT_MODEL / "SHA256SUMS").write_text("".join(sums))
    write_image(enlarge(load_model("default", "cpu"), Picture(synthetic_picture())), DEFAULT_MODEL / "selftest.png")


if __name__ == "__main__":
    main()
