"""Fixtures of the training tests."""

import numpy as np
import pytest
from PIL import Image

from samdiffsr.data.prepare import prepare_folder
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
