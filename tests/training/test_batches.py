"""The examples of an update depend on (seed, update) alone."""

import numpy as np
import pytest
import torch

from samdiffsr import SamDiffSRError
from samdiffsr.data.dataset import PreparedPhotos
from samdiffsr.training.batches import Batches
from samdiffsr.training.config import DataConfig
from samdiffsr.training.run import (
    diffusion_objective,
    encoder_objective,
)
from support import tiny

CPU = torch.device("cpu")


def batches(folder, draws, data: DataConfig, **options) -> Batches:
    source = PreparedPhotos(folder, crop_lr=data.crop_lr, candidates=data.candidates, flips=data.flips)
    return Batches(source, draws, data, 3, CPU, **options)


def joined(micro_batches) -> list[torch.Tensor]:
    """Everything that the examples of an update are made of, its micro-batches laid end to end."""
    rows = [
        [batch.hr, batch.lr, batch.structure, draws["t"], torch.tensor(draws["noise"]), torch.tensor(draws["phase"])]
        for batch, draws in micro_batches
    ]
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def test_examples_depend_on_neither_processes_nor_micro_batches_nor_threads(photos, tmp_path):
    draws = diffusion_objective(tiny(photos, tmp_path), encoder_objective(tiny(photos, tmp_path)).network).draws
    one = [
        joined(found) for found, _ in batches(photos, draws, DataConfig(crop_lr=4, batch=8, workers=0)).updates(2, 5)
    ]
    assert not torch.equal(one[0][0], one[1][0])
    for processes, accumulate, workers in ((1, 4, 3), (2, 2, 1), (4, 1, 0)):
        data = DataConfig(crop_lr=4, batch=8, accumulate=accumulate, workers=workers)
        shares = [
            batches(photos, draws, data, process=rank, processes=processes).updates(2, 5) for rank in range(processes)
        ]
        for whole, found in zip(one, zip(*shares, strict=True), strict=True):
            again = joined([micro_batch for micro_batches, _ in found for micro_batch in micro_batches])
            assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    with pytest.raises(SamDiffSRError, match=r"data\.batch is 8.*3 processes"):
        batches(photos, draws, DataConfig(crop_lr=4, batch=8), processes=3)


def test_an_error_in_a_thread_is_raised(photos):
    def draws(*_):
        raise SamDiffSRError("here")

    with pytest.raises(SamDiffSRError, match="here"):
        next(batches(photos, draws, DataConfig(crop_lr=4, batch=1)).updates(0, 9))


def test_crops_per_image(photos):
    options = {"crop_lr": 4, "candidates": 1, "flips": True}
    source = PreparedPhotos(photos, **options, crops_per_image=3)
    stems = [source.stem(0, index) for index in range(60)]
    assert all(len(set(stems[first : first + 3])) == 1 for first in range(0, 60, 3))
    assert set(stems) == {"a", "b"}
    crops = [source.crop(0, index)[0] for index in range(3)]
    assert not np.array_equal(crops[0], crops[1])
    plain = PreparedPhotos(photos, **options)
    assert len({plain.stem(0, index) for index in range(3, 6)}) == 2
