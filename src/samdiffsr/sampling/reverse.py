"""The reverse process: from noise to x_0, given the features of the LR images and an estimate of the structure map.

It works on the plain state y_t = x_t - s_t E, an unmodulated diffusion for every shift, which any stock scheduler samples. Only
the network is shown x_t, as in training. docs/derivation.md has the proof.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samdiffsr.diffusion.process import ModulatedProcess
from samdiffsr.sampling.noise_blocks import NoiseBlocks
from samdiffsr.sampling.schedulers import explained
from samdiffsr.sampling.tiled import TiledModel
from samdiffsr.sampling.tiles import Canvas, Window

OnStep = Callable[[int, Tensor, Canvas], None]


def reverse_process(
    model: TiledModel,
    denoiser: Any,
    process: ModulatedProcess,
    scheduler: Any,
    structure: Canvas | None,
    generators: Sequence[torch.Generator],
    structure_input: bool = False,
    on_step: OnStep = lambda number, timestep, y: None,
) -> Canvas:
    """Sample x_0, HR sized, in the scheduler's steps.

    Args:
        model: has encoded the images; runs the denoiser tile by tile.
        denoiser: (x_t, t, None, condition) -> what `process.target` says.
        process: what the denoiser was trained on.
        scheduler: a stock one, after `set_timesteps`.
        structure: E^, or None for E^ = 0.
        generators: of all noise, one for each image.
        structure_input: give the denoiser E^ itself too, as its argument `structure`.
        on_step: called after each step with its number, its time step and the state, which it may change.
    """
    y = model.canvas()
    with explained(scheduler):
        blocks = NoiseBlocks(scheduler, generators, canvas=model.canvas, state=y)

    def predict(timestep: Tensor, window: Window, condition: Tensor) -> Tensor:
        t = torch.full((model.count,), int(timestep), device=model.device)
        estimate = None if structure is None else structure.read(window)
        x_t = process.modulate(blocks.scale_input(y.read(window), timestep), t, estimate)  # x_t = y_t + s_t E^
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        with model.networks():
            prediction = denoiser(x_t, t, None, condition, **({"structure": estimate} if structure_input else {}))
        prediction = prediction.to(x_t.dtype)
        return process.to_plain(x_t, prediction, t, estimate)

    blocks.draw(model.dtype, model.device)  # y_T ~ N(0, I)
    for number, timestep in enumerate(scheduler.timesteps):
        prediction = model.denoise(partial(predict, timestep))  # x_0 or eps, at y_t
        blocks.step(prediction, timestep)  # y_t -> y_{t-1}
        on_step(number, timestep, y)
    return y  # y_0 = x_0, for s_0 = 0
