"""A light encoder learns block by block from IMDN+, before it learns as a whole:

    python runs/blocks.py DATA IMDN_PLUS_WEIGHTS OUTPUT [--updates 4000]

DATA: a prepared folder. OUTPUT becomes an encoder for `samdiffsr train --set encoder.start=OUTPUT`; an interrupted run goes on
from OUTPUT.pt. Block i is given the teacher's features after its block i - 1 in the first 36 of its 64 channels, beside what
`conv_in` makes of the picture in the others, and learns what the teacher's block i changes; all blocks and both ends at once.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_optimizer import Muon
from teachers import Teacher
from torch import Tensor

from samdiffsr import LightEncoder
from samdiffsr.data.dataset import PreparedPhotos
from samdiffsr.files import whole_file
from samdiffsr.resize import SCALE, imresize_tensor
from samdiffsr.training.config import OptimConfig
from samdiffsr.training.state import schedule_factor

NETWORK = {"width": 64, "blocks": 8, "convs": 4, "activation": "silu"}
BATCH, CROP_LR, RATE, WARMUP, SEED = 8, 32, 1.5e-3, 100, 1
REPORT_EVERY, SAVE_EVERY = 100, 500


def losses(encoder: Any, teacher: Teacher, lr: Tensor) -> list[Tensor]:
    """L1 of `conv_in`, of each block, of `conv_out` and of the head, each divided by the mean size of what it must learn."""
    with torch.no_grad():
        *joints, features, picture = (joint.float() for joint in teacher.joints((lr + 1) / 2))
    taught = features.shape[1]
    first = encoder.conv_in(lr)
    free = first[:, taught:].detach()

    def error(found: Tensor, wanted: Tensor) -> Tensor:
        return (found.float() - wanted).abs().mean() / wanted.abs().mean()

    def given(joint: Tensor) -> Tensor:
        return torch.cat([joint.to(free.dtype), free], 1)

    found = [error(first[:, :taught], joints[0])]
    for block, before, after in zip(encoder.trunk, joints[:-1], joints[1:], strict=True):
        x = given(before)
        found.append(error((block(x) - x)[:, :taught], after - before))
    found.append(error(encoder.conv_out(given(joints[-1]))[:, :taught], features - joints[0]))
    detail = F.pixel_shuffle(encoder.head(given(features)), SCALE)
    return [*found, error(detail, 2 * picture - 1 - imresize_tensor(lr, SCALE))]


def new_optimizer(encoder: Any) -> torch.optim.Optimizer:
    """Muon for the convolutions of the blocks, AdamW for the ends and all biases."""
    hidden = [weight for name, weight in encoder.trunk.named_parameters() if name.endswith("weight")]
    chosen = {id(weight) for weight in hidden}
    rest = [parameter for parameter in encoder.parameters() if id(parameter) not in chosen]
    groups = [
        {"params": hidden, "use_muon": True, "use_adjusted_lr": True, "weight_decay": 0.0},
        {"params": rest, "use_muon": False, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0},
    ]
    return Muon(groups, lr=RATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "weights", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--updates", type=int, default=4000)
    given = parser.parse_args()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    photos = PreparedPhotos(given.data, crop_lr=CROP_LR, candidates=2, flips=True)
    teacher = Teacher("imdn_plus", given.weights, torch.bfloat16)
    encoder: Any = LightEncoder(**NETWORK).to(memory_format=torch.channels_last)
    optimizer, update, state = new_optimizer(encoder), 0, given.output.with_suffix(".pt")
    if state.exists():
        found = torch.load(state, weights_only=True)
        encoder.load_state_dict(found["encoder"])
        optimizer.load_state_dict(found["optimizer"])
        update = found["update"]
    schedule = OptimConfig(updates=given.updates, learning_rate=RATE, warmup=WARMUP)
    while update < given.updates:
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule_factor(update, schedule)
        lr = photos.batch(SEED, update * BATCH, BATCH).lr.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            terms = torch.stack(losses(encoder, teacher, lr))
        optimizer.zero_grad()
        terms.sum().backward()
        optimizer.step()
        update += 1
        if update % REPORT_EVERY == 0:
            print(update, " ".join(f"{term:.3f}" for term in terms.tolist()), flush=True)
        if update % SAVE_EVERY == 0 or update == given.updates:
            content = {"encoder": encoder.state_dict(), "optimizer": optimizer.state_dict(), "update": update}
            with whole_file(state) as file:
                torch.save(content, file)
    encoder.save_pretrained(given.output)


if __name__ == "__main__":
    main()
