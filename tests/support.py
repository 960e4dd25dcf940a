"""Functions and constants that several test modules share: places, small files, short cuts. Fixtures stand in conftest.py."""

import hashlib
import io
import json
import struct
import sys
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from pycocotools import mask as coco
from safetensors.torch import load_file

from samdiffsr import ConditionalUNet, NoiseSchedule, RRDBEncoder, SamDiffSRPipeline
from samdiffsr.data.prepare import prepare_folder
from samdiffsr.evaluation.downloads import PUBLISHED, Published
from samdiffsr.sampling.schedulers import make_scheduler
from samdiffsr.training.config import load_config
from samdiffsr.upscale.batch import Report, upscale_files
from samdiffsr.upscale.plan import plan
from samdiffsr.upscale.settings import FileSettings, Settings

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
GOLDEN = Path(__file__).with_name("fixtures") / "golden"
AVIF = Path(__file__).with_name("fixtures") / "avif"
HEIC = Path(__file__).with_name("fixtures") / "heif"

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such call")
"""For tests that use limits, signals, forks or file modes of POSIX themselves."""


def settings_of(options: dict[str, Any]) -> tuple[Settings, FileSettings]:
    """Both objects from the fields of either, by name."""
    own = {field.name for field in fields(FileSettings)}
    picture = {name: value for name, value in options.items() if name not in own}
    return Settings(**picture), FileSettings(**{name: value for name, value in options.items() if name in own})


def upscale_with(pipe: Any, inputs: list[Path], output: Path, *, tree: bool = False, **options: Any) -> Report:
    """Upscale with fields of `Settings` and `FileSettings`, or callbacks, by name."""
    more = {name: options.pop(name) for name in ("on_progress", "report") if name in options}
    settings, files = settings_of(options)
    return upscale_files(lambda: pipe, plan(inputs, output, recursive=tree), settings, files, **more)


def paper_pipe() -> SamDiffSRPipeline:
    """A tiny pipeline of the paper's networks with random weights."""
    torch.manual_seed(0)
    encoder = RRDBEncoder(channels=4, blocks=2, growth=4)
    denoiser = ConditionalUNet(dim=4, multipliers=(1, 2), feature_channels=encoder.feature_channels)
    scheduler = make_scheduler(diffusers.DDPMScheduler, NoiseSchedule.cosine(100), "marginal_noise")
    pipe = SamDiffSRPipeline(encoder, denoiser, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its path in the folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- pictures ---------------------------------------------------------------------------------------------------------

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_RNG = np.random.default_rng(7)
RGB = _RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = _RNG.integers(0, 256, (5, 7), dtype=np.uint8)
ALPHA = _RNG.integers(0, 256, (5, 7), dtype=np.uint8)
WIDE = _RNG.integers(0, 65536, (5, 7, 4)).astype(np.uint16)
WIDE[0, 0], WIDE[0, 1], WIDE[0, 2] = 0, 65535, 257 * 100
_NOISE = np.random.default_rng(3)


def noise_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 5), **options: Any) -> Path:
    """Write a small noise image of width and height `size`, and its folder; options are Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = _NOISE.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.frombytes(mode, size, pixels.tobytes()).save(path, **options)
    return path


def dng(orientation: int = 1) -> bytes:
    """Camera raw of 64x48 pixels: grey that gets lighter to the right, through a sensor whose red is half as sensitive."""
    import tifffile

    sensor = np.full((48, 64), 2000, np.uint16) + (np.arange(64) * 200).astype(np.uint16)
    sensor[::2, ::2] //= 2
    tags = [
        (271, "s", 0, "Maker"),
        (272, "s", 0, "Test Camera"),
        (274, "H", 1, orientation),
        (33421, "H", 2, (2, 2)),  # CFARepeatPatternDim
        (33422, "B", 4, b"\0\1\1\2"),  # CFAPattern: red, green, green, blue
        (50706, "B", 4, b"\1\4\0\0"),  # DNGVersion
        (50708, "s", 0, "Test Camera"),
        (50714, "H", 1, 0),  # black
        (50717, "I", 1, 65_535),  # white
        (50721, "2i", 9, (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1)),  # ColorMatrix1
        (50728, "2I", 3, (1, 2, 1, 1, 1, 1)),  # AsShotNeutral
        (50778, "H", 1, 21),  # illuminant D65
    ]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        extra = [(*tag, False) for tag in tags]
        writer.write(sensor, photometric=32_803, extratags=extra, metadata=None, rowsperstrip=48)
    return file.getvalue()


def save_image(file: Path, image: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)


def photograph(number: int, size: tuple[int, int] = (48, 36)) -> Image.Image:
    """Patches of colour; width and height are `size`."""
    colours = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG by hand: `rows` are the raw scanlines, each with its filter byte."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", head) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def scanlines(pixels: np.ndarray) -> bytes:
    """Big-endian rows with filter 0."""
    return b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)


# --- photographs with masks ---------------------------------------------------------------------------------------------


def left_half(height, width):
    mask = np.zeros((height, width), bool)
    mask[:, :17] = True
    return mask


def write_masks(path, masks):
    """A mask file as segment-anything writes it."""
    records = []
    for mask in masks:
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        size, counts = [int(n) for n in rle["size"]], rle["counts"].decode()
        records.append({"segmentation": {"size": size, "counts": counts}, "area": int(mask.sum())})
    path.write_text(json.dumps(records))


def prepare(folder, **options):
    return prepare_folder(folder / "hr", folder / "masks", folder / "out", **options)


# --- training ---------------------------------------------------------------------------------------------------------


def tiny(photos, output, *overrides):
    return load_config("tiny", [f"photos={photos}", f"output={output}", *overrides])


def lines(file) -> list[dict]:
    """The records of a run, one JSON object a line."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def quiet(update, record):
    pass


def weights(folder):
    return {file.parent.name: load_file(file) for file in sorted(folder.rglob("*.safetensors"))}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[part][key], b[part][key]) for part in a for key in a[part])


# --- evaluation -------------------------------------------------------------------------------------------------------


def publish(monkeypatch, file, tensors):
    """Let `file`, written here, stand for the published one of that name."""
    torch.save(tensors, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, file.name, Published(file.name, file.as_uri(), digest))
