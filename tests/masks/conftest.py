"""Fixtures of the mask tests."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samdiffsr.cli import main
from support import photograph


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six photographs of as many kinds; width 48, height 36."""
    folder = tmp_path / "hr"
    folder.mkdir()
    photograph(0).save(folder / "a.png")
    photograph(1).convert("CMYK").save(folder / "b.jpg")
    photograph(2).quantize(8).save(folder / "c.gif")
    photograph(3).convert("RGBA").save(folder / "d.webp")
    Image.fromarray(np.asarray(photograph(4).convert("L")).astype(np.uint16) * 257).save(folder / "e.png")
    photograph(5).save(folder / "masks.tif")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def command(capfd):
    def run(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["masks", *map(str, arguments)])
        return (caught.value.code, *capfd.readouterr())

    return run
