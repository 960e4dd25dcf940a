"""Fixtures of the training tests."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from samdiffsr.data.prepare import prepare_folder
from samdiffsr.training.features import LAYERS
from support import write_masks


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A prepared folder of two photographs with two regions each."""
    root = tmp_path_factory.mktemp("photos")
    (root / "hr").mkdir()
    (root / "masks").mkdir()
    y, x = np.mgrid[:64, :64]
    for stem, wave in {"a": np.sin(x / 3) + np.cos(y / 5), "b": np.sin((x + y) / 4)}.items():
        grey = (127 + 50 * wave).astype(np.uint8)
        Image.fromarray(np.stack([grey, grey.T, grey], axis=2)).save(root / f"hr/{stem}.png")
        write_masks(root / f"masks/{stem}.json", [x < 32, x >= 32])
    prepare_folder(root / "hr", root / "masks", root / "out")
    return root / "out"


@pytest.fixture(scope="module")
def feature_file(tmp_path_factory):
    """Random weights in the layout of a VGG16's first three stages."""
    generator, tensors, before = torch.Generator().manual_seed(0), {}, 3
    for name in LAYERS:
        after = 4 * 2 ** int(name[4])
        tensors[f"{name}.weight"] = torch.randn(after, before, 3, 3, generator=generator) * 0.1
        tensors[f"{name}.bias"] = torch.zeros(after)
        before = after
    file = tmp_path_factory.mktemp("features") / "features.safetensors"
    save_file(tensors, file)
    return file


@pytest.fixture(scope="module")
def validation_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    for number, size in enumerate(((50, 40), (33, 64), (90, 90))):
        y, x = np.mgrid[: size[0], : size[1]]
        grey = (127 + 60 * np.sin(x / (3 + number)) + 60 * np.cos(y / 4)).astype(np.uint8)
        Image.fromarray(np.stack([grey, grey, 255 - grey], axis=2)).save(folder / f"{number}.png")
    return folder
