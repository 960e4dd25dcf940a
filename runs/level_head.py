"""The estimate of the level learns on by itself, from larger crops than the encoder can afford:

    python runs/level_head.py DATA ENCODER [--updates 8000]

DATA: a prepared folder. ENCODER: the folder of a trained encoder that takes the level; its head is replaced, nothing else.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from samdiffsr import LightEncoder
from samdiffsr.data.dataset import PreparedPhotos
from samdiffsr.models.level import LevelHead
from samdiffsr.training.config import OptimConfig
from samdiffsr.training.state import schedule_factor

BATCH, CROP_LR, RATE, WARMUP, SEED = 16, 64, 2e-3, 100, 21
EXAMPLES = 12_800  # degraded once and kept: making one takes longer than learning from it
CLEAN_SHARE = 0.4
OVER = 2.0  # weight of an error upwards: taking a clean picture for a degraded one costs more than the reverse
REPORT_EVERY = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "encoder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--updates", type=int, default=8000)
    given = parser.parse_args()
    encoder: Any = LightEncoder.from_pretrained(given.encoder)
    if not encoder.takes_level:
        parser.error(f"{given.encoder} does not take the level: train it with encoder.network.level=true")
    photos = PreparedPhotos(
        given.data, crop_lr=CROP_LR, candidates=1, flips=True, degrade="real", clean_share=CLEAN_SHARE
    )
    lr, level = torch.empty(EXAMPLES, 3, CROP_LR, CROP_LR, dtype=torch.uint8), torch.empty(EXAMPLES)
    for first in range(0, EXAMPLES, BATCH):
        batch, here = photos.batch(SEED, first, BATCH), slice(first, first + BATCH)
        lr[here], level[here] = ((batch.lr + 1) * 127.5).round().byte(), batch.level
    drawn = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    head = LevelHead()
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = OptimConfig(updates=given.updates, learning_rate=RATE, warmup=WARMUP)
    losses = []
    for update in range(given.updates):
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule_factor(update, schedule)
        chosen = torch.randint(EXAMPLES, (BATCH,), generator=drawn)
        seen = lr[chosen] / 127.5 - 1
        seen = seen.flip(3) if update % 2 else seen
        error = head(seen.transpose(2, 3) if update % 4 > 1 else seen) - level[chosen].sqrt()
        loss = (error.square() * torch.where(error > 0, OVER, 1.0)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) == REPORT_EVERY:
            print(update + 1, f"{sum(losses) / len(losses):.5f}", flush=True)
            losses.clear()
    encoder.level_head.load_state_dict(head.state_dict())
    encoder.save_pretrained(given.encoder)


if __name__ == "__main__":
    main()
