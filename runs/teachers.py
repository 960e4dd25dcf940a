"""The answers of published networks, to learn from:  python runs/teachers.py lkdn WEIGHTS PHOTOS OUTPUT

Writes OUTPUT/<stem>.png, what the network makes of the bicubic reduction of each photograph: for `samdiffsr prepare --targets`.
An interrupted run goes on. The networks: IMDN+ (team 39 of NTIRE 2022's challenge on efficient super-resolution) and LKDN
(stella-von/LKDN), both under the MIT licence. They are teachers: no weight of theirs becomes part of a model here.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from samdiffsr import imresize
from samdiffsr.files import whole_file
from samdiffsr.images import list_images
from samdiffsr.resize import SCALE
from samdiffsr.sampling.tiles import Window, tiles

SHA256 = {
    "imdn_plus": "2283a7387ce9091ab3da2a76c42728f318bc856d400e7ffce0cc5232855b2a13",
    "lkdn": "f534422583c99dad994fd7df897f6f872637218430cfedf6c2d2a072ea86dbd7",
}
TILE_LR, HALO_LR = 256, 56  # the wider of the two networks sees 51 pixels, but for 6e-6


class Teacher:
    """A published network as the functions of its tensors.

    Raises:
        SystemExit: the file is another one.
    """

    def __init__(self, name: str, file: Path, dtype: torch.dtype = torch.float32) -> None:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != SHA256[name]:
            raise SystemExit(f"{file} has the SHA-256 {found}, but {name} has {SHA256[name]}.")
        stored = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        stored = next((stored[key] for key in ("params_ema", "params") if key in stored), stored)
        self.name, self.dtype, self._tensors = name, dtype, {key: tensor.to(dtype) for key, tensor in stored.items()}

    def __call__(self, lr: Tensor) -> Tensor:
        """lr (N, 3, h, w) in [0, 1] -> (N, 3, 4h, 4w), about in [0, 1]."""
        return self.joints(lr)[-1] if self.name == "imdn_plus" else self._lkdn(lr.to(self.dtype))

    def joints(self, lr: Tensor) -> list[Tensor]:
        """IMDN+: features after the first convolution and after each of 8 blocks, the sum that the head sees, the picture."""
        first = self._conv(lr.to(self.dtype), "conv_in")
        found = [first]
        for number in range(8):
            rest, parts = found[-1], []
            for layer in range(1, 7):
                rest = F.silu(self._conv(rest, f"blocks.{number}.c{layer}"))
                parts.append(rest[:, :6])
                rest = rest[:, 6:]
            found.append(self._conv(torch.cat(parts, 1), f"blocks.{number}.c7") + found[-1])
        features = self._conv(found[-1], "conv_out") + first
        return [*found, features, F.pixel_shuffle(self._conv(features, "head"), SCALE)]

    def _lkdn(self, lr: Tensor) -> Tensor:
        first = self._separable(torch.cat([lr] * 4, 1), "fea_conv")
        x, outputs = first, []
        for number in range(1, 9):
            x = self._large_kernel_block(x, f"B{number}")
            outputs.append(x)
        fused = F.gelu(self._conv(torch.cat(outputs, 1), "c1"))
        return F.pixel_shuffle(self._conv(self._separable(fused, "c2") + first, "upsampler.0"), SCALE)

    def _large_kernel_block(self, x: Tensor, name: str) -> Tensor:
        rest, parts = x, []
        for layer in ("c1", "c2", "c3"):
            parts.append(F.gelu(self._conv(rest, f"{name}.{layer}_d")))
            rest = F.gelu(self._separable(rest, f"{name}.{layer}_r"))
        parts.append(F.gelu(self._separable(rest, f"{name}.c4")))
        fused = self._conv(torch.cat(parts, 1), f"{name}.c5")
        attention = self._conv(fused, f"{name}.atten.pointwise")
        attention = self._conv(attention, f"{name}.atten.depthwise")
        attention = self._conv(attention, f"{name}.atten.depthwise_dilated", dilation=3)
        out = self._conv(fused * attention, f"{name}.c6").movedim(1, -1)
        weight, bias = (self._tensors[f"{name}.pixel_norm.{key}"] for key in ("weight", "bias"))
        return F.layer_norm(out, weight.shape, weight, bias).movedim(-1, 1) + x

    def _separable(self, x: Tensor, name: str) -> Tensor:
        return self._conv(self._conv(x, f"{name}.pw"), f"{name}.dw")

    def _conv(self, x: Tensor, name: str, dilation: int = 1) -> Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias")
        padding, groups = dilation * (weight.shape[-1] // 2), x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=groups)


@torch.inference_mode()
def answer(teacher: Teacher, lr: np.ndarray) -> np.ndarray:
    """lr uint8 (h, w, 3) -> uint8 (4h, 4w, 3), in tiles."""
    height, width = lr.shape[:2]
    whole = torch.from_numpy(lr.copy()).permute(2, 0, 1)[None].float() / 255
    out = np.empty((SCALE * height, SCALE * width, 3), np.uint8)
    for tile in tiles(height, width, TILE_LR):
        window: Window = tile.grown(HALO_LR, height, width)
        seen = teacher(whole[:, :, window.top : window.bottom, window.left : window.right])
        inner = tile.scaled(SCALE).cut(seen, window.scaled(SCALE))[0].float().clamp(0, 1)
        hr = tile.scaled(SCALE)
        out[hr.top : hr.bottom, hr.left : hr.right] = (inner * 255).round().byte().permute(1, 2, 0).numpy()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(SHA256))
    for folder in ("weights", "photos", "output"):
        parser.add_argument(folder, type=Path)
    given = parser.parse_args()
    teacher = Teacher(given.name, given.weights)
    given.output.mkdir(parents=True, exist_ok=True)
    for photo in list_images(given.photos):
        target = given.output / f"{photo.stem}.png"
        if target.exists():
            continue
        hr = np.asarray(Image.open(photo).convert("RGB"))
        height, width = (side // SCALE * SCALE for side in hr.shape[:2])
        picture = answer(teacher, imresize(hr[:height, :width], 1 / SCALE))
        with whole_file(target) as file:
            Image.fromarray(picture).save(file, format="PNG", compress_level=1)


if __name__ == "__main__":
    main()
