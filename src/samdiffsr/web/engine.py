"""One device with its models: from the bytes of a picture file to those that `samdiffsr upscale` would write."""

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from samdiffsr.errors import ConfigError, ImageError, TooLargeError
from samdiffsr.images import ALPHA, Metadata, Picture, check_target, encode_image, image_size, read_image
from samdiffsr.images.animation import MOVING
from samdiffsr.images.formats import XMP
from samdiffsr.load import load_model
from samdiffsr.resize import SCALE
from samdiffsr.upscale.enlarge import check_size, enlarge, with_settings
from samdiffsr.upscale.plan import result_name
from samdiffsr.upscale.settings import FileSettings, Settings
from samdiffsr.upscale.size import passes

if TYPE_CHECKING:
    from samdiffsr.pipeline import SamDiffSRPipeline

MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".bmp": "image/bmp",
    ".avif": "image/avif",
    ".jxl": "image/jxl",
}

# `read_image` collects Python's warnings, which are global: two at once would mix theirs up.
_reading = threading.Lock()


class StoppedError(Exception):
    """The work was given up on request."""


@dataclass(frozen=True)
class Wanted:
    """The request of a client."""

    settings: Settings
    files: FileSettings
    model: str


@dataclass(frozen=True)
class Result:
    """A larger picture as a file.

    Attributes:
        content: the bytes that `samdiffsr upscale` would write.
        name: the file's, from the client's name.
        level: of degradation that it was made with, given or estimated; None for a model without it.
        warnings: what reading, enlarging or writing changed.
        seconds: of each stage, in milliseconds' precision: read, enlarge, write.
    """

    content: memoryview
    name: str
    width: int
    height: int
    level: float | None
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def media_type(self) -> str:
        """For the header Content-Type."""
        return MEDIA_TYPES[os.path.splitext(self.name)[1].lower()]


def check_header(name: str, content: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height by the header, before anything is decoded.

    Raises:
        ImageError: no image (UnknownFormatError), or more pixels than the server takes (TooLargeError).
    """
    with _reading:
        width, height = image_size(name, content=content, max_pixels=2**62)
    if width * height > max_pixels:
        size = f"{width}x{height} = {width * height} pixels"
        raise TooLargeError(f"'{name}' has {size}, above this server's limit of {max_pixels}; send a smaller picture.")
    return width, height


class Engine:
    """A device and the models on it. One picture at a time: a pipeline's scheduler has a state.

    Args:
        pipes: pipelines by the name that clients use.
    """

    def __init__(self, pipes: Mapping[str, "SamDiffSRPipeline"]) -> None:
        self.pipes = dict(pipes)
        self.device = str(next(iter(self.pipes.values())).device)
        self._stop = threading.Event()
        self._seconds_per_pixel: float | None = None
        for pipe in self.pipes.values():
            for network in (pipe.encoder, pipe.denoiser):
                for module in network.modules():  # a step of a large picture takes minutes, a layer less than a second
                    module.register_forward_pre_hook(self._refuse_if_stopped)

    def stop(self) -> None:
        """Let the picture at hand end in a StoppedError soon."""
        self._stop.set()

    def seconds(self, width: int, height: int, wanted: Wanted) -> float | None:
        """The time that a picture will take, reckoned from those before; None before the first."""
        if self._seconds_per_pixel is None:
            return None
        return self._seconds_per_pixel * self._pixels(width, height, wanted)

    def warm_up(self) -> None:
        """Run every model once on a small picture: a first run is slower, and the time left can then be estimated."""
        import numpy as np

        picture = Picture(np.zeros((48, 48, 3), np.uint8))
        for name in self.pipes:
            wanted = Wanted(Settings(), FileSettings(), name)
            for _ in range(2):
                started = time.monotonic()
                enlarge(self.pipes[name], picture)
                self._learn(time.monotonic() - started, 48, 48, wanted)

    def work(self, name: str, content: bytes, wanted: Wanted, on_progress: Callable[[float], None]) -> Result:
        """Read, enlarge and write one picture; for one thread at a time.

        Raises:
            SamDiffSRError: the picture or the settings do not allow it.
            StoppedError: `stop` was called meanwhile.
        """
        started = time.monotonic()
        settings, files = wanted.settings, wanted.files
        with _reading:
            picture = _read(name, content, files)
        height, width = picture.rgb.shape[:2]
        target = _target(name, picture, wanted)
        read = time.monotonic()
        try:
            larger = enlarge(
                self.pipes[wanted.model], picture, settings, max_pixels=files.max_pixels, on_progress=on_progress
            )
        except ImageError as error:
            raise type(error)(f"'{name}': {error}") from error
        if not files.strip_metadata and os.path.splitext(target)[1].lower() in XMP:
            larger = with_settings(larger, self.pipes[wanted.model], settings)
        enlarged = time.monotonic()
        self._learn(enlarged - read, width, height, wanted)
        self._refuse_if_stopped()
        made, notes = encode_image(larger, target, quality=files.quality)
        seconds = {"read": read - started, "enlarge": enlarged - read, "write": time.monotonic() - enlarged}
        warnings = tuple(dict.fromkeys((*larger.notes, *notes)))
        height, width = larger.rgb.shape[:2]
        return Result(made, target, width, height, larger.level, warnings, seconds)

    def prepare(self) -> None:
        """Forget an earlier `stop`: the next picture comes."""
        self._stop.clear()

    def _refuse_if_stopped(self, *_: Any) -> None:
        if self._stop.is_set():
            raise StoppedError

    def _pixels(self, width: int, height: int, wanted: Wanted) -> float:
        """A measure of the work: output pixels of the networks, times their calls."""
        times = passes(height, width, wanted.settings.output_size.of(height, width))
        steps = wanted.settings.steps or self.pipes[wanted.model].config["steps"]
        return (1 + steps) * width * height * sum(SCALE ** (2 * number) for number in range(1, times + 1))

    def _learn(self, seconds: float, width: int, height: int, wanted: Wanted) -> None:
        now = seconds / self._pixels(width, height, wanted)
        before = now if self._seconds_per_pixel is None else self._seconds_per_pixel
        self._seconds_per_pixel = math.sqrt(before * now)


def _read(name: str, content: bytes, files: FileSettings) -> Picture:
    try:
        moving = os.path.splitext(result_name(name, "", files.extension))[1].lower() in MOVING
        picture = read_image(name, content=content, keep_16_bit=True, all_frames=moving, max_pixels=files.max_pixels)
    except MemoryError as error:
        raise TooLargeError(f"Not enough memory to read '{name}'; use a smaller image.") from error
    return replace(picture, metadata=Metadata()) if files.strip_metadata else picture


def _target(name: str, picture: Picture, wanted: Wanted) -> str:
    """The result's name; its ending can hold the picture."""
    height, width = picture.rgb.shape[:2]
    output_size = wanted.settings.output_size
    try:
        height, width = check_size(height, width, output_size, wanted.files.max_pixels)
    except ImageError as error:
        raise type(error)(f"'{name}': {error}") from error
    target = result_name(name, output_size.suffix, wanted.files.extension)
    stem, ending = os.path.splitext(target)
    if picture.alpha is not None and wanted.files.format == "auto" and ending.lower() not in ALPHA:
        target = stem + ".png"
    check_target(target, height=height, width=width, alpha=picture.alpha is not None)
    return target


def load_engines(models: Mapping[str, str], devices: list[str]) -> list[Engine]:
    """One engine a device, each with every model.

    Args:
        models: what `load_model` takes, by the name that clients use.

    Raises:
        CheckpointError, ConfigError: of `load_model`.
    """
    engines = [Engine({name: load_model(source, device) for name, source in models.items()}) for device in devices]
    if len({engine.device for engine in engines}) < len(engines):
        raise ConfigError(f"--device names one device twice: {', '.join(devices)}; leave one out.")
    return engines
