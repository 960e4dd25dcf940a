"""SAM, SAM-HQ and SAM 2 as they are in transformers, behind the generator's `PointModel`. No torchvision.

They differ in two ways. SAM and SAM-HQ see the image with its longer side at the network's size, padded to a square; SAM 2
sees it squeezed to a square. And each has its own form of image embedding.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch.nn import functional as F

from samdiffsr.errors import CheckpointError, MaskError, first_line
from samdiffsr.masks.automatic import GeneratorOptions, generate_masks
from samdiffsr.masks.region import Region

DEFAULT_MODEL = "facebook/sam-vit-huge"
"""The model the masks of the paper were made with."""

SIZES = {
    "facebook/sam-vit-huge": "2.6 GB",
    "facebook/sam-vit-large": "1.2 GB",
    "facebook/sam-vit-base": "0.4 GB",
    "syscv-community/sam-hq-vit-huge": "2.6 GB",
    "syscv-community/sam-hq-vit-base": "0.4 GB",
    "facebook/sam2.1-hiera-large": "0.9 GB",
    "facebook/sam2.1-hiera-tiny": "0.2 GB",
}
"""Download sizes of float32 weights, from the published numbers of parameters."""

_CLASSES = {"sam": "SamModel", "sam_hq": "SamHQModel", "sam2": "Sam2Model", "sam2_video": "Sam2Model"}
"""model_type in config.json -> class in transformers. SAM 2 is published with its video parts, which stay unused."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet; all three models were trained with these


@dataclass(frozen=True)
class SamRecipe:
    """A SAM model by folder or name on the Hugging Face hub, and what to do with it."""

    model: str = DEFAULT_MODEL
    options: GeneratorOptions = field(default_factory=GeneratorOptions)
    device: str = "cpu"

    def build(self) -> "SamSegmenter":
        """Load the model; errors as `load_sam`."""
        return SamSegmenter(load_sam(self.model, self.device), self.options)

    def record(self) -> dict[str, Any]:
        """See `Recipe`; without what changes speed and memory only."""
        options = asdict(self.options)
        del options["points_per_batch"]
        return {"segmenter": "sam", "model": self.model} | options


@dataclass(frozen=True)
class SamSegmenter:
    """A SAM model with its options: an image to regions, best predicted IoU first."""

    model: "SamPointModel"
    options: GeneratorOptions = field(default_factory=GeneratorOptions)

    def __call__(self, image: np.ndarray) -> list[Region]:
        try:
            return generate_masks(image, self.model, self.options)
        except (MemoryError, RuntimeError) as error:
            words = ("allocate memory", "out of memory")  # the CPU's and MPS's allocators raise a plain RuntimeError
            if not (isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)):
                raise
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise MaskError(
                f"not enough memory to segment {size} pixels; lower points_per_batch with --set."
            ) from error


class SamPointModel:
    """One of transformers' SamModel, SamHQModel and Sam2Model (in eval mode, on its device) as a `PointModel`."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.squeezes = type(network).__name__ == "Sam2Model"
        side = network.config.prompt_encoder_config.image_size
        self.side = int(side if isinstance(side, int) else side[0])

    def embed(self, crop: np.ndarray) -> "SamCrop":
        """Run the image encoder on a uint8 RGB crop (H, W, 3), resized as the network was trained."""
        height, width = crop.shape[:2]
        if self.squeezes:
            seen = (self.side, self.side)
        else:
            scale = self.side / max(height, width)
            seen = int(height * scale + 0.5), int(width * scale + 0.5)
        # a strip thinner than one pixel of the network still has to be seen
        seen = max(1, seen[0]), max(1, seen[1])
        small = np.asarray(Image.fromarray(crop).resize((seen[1], seen[0]), Image.Resampling.BILINEAR))
        pixels = (small / 255 - _MEAN) / _STD
        pixels = F.pad(torch.from_numpy(pixels).permute(2, 0, 1), (0, self.side - seen[1], 0, self.side - seen[0]))
        embeddings = self.network.get_image_embeddings(pixels[None].to(self.network.dtype).to(self.network.device))
        if isinstance(embeddings, tuple):  # SAM-HQ: its decoder takes features of the encoder's middle as well
            given = {"image_embeddings": embeddings[0], "intermediate_embeddings": embeddings[1]}
        else:
            given = {"image_embeddings": embeddings}
        return SamCrop(self, given, (height, width), seen)


@dataclass(frozen=True)
class SamCrop:
    """A crop of `size` (height, width) that `model` has embedded at size `seen`, top left in its square."""

    model: SamPointModel
    embeddings: Mapping[str, Any]
    size: tuple[int, int]
    seen: tuple[int, int]

    def predict(self, points: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """See `EmbeddedCrop`; float32."""
        network = self.model.network
        scaled = points * [self.seen[1] / self.size[1], self.seen[0] / self.size[0]]
        prompts = torch.from_numpy(scaled).to(network.dtype).to(network.device)[None, :, None]  # MPS has no float64
        labels = torch.ones(prompts.shape[:3], dtype=torch.int64, device=prompts.device)
        out = network(input_points=prompts, input_labels=labels, multimask_output=True, **self.embeddings)
        return out.pred_masks[0].float(), out.iou_scores[0].float()

    def enlarge(self, logits: torch.Tensor) -> torch.Tensor:
        """See `EmbeddedCrop`: bilinear, past the padding."""
        logits = logits[:, None]
        if not self.model.squeezes:
            square = (self.model.side, self.model.side)
            logits = F.interpolate(logits, square, mode="bilinear", align_corners=False)
            logits = logits[..., : self.seen[0], : self.seen[1]]
        return F.interpolate(logits, self.size, mode="bilinear", align_corners=False)[:, 0]


def find_model(name: str) -> bool:
    """Whether the model is on this machine already: a folder, or in the cache of the Hugging Face hub."""
    if Path(name).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        files = [try_to_load_from_cache(name, file) for file in ("config.json", "model.safetensors")]
    except HFValidationError:
        return False
    return all(isinstance(file, str) for file in files)


def load_sam(name: str = DEFAULT_MODEL, device: str = "cpu") -> SamPointModel:
    """Load a folder, or a model of the Hugging Face hub, which is downloaded the first time. Safetensors only.

    Raises:
        CheckpointError: it cannot be downloaded or read, is no SAM, or its weights are incomplete.
    """
    import transformers

    path = Path(name)
    if (path.exists() or path.is_absolute() or name.startswith(".")) and not (path / "config.json").is_file():
        raise CheckpointError(
            f"The SAM model '{name}' must be a folder with config.json, or a name on the Hugging Face hub."
        )
    try:
        config = transformers.PretrainedConfig.get_config_dict(name)[0]
        kind = config.get("model_type")
        if kind not in _CLASSES:
            raise CheckpointError(
                f"The model '{name}' is of the type {kind!r}, but must be one of {', '.join(map(repr, _CLASSES))}."
            )
        network, info = getattr(transformers, _CLASSES[kind]).from_pretrained(
            name, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if path.is_dir():
            reason = first_line(error).rstrip(".")
            raise CheckpointError(
                f"The SAM model in '{name}' cannot be loaded ({reason}); download it again."
            ) from error
        raise CheckpointError(_how_to_get(name)) from error
    lacking = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])  # left random
    if lacking:
        raise CheckpointError(
            f"The weights of '{name}' do not fit its network: {lacking[0]} is missing or misshapen; download them again."
        )
    return SamPointModel(network.eval().requires_grad_(False).to(device))


def _how_to_get(name: str) -> str:
    size = f" ({SIZES[name]})" if name in SIZES else ""
    return (
        f"The SAM model '{name}'{size} is not on this machine and cannot be downloaded; get config.json and "
        f"model.safetensors from https://huggingface.co/{name}, and give their folder with --sam-model DIR."
    )
