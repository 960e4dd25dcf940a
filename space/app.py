"""A Hugging Face Space: a picture in, the same picture larger, and a slider between both. Gradio is what Spaces offer."""

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported

import gradio as gr

from samdiffsr.errors import SamDiffSRError
from samdiffsr.images import read_image, write_image
from samdiffsr.load import load_model
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.settings import Settings

MAX_PIXELS = 1_000_000  # of a picture: about a minute on the two cores of a free Space
WORDS = """# samdiffsr

Enlarge a photograph with a small diffusion model. Fine detail in the result is invented; detail 0 invents least.
Pictures are sent to this Space and deleted within an hour. To keep them on your machine, install
[samdiffsr](https://github.com/samdiffsr/samdiffsr).
"""

model = functools.cache(load_model)


def upscale(
    file: str | None, scale: float, detail: float, seed: float, progress: Any = gr.Progress()
) -> tuple[tuple[str, str], str]:
    """Path of a picture -> the paths before and after, and the one to save."""
    if not file:
        raise gr.Error("Choose a picture first.")
    try:
        settings = Settings(scale=scale, detail=detail, seed=int(seed))
        picture = read_image(file, keep_16_bit=True, max_pixels=MAX_PIXELS)
        result = enlarge(
            model("default"), picture, settings, max_pixels=MAX_PIXELS, on_progress=lambda part: progress(part)
        )
        target = Path(tempfile.mkdtemp()) / f"{Path(file).stem}_x{scale:g}.png"
        write_image(result, target)
        before = target.with_name("before.png")
        write_image(picture.in_8_bit(), before)
    except SamDiffSRError as error:
        raise gr.Error(str(error)) from error
    return (str(before), str(target)), str(target)


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="samdiffsr", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(WORDS)
        with gr.Row():
            with gr.Column():
                file = gr.Image(type="filepath", format="png", image_mode=None, sources=["upload", "clipboard"])
                scale = gr.Slider(1, 4, 4, step=0.5, label="Scale")
                detail = gr.Slider(0, 2, 1, step=0.05, label="Detail: 0 smooth and truest, 1 all that is sampled")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
                button = gr.Button("Enlarge", variant="primary")
            with gr.Column():
                slider = gr.ImageSlider(type="filepath", format="png", label="Before and after")
                saved = gr.File(label="Save the result")
        button.click(upscale, [file, scale, detail, seed], [slider, saved], api_name="upscale", concurrency_limit=1)
    return page.queue(max_size=20)


if __name__ == "__main__":
    build().launch()
