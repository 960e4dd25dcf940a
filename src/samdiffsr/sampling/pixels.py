"""Pictures as a pipeline's caller has them: any accepted form -> pixels, and pixels -> the form asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from samdiffsr.errors import ImageError
from samdiffsr.sampling.tiles import Window

# How each output type is put together, tile by tile: numbers and their largest.
OUTPUTS = {
    "pil": (torch.uint8, 255),
    "np": (torch.float32, 1),
    "pt": (torch.float32, 1),
    "uint8": (torch.uint8, 255),
    "uint16": (torch.uint16, 65535),
}


def as_list(image: Any) -> list:
    """One image, a batch or a list of images as a list."""
    if isinstance(image, (Tensor, np.ndarray)) and image.ndim == 4:
        return list(image)
    images = list(image) if isinstance(image, list | tuple) else [image]
    if not images:
        raise ImageError("image is an empty list; give at least one image.")
    return images


def as_pixels(image: Any) -> np.ndarray:
    """Any accepted image -> (h, w, 3) uint8, uint16 or floating in [0, 1], without a copy where that is possible."""
    if isinstance(image, Image.Image):
        if image.mode in ("I", "F"):
            raise ImageError(
                f"a PIL image of mode {image.mode!r} has no fixed range: give numpy uint16, or floats in [0, 1]."
            )
        if image.mode.startswith("I;16"):  # convert() would clip it to white
            return as_pixels(np.asarray(image).astype(np.uint16))
        pixels = np.asarray(image.convert("RGB"))
    elif isinstance(image, np.ndarray):
        pixels = image[..., None].repeat(3, axis=2) if image.ndim == 2 else image
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ImageError(f"a numpy image must have shape (H, W, 3) or (H, W), got {image.shape}.")
        whole = image.dtype in (np.uint8, np.uint16)
        if not whole and not np.issubdtype(image.dtype, np.floating):
            raise ImageError(f"a numpy image must be uint8, uint16 or float in [0, 1], got {image.dtype}.")
    elif isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ImageError(
                f"a tensor image must be floating of shape (3, H, W) or (N, 3, H, W), got {image.dtype} {tuple(image.shape)}."
            )
        pixels = image.detach().float().permute(1, 2, 0).cpu().numpy()
    else:
        raise ImageError(f"image must be PIL, numpy or a tensor, or a list of these, got {type(image).__name__}.")
    if min(pixels.shape) < 1:
        raise ImageError(
            f"an image needs at least 1x1 pixel, got height {pixels.shape[0]} and width {pixels.shape[1]}."
        )
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = np.float32(pixels.min()), np.float32(pixels.max())
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise ImageError(
                f"pixels must lie in [0, 1], got values from {low:.4g} to {high:.4g}; scale the image first."
            )
    return pixels


def crop(images: Sequence[np.ndarray], window: Window) -> Tensor:
    """A window of images of one size as float32 (N, 3, h, w) in [0, 1]; beyond an image its last row and column repeat."""
    height, width = images[0].shape[:2]
    beyond = (max(0, window.bottom - height), max(0, window.right - width))
    cut = []
    for pixels in images:
        part = pixels[window.top : min(window.bottom, height), window.left : min(window.right, width)]
        part = np.pad(part, ((0, beyond[0]), (0, beyond[1]), (0, 0)), mode="edge") if any(beyond) else part
        divisor = np.iinfo(part.dtype).max if np.issubdtype(part.dtype, np.integer) else 1
        cut.append(torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1)).astype(np.float32) / divisor))
    return cut[0][None] if len(cut) == 1 else torch.stack(cut)  # a large one is not copied


def encode_pixels(sr: Tensor, output_type: str) -> Tensor:
    """(N, 3, h, w) in [-1, 1] -> the numbers of an output type, on the CPU."""
    dtype, largest = OUTPUTS[output_type]
    unit = (sr.float() / 2 + 0.5).cpu()
    return unit if dtype == torch.float32 else (unit * largest).round().to(dtype)


def finish(array: np.ndarray, output_type: str) -> Any:
    """(H, W, 3) of the output type's numbers -> what the caller gets."""
    if output_type == "pil":
        return Image.fromarray(array)
    return torch.from_numpy(array).permute(2, 0, 1) if output_type == "pt" else array


def joined(outputs: list, output_type: str) -> Any:
    """Arrays and tensors of one size as one batch."""
    if output_type not in ("np", "pt") or len({tuple(out.shape) for out in outputs}) > 1:
        return outputs
    if len(outputs) == 1:
        return outputs[0][None]  # no copy
    return np.stack(outputs) if output_type == "np" else torch.stack(outputs)
