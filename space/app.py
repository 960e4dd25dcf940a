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
from samdiffsr.upscale.enlarge import enlarge, used_settings, with_settings
from samdiffsr.upscale.settings import Settings

MAX_PIXELS = 1_000_000  # of a picture: about a minute on the two cores of a free Space
WORDS = """# samdiffsr

Enlarge a photograph with a small diffusion model. Fine detail in the result is invented; detail 0 invents least.
Pictures are sent to this Space and deleted within an hour. To keep them on your machine, install
[samdiffsr](https://github.com/samdiffsr/samdiffsr).
"""

CLEAN = [("Auto", "auto"), ("Off", "0"), ("Some", "0.5"), ("All", "1")]

model = functools.cache(load_model)


def upscale(
    file: str | None, scale: float, detail: float, clean: str, seed: float, progress: Any = gr.Progress()
) -> tuple[tuple[str, str], str, str]:
    """Path of a picture -> the paths before and after, the one to save, and how it was made."""
    if not file:
        raise gr.Error("Choose a picture first.")
    try:
        level = None if clean == "auto" else float(clean)
        settings, pipe = Settings(scale=scale, detail=detail, clean=level, seed=int(seed)), model("default")
        picture = read_image(file, keep_16_bit=True, max_pixels=MAX_PIXELS)
        result = enlarge(pipe, picture, settings, max_pixels=MAX_PIXELS, on_progress=lambda part: progress(part))
        target = Path(tempfile.mkdtemp()) / f"{Path(file).stem}_x{scale:g}.png"
        notes = [*result.notes, *write_image(with_settings(result, pipe, settings), target)]
        before = target.with_name("before.png")
        write_image(picture.in_8_bit(), before)
    except SamDiffSRError as error:
        raise gr.Error(str(error)) from error
    return (str(before), str(target)), str(target), made_with(used_settings(result, pipe, settings), clean, notes)


def made_with(used: dict[str, Any], clean: str, notes: list[str]) -> str:
    """The settings of a result in words, with the level that was estimated, and what the file cannot hold."""
    parts = [f"detail: {used['detail']:g}", f"steps: {used['steps']}", f"seed: {used['seed']}"]
    parts.append(f"computed in {used['precision']}")
    if "clean" in used:  # not with a model that cannot clean
        amount = f"cleaned: {used['clean']:.2f}"
        parts.insert(0, f"{amount}, estimated" if clean == "auto" else amount if used["clean"] else "not cleaned")
    words = f"Made with these settings: {'; '.join(parts)}."
    return f"{words} Please note: {'; '.join(notes)}." if notes else words


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="samdiffsr", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(WORDS)
        with gr.Row():
            with gr.Column():
                file = gr.Image(type="filepath", format="png", image_mode=None, sources=["upload", "clipboard"])
                scale = gr.Slider(1, 4, 4, step=0.5, label="Scale")
                own = model("default").config["detail"]
                detail = gr.Slider(0, 2, own, step=0.05, label="Detail: 0 smooth and truest, 1 all that is sampled")
                clean = gr.Radio(CLEAN, value="auto", label="Remove noise and JPEG blocks")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
                button = gr.Button("Enlarge", variant="primary")
            with gr.Column():
                slider = gr.ImageSlider(type="filepath", format="png", label="Before and after")
                made = gr.Markdown()
                saved = gr.File(label="Save the result")
        inputs, outputs = [file, scale, detail, clean, seed], [slider, saved, made]
        button.click(upscale, inputs, outputs, api_name="upscale", concurrency_limit=1)
    return page.queue(max_size=20)


if __name__ == "__main__":
    build().launch()
