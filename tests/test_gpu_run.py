"""`runs/gpu` on a CPU: a pack gives a prepared folder's examples, a run in chunks and pieces is the run in one go."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from samdiffsr import SamDiffSRError, SamDiffSRPipeline, imresize
from samdiffsr.data.dataset import PreparedPhotos
from samdiffsr.data.prepare import prepare_folder
from samdiffsr.training.config import DataConfig
from test_data import write_masks

sys.path.insert(0, str(Path(__file__).parents[1] / "runs/gpu"))

import pack
import photos
import pieces
import train


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Four small photographs, one of them a JPEG, prepared in `data` and packed in at least two parts."""
    root = tmp_path_factory.mktemp("gpu")
    (root / "hr").mkdir()
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    for stem, (height, width) in {"a": (50, 41), "b.c": (48, 64), "d": (65, 40), "e": (40, 40)}.items():
        pixels = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        pixels.save(root / f"hr/{stem}.{'jpg' if stem == 'd' else 'png'}")
        masks = rng.random((3, height, width)) < 0.5  # with gaps and overlaps
        write_masks(root / f"masks/{stem}.json", masks)
    prepare_folder(root / "hr", root / "masks", root / "data")
    pack.main(
        ["--photos", f"{root / 'hr'}", "--masks", f"{root / 'masks'}", "-o", f"{root / 'pack'}", "--megabytes", "0.04"]
    )
    assert all(part.stat().st_size < 4e4 for part in (root / "pack").iterdir())
    return root


def parts(root):
    found = sorted((root / "pack").glob("part-*.tar"))
    assert len(found) > 1
    return found


@pytest.mark.parametrize(
    "data", [{"crop_lr": 10, "candidates": 3, "crops_per_image": 2}, {"crop_lr": 11, "candidates": 1, "flips": False}]
)
def test_a_pack_gives_the_examples_of_a_prepared_folder(packed, data):
    """Bit for bit, with the LR images made from the pixels; crops touch the borders, one photograph is too small for 11."""
    config = DataConfig(**data)
    ready = photos.PackedPhotos(photos.load_pack(parts(packed), torch.device("cpu")), config)
    options = {key: getattr(config, key) for key in ("crop_lr", "candidates", "flips", "crops_per_image")}
    wanted = PreparedPhotos(packed / "data", **options)
    a, b = wanted.batch(3, 7, 64), ready.batch(3, 7, 64)
    for name in ("hr", "lr", "structure"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert [wanted.stem(3, index) for index in range(9)] == [ready.stem(3, index) for index in range(9)]
    assert a.structure.unique().numel() > 4


def test_the_reduction_on_a_device_rounds_as_imresize_does():
    hr = np.random.default_rng(1).integers(0, 2, (64, 96, 3)).astype(np.uint8) * 255  # it overshoots on both sides
    assert np.array_equal(photos.reduced(torch.from_numpy(hr)).numpy(), imresize(hr, 0.25))


OPTIONS = (
    "diffusion.rollout=0.5",
    "diffusion.last_step_share=0.5",
    "diffusion.loss.adversarial_weight=0.1",
    "diffusion.loss.adversarial_start=2",
    "diffusion.loss.discriminator_width=4",
)


def call(root, output, *more, found=None):
    command = ["--preset", "tiny", "--output", str(output), *more]
    command += [word for option in OPTIONS for word in ("--set", option)]
    train.main([*command, "--pack", *map(str, found or parts(root))])


def carry(source, target):
    """The pieces alone, to a fresh folder."""
    target.mkdir()
    (source / "pieces").rename(target / "pieces")


def weights(folder):
    return {file.parent.name: load_file(file) for file in sorted(folder.rglob("*.safetensors"))}


def test_a_run_in_chunks_and_pieces_is_the_run_in_one_go(packed, tmp_path, monkeypatch, capsys):
    """Stopped within each stage; each time only the pieces go on, to a fresh folder."""
    monkeypatch.setattr(pieces, "BYTES", 50_000)
    call(packed, tmp_path / "whole")
    assert "diffusion: update 4 of 4" in (told := capsys.readouterr().out) and "finished" in told
    folder = tmp_path / "whole"
    for number, (updates, reached) in enumerate(
        [(3, "encoder: update 3 of 4"), (3, "diffusion: update 2 of 4"), (9, "update 4 of 4")]
    ):
        fresh = tmp_path / f"chunk{number}"
        if number:
            carry(folder, fresh)
        folder = fresh
        call(packed, folder, "--updates", str(updates))
        told = capsys.readouterr().out
        assert reached in told and ("put together" in told) == (number > 0)
        assert ("finished" in told) == (number == 2)
        found = list((folder / "pieces").glob("*.bin"))
        assert len(found) > 1 and all(piece.stat().st_size <= 50_000 for piece in found)
    a, b = weights(tmp_path / "whole/model"), weights(folder / "model")
    assert a.keys() == {"encoder", "denoiser"}
    assert all(torch.equal(a[part][key], b[part][key]) for part in a for key in a[part])
    assert len((folder / "diffusion/metrics.jsonl").read_text().splitlines()) == 4
    carry(folder, tmp_path / "product")
    call(packed, tmp_path / "product", found=["none"])  # what came back from the finished run is a finished run
    assert "nothing was trained" in capsys.readouterr().out
    pipe = SamDiffSRPipeline.from_pretrained(tmp_path / "product/model")
    assert pipe(np.zeros((3, 5, 3), np.uint8)).images[0].size == (20, 12)


def test_a_call_ends_at_its_time_and_compiled_networks_keep_their_names(packed, tmp_path, capsys):
    call(packed, tmp_path / "run", "--minutes", "0", "--compile", "eager")
    assert "encoder: update 1 of 4" in capsys.readouterr().out
    call(packed, tmp_path / "run", "--updates", "4", "--compile", "eager")
    assert "diffusion: update 1 of 4" in capsys.readouterr().out


def test_what_did_not_arrive_is_named(packed, tmp_path):
    call(packed, tmp_path / "run", "--updates", "1")
    carry(tmp_path / "run", tmp_path / "fresh")
    piece = next((tmp_path / "fresh/pieces").glob("*.bin"))
    piece.write_bytes(piece.read_bytes()[:-1])
    with pytest.raises(SamDiffSRError, match=r"00\.bin is missing or damaged"):
        call(packed, tmp_path / "fresh")
    assert not (tmp_path / "fresh/encoder").exists()
    broken = tmp_path / "part.tar"
    broken.write_bytes(parts(packed)[0].read_bytes()[:1000])
    with pytest.raises(SamDiffSRError, match=r"part\.tar cannot be read"):
        call(packed, tmp_path / "other", found=[broken])
