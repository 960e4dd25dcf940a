"""The reverse process in fixed blocks: each has its own noise and its own copy of the scheduler, whatever the tile.

A stock diffusers scheduler draws noise for, and remembers, the array it is given. Given always the same blocks it computes
the same numbers, be the denoiser run on the whole image or tile by tile. Up to one block, that is plain diffusers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from samdiffsr.sampling.schedulers import Place, explained, remembered, takes_generator, twin
from samdiffsr.sampling.tiles import Canvas, Window

BLOCK_HR = 512  # part of what a seed means: another value gives other noise to images beyond it


class NoiseBlocks:
    """The plain state y_t of images of one size, drawn and advanced by the scheduler block by block.

    Args:
        scheduler: after `set_timesteps`. It is used itself for an image of one block, else copied and left as it is.
        generators: one for each image. It draws all noise of an image of one block; else only the seed from which those of
            the blocks follow.
        canvas: makes an empty canvas of the state's size for a given dtype. Canvases in files take the multistep
            memory of the schedulers too.
        state: y_t, any canvas of that size.
    """

    def __init__(
        self,
        scheduler: Any,
        generators: Sequence[torch.Generator],
        *,
        canvas: Callable[[torch.dtype], Canvas],
        state: Canvas,
    ) -> None:
        self._windows = list(_fixed(state.window))
        self._schedulers, self._generators = [scheduler], [list(generators)]
        if len(self._windows) > 1:
            self._schedulers = [twin(scheduler) for _ in self._windows]
            seeds = [int(torch.randint(2**62, (), generator=one, device=one.device)) for one in generators]
            of_images = list(zip(generators, seeds, strict=True))
            self._generators = [[_derived(*one, window) for one in of_images] for window in self._windows]
        self._canvas, self._state = canvas, state
        self._memory: list[Canvas] = []
        self._away: list[list[Place]] = [[] for _ in self._windows]
        self._takes_generator = takes_generator(scheduler)

    def draw(self, dtype: torch.dtype, device: torch.device) -> None:
        """Fill the state with y_T from N(0, I), in the scheduler's scale."""
        for window, scheduler, generators in zip(self._windows, self._schedulers, self._generators, strict=True):
            shape = (len(generators), 3, *window.shape)
            noise = randn_tensor(shape, generator=generators, device=device, dtype=dtype)
            self._state.write(window, noise * scheduler.init_noise_sigma)

    def scale_input(self, batch: Tensor, timestep: Tensor) -> Tensor:
        """A piece of the state as sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps; the same for all blocks, which are at one step."""
        with explained(self._schedulers[0]):
            return self._schedulers[0].scale_model_input(batch, timestep)

    def step(self, prediction: Canvas, timestep: Tensor) -> None:
        """y_t becomes y_{t-1}, given the prediction for all of y_t."""
        for number, (window, scheduler) in enumerate(zip(self._windows, self._schedulers, strict=True)):
            self._bring(number, scheduler)
            y_t, given = self._state.read(window), prediction.read(window)
            generators = self._generators[number]
            of_all = generators[0] if len(generators) == 1 else generators
            options = {"generator": of_all} if self._takes_generator else {}
            with explained(scheduler):
                scheduler.scale_model_input(y_t, timestep)  # some schedulers insist on having been asked
                y_before = scheduler.step(given, timestep, y_t, **options, return_dict=False)[0]
            self._state.write(window, y_before)
            if self._state.in_file:
                self._put_away(number, scheduler)

    def _put_away(self, number: int, scheduler: Any) -> None:
        """Move the pieces of picture that a multistep scheduler remembers to files."""
        places = list(remembered(scheduler))
        for slot, (name, index) in enumerate(places):
            owner, key = (vars(scheduler), name) if index is None else (getattr(scheduler, name), index)
            if slot == len(self._memory):
                self._memory.append(self._canvas(owner[key].dtype))
            self._memory[slot].write(self._windows[number], owner[key])
            owner[key] = None
        self._away[number] = places

    def _bring(self, number: int, scheduler: Any) -> None:
        """Undo `_put_away`."""
        for slot, (name, index) in enumerate(self._away[number]):
            owner, key = (vars(scheduler), name) if index is None else (getattr(scheduler, name), index)
            owner[key] = self._memory[slot].read(self._windows[number])


def _fixed(whole: Window) -> Iterator[Window]:
    """The blocks of an image: squares of `BLOCK_HR`, smaller at the right and the bottom."""
    for top in range(0, whole.bottom, BLOCK_HR):
        for left in range(0, whole.right, BLOCK_HR):
            yield Window(top, min(top + BLOCK_HR, whole.bottom), left, min(left + BLOCK_HR, whole.right))


def _derived(generator: torch.Generator, seed: int, window: Window) -> torch.Generator:
    """The generator of one block: a function of the seed and the block's place."""
    words = np.random.SeedSequence([seed, window.top, window.left]).generate_state(1, np.uint64)
    return torch.Generator(generator.device).manual_seed(int(words[0] >> np.uint64(1)))
