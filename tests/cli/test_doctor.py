"""`samdiffsr doctor`: well on this machine, and it notices what is not."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import samdiffsr.cli.doctor
import samdiffsr.models.weights
from samdiffsr.cli import main
from samdiffsr.models.weights import DEFAULT_MODEL
from support import EXAMPLES


def doctor(*options: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--device", "cpu", *options])
    return end.value.code or 0


@pytest.fixture(autouse=True)
def _one_picture_for_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samdiffsr.cli.doctor, "SPEED_SECONDS", 0)
    monkeypatch.setattr(samdiffsr.cli.doctor, "SPEED_SIDE", 16)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded model that takes its place."""
    copy = shutil.copytree(DEFAULT_MODEL, tmp_path / "default")
    monkeypatch.setattr(samdiffsr.models.weights, "DEFAULT_MODEL", copy)
    return copy


def test_all_is_well_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == [] and found["self_test"]["difference"] <= 0.5
    assert found["versions"]["python"] == sys.version.split()[0] and found["machine"]["cores"] >= 1
    assert 1 <= found["machine"]["usable cores"] <= found["machine"]["cores"]
    assert found["machine"]["memory"].endswith(" GiB free")
    assert found["speed"]["auto precision"] in ("float32", "bfloat16") and found["speed"]["engine"].startswith("torch")
    assert found["speed"]["megapixels a second"] > 0
    assert doctor() == 0
    assert capsys.readouterr().out.endswith("All is well.\n")


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_model_is_noticed(model: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    file = model / "encoder" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink() if damage == "missing" else file.write_bytes(content)
    assert doctor() == 1
    err = capsys.readouterr().err
    assert str(file) in err and "install samdiffsr again" in err


def test_every_file_of_the_model_is_sealed() -> None:
    sealed = {line.split(maxsplit=1)[1] for line in (DEFAULT_MODEL / "SHA256SUMS").read_text().splitlines()}
    files = {str(file.relative_to(DEFAULT_MODEL)) for file in DEFAULT_MODEL.rglob("*") if file.is_file()}
    assert files - sealed == {"README.md", "SHA256SUMS", "selftest.png"} and sealed <= files, "run python runs/seal.py"


def test_wrong_pixels_are_noticed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(EXAMPLES / "cat.png", model / "selftest.png")
    from PIL import Image

    with Image.open(model / "selftest.png") as image:
        image.resize((96, 96)).save(model / "selftest.png")
    assert doctor() == 1 and "self-test differs by" in capsys.readouterr().err


def test_a_device_that_fails_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error:\n an illegal instruction")

    monkeypatch.setattr("samdiffsr.upscale.enlarge.enlarge", broken)
    assert doctor() == 1
    assert "Error: the self-test failed: CUDA error: an illegal instruction.\n" in capsys.readouterr().err
