"""Scores and pictures while training goes on."""

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr import SamDiffSRError, SamDiffSRPipeline, imresize
from samdiffsr.training.run import train_diffusion, train_encoder
from samdiffsr.training.validation import centre
from support import lines, quiet, same, tiny, weights


def test_validation_scores_draws_and_keeps_the_best(photos, tmp_path, validation_folder):
    """Scores are those of the saved averaged weights; the best folder is of the update whose score is highest."""
    options = [
        f"validation.{key}" for key in (f"photos={validation_folder}", "every=2", "images=2", "side=48", "panel=1")
    ]
    options += ["tensorboard=true", "diffusion.optim.updates=6", "diffusion.optim.learning_rate=0.01"]
    config = tiny(photos, tmp_path / "run", *options)
    seen = {}

    def copy(update, record):  # the model of update n stands until the checkpoint of update n + 2
        if update in (3, 5):
            seen[update - 1] = weights(tmp_path / "run/model")

    train_encoder(config, resume=False, on_update=quiet)
    seen[6] = weights(train_diffusion(config, resume=False, on_update=copy))
    records = lines(tmp_path / "run/diffusion/validation.jsonl")
    assert [record["update"] for record in records] == [2, 4, 6]
    best = max(records, key=lambda record: record["psnr_y"])["update"]
    assert same(weights(tmp_path / "run/best"), seen[best])
    pipe = SamDiffSRPipeline.from_pretrained(tmp_path / "run/model")
    values, panel = [], None
    for number in range(2):
        hr = centre(np.asarray(Image.open(validation_folder / f"{number}.png")), 48)
        lr = imresize(hr, 1 / 4)
        sr = np.asarray(pipe(lr, generator=torch.Generator().manual_seed(0)).images[0])
        y = [16 + image.astype(float) @ [65.481, 128.553, 24.966] / 255 for image in (sr, hr)]
        inside = (slice(4, -4), slice(4, -4))
        values.append(10 * np.log10(255**2 / ((y[0] - y[1])[inside] ** 2).mean()))
        panel = np.hstack([lr.repeat(4, 0).repeat(4, 1), sr, hr]) if panel is None else panel
    assert records[-1]["psnr_y"] == pytest.approx(np.mean(values))
    assert 0 < records[-1]["ssim_y"] < 1
    assert np.array_equal(np.asarray(Image.open(tmp_path / "run/diffusion/panels/00000006.png")), panel)
    written = b"".join(file.read_bytes() for file in (tmp_path / "run/diffusion/tensorboard").iterdir())
    for tag in (b"metrics/pixel", b"validation/psnr_y", b"validation/lr | ours | hr"):
        assert tag in written
    assert (tmp_path / "run/encoder/best/config.json").exists()


def test_validation_changes_nothing(photos, tmp_path, validation_folder):
    for name, options in (("without", ()), ("with", (f"validation.photos={validation_folder}", "validation.every=1"))):
        train_encoder(tiny(photos, tmp_path / name, *options), resume=False, on_update=quiet)
    assert same(*(weights(tmp_path / name / "encoder/weights") for name in ("without", "with")))


def test_validation_folders_that_cannot_be_used(photos, tmp_path):
    config = tiny(photos, tmp_path / "run", f"validation.photos={tmp_path}")
    (tmp_path / "._notes.png").write_bytes(b"what macOS leaves beside a picture")
    with pytest.raises(SamDiffSRError, match="no image in the folder"):
        train_encoder(config, resume=False, on_update=quiet)
    Image.new("RGB", (64, 31)).save(tmp_path / "small.png")
    with pytest.raises(SamDiffSRError, match=r"small\.png.*32x32"):
        train_encoder(config, resume=False, on_update=quiet)


def test_centre():
    image = np.arange(11 * 14 * 3, dtype=np.uint8).reshape(11, 14, 3)
    assert np.array_equal(centre(image, 8), image[1:9, 3:11])
    assert centre(image, 99).shape == (8, 12, 3)
