"""The Hugging Face Space: its header, and its page on a real port, asked by gradio's own client."""

import importlib.util
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from samdiffsr.images import Picture, read_image
from samdiffsr.load import load_model
from samdiffsr.upscale.enlarge import enlarge, used_settings, with_settings
from samdiffsr.upscale.settings import Settings
from support import ROOT, noise_image

FOLDER = ROOT / "space"


def test_the_header_names_the_program():
    found = re.match(r"---\n(.*?)\n---\n", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    header = yaml.safe_load(found[1])
    assert header["sdk"] == "gradio" and re.fullmatch(r"6\.\d+\.\d+", header["sdk_version"])
    assert (FOLDER / header["app_file"]).is_file() and header["license"] == "mit"
    assert len(header["short_description"]) <= 60  # the Hub refuses more


def test_the_page_enlarges_a_picture(tmp_path):
    gradio = pytest.importorskip("gradio", reason="gradio is not in the dev extra; pip install gradio to run this test")
    client = pytest.importorskip("gradio_client")
    spec = importlib.util.spec_from_file_location("space_app", FOLDER / "app.py")
    assert spec and spec.loader
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    file = noise_image(tmp_path / "photo.png", size=(9, 7))
    page = app.build()
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    try:
        user = client.Client(address, verbose=False, download_files=tmp_path / "answers")
        model, picture = load_model("default"), Picture(np.asarray(Image.open(file)))
        for clean, level in (("auto", None), ("0.5", 0.5), ("0", 0.0)):
            _, saved, words = user.predict(client.handle_file(file), 4, 0.5, clean, 3, api_name="/upscale")
            wanted = enlarge(model, picture, settings := Settings(detail=0.5, clean=level, seed=3))
            assert np.array_equal(np.asarray(Image.open(saved)), wanted.rgb)
            used = used_settings(wanted, model, settings)
            assert read_image(saved).metadata.xmp == with_settings(wanted, model, settings).metadata.xmp
            cleaned = f"cleaned: {wanted.level:.2f}" if wanted.level or clean == "auto" else "not cleaned"
            assert words == (
                f"Made with these settings: {cleaned}{', estimated' if clean == 'auto' else ''}; detail: 0.5; "
                f"steps: {used['steps']}; seed: 3; computed in {used['precision']}."
            )
        sliders = [part["props"] for part in page.get_config_file()["components"] if part["type"] == "slider"]
        assert [props["value"] for props in sliders] == [4, model.config["detail"]]
        with pytest.raises(Exception, match="Choose a picture first"):
            user.predict(None, 4, 0.5, "auto", 3, api_name="/upscale")
    finally:
        page.close()
    assert gradio.__version__.startswith("6.")
