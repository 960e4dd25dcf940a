"""A light encoder learns on from LKDN's answers to photographs at other sizes:

    python runs/sizes.py DATA PHOTOS LKDN_WEIGHTS ENCODER OUTPUT [--updates 18000]

A teacher needs no original, so PHOTOS reduced to a half and a third serve too: six times as many LR pixels as the quarter alone
has, of which the encoder learned too much by heart (docs/log.md). DATA: a folder prepared with LKDN's pictures as the targets
"lkdn"; its crops, of which 0.4 are degraded, are two of the five of each update. OUTPUT becomes an encoder, the average of the
weights; an interrupted run goes on from OUTPUT.pt. The encoder computes in bfloat16, which the processor should have.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from teachers import Teacher
from torch import Tensor

from samdiffsr import LightEncoder, imresize
from samdiffsr.data.dataset import Batch, CropDraws, PreparedPhotos, choose_crop
from samdiffsr.files import whole_file
from samdiffsr.images import list_images, read_image
from samdiffsr.training.config import OptimConfig
from samdiffsr.training.state import OPTIMIZERS, schedule_factor

REDUCTIONS = (2, 3)
CROP_LR, PREPARED, FURTHER = 48, 2, 3  # crops of an update that come from DATA, and from the photographs at other sizes
CLEAN_SHARE = 0.6  # of the crops of DATA
ORIGINAL = 0.15  # how much the original counts beside the teacher's answer, where there is one
SEED, DECAY, CLIP = 11, 0.999, 1.0
REPORT_EVERY, SAVE_EVERY = 100, 500


def reduced(photo: Path) -> list[np.ndarray]:
    """uint8 (h, w, 3) at each of `REDUCTIONS`, but for those that are too small for a crop."""
    whole = read_image(photo).rgb
    found = []
    for factor in REDUCTIONS:
        height, width = (side // factor * factor for side in whole.shape[:2])
        found.append(imresize(whole[:height, :width], 1 / factor))
    return [image for image in found if min(image.shape[:2]) >= CROP_LR]


class Further:
    """Crops of the photographs at other sizes: a function of (seed, update)."""

    def __init__(self, folder: Path) -> None:
        photos = list_images(folder)
        with ProcessPoolExecutor() as pool:
            self.images = [image for found in pool.map(reduced, photos, chunksize=8) for image in found]
        sizes = np.array([image.shape[:2] for image in self.images])
        self._draws = CropDraws(sizes, f"folder {folder}", crop_lr=CROP_LR, candidates=2, crops_per_image=1)

    def crops(self, update: int) -> Tensor:
        """(FURTHER, 3, CROP_LR, CROP_LR) in [-1, 1]."""
        place = (SEED, update * FURTHER, FURTHER)
        found = []
        for number, words in zip(self._draws.images(*place), self._draws.words(*place), strict=True):
            image = self.images[number]
            crop, _ = choose_crop((image, image, image), words, crop_lr=CROP_LR, flips=True)
            found.append(torch.from_numpy(np.ascontiguousarray(crop.apply(image, 1).transpose(2, 0, 1))))
        return torch.stack(found) / 127.5 - 1


def crops_of(photos: PreparedPhotos, further: Further, update: int, updates: int) -> Iterator[tuple[Batch, Tensor]]:
    """What each update learns from, made while the one before it is learned from."""
    with ThreadPoolExecutor(1) as thread:

        def ask(number: int) -> Any:
            return thread.submit(lambda: (photos.batch(SEED, number * PREPARED, PREPARED), further.crops(number)))

        following = ask(update)
        for number in range(update, updates):
            given, following = following, ask(number + 1)
            yield given.result()


def loss_of(encoder: Any, teacher: Teacher, batch: Batch, further: Tensor) -> Tensor:
    """L1 to the teacher's answer and, less, to the original where there is one."""
    with torch.no_grad():
        answers = teacher((further + 1) / 2).clamp(0, 1) * 2 - 1
    lr, level = torch.cat([batch.lr, further]), torch.cat([batch.level, torch.zeros(len(further))])
    with torch.autocast("cpu", torch.bfloat16):
        estimate = encoder(lr.contiguous(memory_format=torch.channels_last), level).float()
    known, new = estimate.split([PREPARED, FURTHER])
    taught = (1 - ORIGINAL) * (known - batch.targets["lkdn"]).abs() + ORIGINAL * (known - batch.hr).abs()
    return (taught.mean() * PREPARED + (new - answers).abs().mean() * FURTHER) / (PREPARED + FURTHER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "photos", "weights", "encoder", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--updates", type=int, default=18000)
    parser.add_argument("--rate", type=float, default=8e-4)
    given = parser.parse_args()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    photos = PreparedPhotos(
        given.data, crop_lr=CROP_LR, candidates=2, flips=True, degrade="real", clean_share=CLEAN_SHARE, targets=["lkdn"]
    )
    further, teacher = Further(given.photos), Teacher("lkdn", given.weights)
    encoder: Any = LightEncoder.from_pretrained(given.encoder).to(memory_format=torch.channels_last)
    encoder.level_head.requires_grad_(False)  # learns by itself: runs/level_head.py
    learning = torch.nn.ModuleDict({name: part for name, part in encoder.named_children() if name != "level_head"})
    optim = OptimConfig(optimizer="muon", updates=given.updates, learning_rate=given.rate, warmup=50, beta2=0.99)
    optimizer, parameters = OPTIMIZERS["muon"]({"encoder": learning}, {"encoder": 1.0}, optim), [*learning.parameters()]
    ema = EMAModel(parameters, decay=DECAY, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    update, state, losses = 0, given.output.with_suffix(".pt"), []
    if state.exists():
        found = torch.load(state, weights_only=True)
        encoder.load_state_dict(found["encoder"])
        optimizer.load_state_dict(found["optimizer"])
        ema.load_state_dict(found["ema"])
        update = found["update"]
    for batch, crops in crops_of(photos, further, update, given.updates):
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * schedule_factor(update, optim)
        loss = loss_of(encoder, teacher, batch, crops)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        ema.step(parameters)
        update += 1
        losses.append(loss.item())
        if update % REPORT_EVERY == 0:
            print(update, f"{sum(losses) / len(losses):.5f}", flush=True)
            losses.clear()
        if update % SAVE_EVERY == 0 or update == given.updates:
            content = {"encoder": encoder.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
            with whole_file(state) as file:
                torch.save(content | {"update": update}, file)
            ema.store(parameters)
            ema.copy_to(parameters)
            encoder.save_pretrained(given.output)
            ema.restore(parameters)


if __name__ == "__main__":
    main()
