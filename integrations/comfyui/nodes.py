"""The two nodes: load a model, enlarge a batch of images.

samdiffsr is imported when a node runs. So the nodes also appear where it is missing, and then say how to install it. For the
same reason the ranges stand here again; tests/integrations compares them with samdiffsr's own.
"""

from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

MODEL = io.Custom("SAMDIFFSR_MODEL")
CATEGORY = "image/upscaling"
MISSING = (
    "The Python package samdiffsr is not installed. Install it with the Python that runs ComfyUI, "
    "python -m pip install samdiffsr, and start ComfyUI again."
)
LEVELS = 65_535  # 16 bits a sample
PROGRESS = 1_000  # parts of the bar for each image
WORKSPACE = 2**30  # bytes that ComfyUI is asked to free; where there are fewer, the tiles become smaller


class LoadSamDiffSRModel(io.ComfyNode):
    """Name of a model -> the model, on the CPU."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SamDiffSR_LoadModel",  # workflows refer to it: it never changes
            display_name="Load SamDiffSR Model",
            category=CATEGORY,
            description="Loads a diffusion model that enlarges pictures. 'default' is inside the package: no download.",
            inputs=[
                io.String.Input(
                    "model",
                    default="default",
                    tooltip="default, a model folder, a released .ckpt file, or user/repo of the Hugging Face Hub.",
                )
            ],
            outputs=[MODEL.Output(display_name="MODEL")],
        )

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        try:
            from samdiffsr.load import load_model
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "samdiffsr":
                raise
            raise RuntimeError(MISSING) from error
        return io.NodeOutput(load_model(model.strip(), "cpu"))


class UpscaleWithSamDiffSR(io.ComfyNode):
    """A batch of images -> the same images, larger; a fourth channel is taken for alpha and enlarged too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SamDiffSR_Upscale",  # workflows refer to it: it never changes
            display_name="Upscale with SamDiffSR",
            category=CATEGORY,
            description="Enlarges images up to 16 times with a diffusion model. Colours and transparency are kept.",
            inputs=[
                MODEL.Input("model"),
                io.Image.Input("image"),
                io.Float.Input("scale", default=4.0, min=1.0, max=16.0, step=0.25, tooltip="Factor; 1 keeps the size."),
                io.Float.Input(
                    "detail",
                    default=-1.0,
                    min=-1.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much of the sampled detail is added, from 0 (none: smooth, truest on average) over 1 (all) "
                    "to 2. Below 0: as the model was saved.",
                ),
                io.Float.Input(
                    "clean",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How degraded the image is, from 0 (not at all) to 1 (an old scan); only a model trained for it "
                    "can clean. Below 0: estimated from the image.",
                ),
                io.Int.Input(
                    "steps", default=0, min=0, max=10_000, tooltip="Denoising steps. 0: as the model was saved."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    tooltip="Each image of the batch starts from this seed.",
                ),
                io.Int.Input(
                    "tile",
                    default=-1,
                    min=-1,
                    max=65_536,
                    tooltip="Side of a tile in input pixels; it changes memory and time, not the image. 0: no tiles. "
                    "-1: by the free memory.",
                ),
                io.Combo.Input(
                    "structure",
                    options=["auto", "model", "felzenszwalb", "none"],
                    default="auto",
                    tooltip="Structure map: model (its own estimate), felzenszwalb (regions of similar colour), none; "
                    "auto: model, if it has one.",
                ),
                io.Boolean.Input(
                    "consistency",
                    default=False,
                    tooltip="Make the bicubic reduction of each result equal its input.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "float32", "bfloat16", "float16"],
                    default="auto",
                    tooltip="Number type of the networks' convolutions. auto: the short type that the device computes "
                    "natively, else float32.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE"),
                io.Float.Output(
                    display_name="clean",
                    tooltip="The level that the images were cleaned with, as set or estimated; the mean of the batch. "
                    "0 from a model that cannot clean.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        image: torch.Tensor,
        scale: float,
        detail: float,
        clean: float,
        steps: int,
        seed: int,
        tile: int,
        structure: Any,
        consistency: bool,
        precision: Any,
    ) -> io.NodeOutput:
        from samdiffsr.upscale.settings import Settings

        _check(image)
        settings = Settings(
            scale=scale,
            detail=None if detail < 0 else detail,
            clean=None if clean < 0 else clean,
            steps=steps or None,
            seed=seed,
            tile=None if tile < 0 else tile,
            structure=structure,
            consistency=consistency,
            precision=precision,
        )
        device = comfy.model_management.get_torch_device()
        comfy.model_management.free_memory(WORKSPACE, device)
        bar = comfy.utils.ProgressBar(PROGRESS * len(image))
        model.to(device)
        try:
            found = [_enlarged(model, one, settings, bar, number) for number, one in enumerate(image)]
            level = sum(level for _, level in found) / len(found)
            return io.NodeOutput(torch.stack([large for large, _ in found]), level)
        finally:
            model.to("cpu")  # the memory of the device belongs to the next node


def _check(image: torch.Tensor) -> None:
    """ValueError unless it is (B, H, W, 3 or 4) of numbers."""
    if image.ndim != 4 or image.shape[3] not in (3, 4) or 0 in image.shape:
        raise ValueError(
            f"The image has the shape {tuple(image.shape)}, but must be (batch, height, width, 3 or 4 channels)."
        )
    if not image.isfinite().all():
        raise ValueError(
            "The image holds values that are no numbers; look at the node before: a VAE in half precision often does this."
        )


def _enlarged(model: Any, image: torch.Tensor, settings: Any, bar: Any, number: int) -> tuple[torch.Tensor, float]:
    """(H, W, C) in [0, 1] -> float32 (H', W', C) in [0, 1], with 16 bits a sample on the way; and the level of cleaning."""
    from samdiffsr.images import Picture
    from samdiffsr.upscale.enlarge import enlarge

    def on_progress(part: float) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(round(PROGRESS * (number + part)))

    comfy.model_management.throw_exception_if_processing_interrupted()
    # numpy has wider numbers than torch for 16 bits without a sign.
    samples = (image.detach().cpu().double().clamp(0, 1) * LEVELS).round().int().numpy().astype("uint16")
    alpha = samples[..., 3].copy() if samples.shape[2] == 4 else None
    result = enlarge(model, Picture(samples[..., :3].copy(), alpha), settings, on_progress=on_progress)
    parts = [torch.from_numpy(result.rgb.astype("float32"))]
    if result.alpha is not None:
        parts.append(torch.from_numpy(result.alpha.astype("float32"))[..., None])
    return torch.cat(parts, dim=2) / LEVELS, result.level or 0.0
