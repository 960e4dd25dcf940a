"""The tutorial is stored without results, runs from beginning to end, and becomes a page with its pictures."""

import io
import json
import re
import runpy
from types import SimpleNamespace

import pytest
from PIL import Image

from support import ROOT

NOTEBOOK = ROOT / "docs/tutorial.ipynb"
TOOL = runpy.run_path(str(ROOT / "runs/tutorial_page.py"))


def test_it_is_stored_without_results():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 8
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.timeout(600)  # in a process of its own, which imports torch
def test_it_runs_and_becomes_a_page():
    text, pictures = TOOL["page"](TOOL["execute"]())
    shown = re.findall(r"!\[([^]]+)\]\(tutorial-pictures/(\d\d\.jpg)\)", text)
    assert [name for _, name in shown] == list(pictures) and len(pictures) >= 10
    headings = {heading for heading, _ in shown}
    for word in ("Masks", "Structure map", "Modulated noise", "Estimated structure", "step by step"):
        assert any(word in heading for heading in headings), word
    for content in pictures.values():
        picture = Image.open(io.BytesIO(content)).convert("L")
        assert picture.width > 800
        assert (lambda low, high: high - low > 100)(*picture.getextrema())  # it shows something
    assert "psnr" in text and re.search(r"result +\d\d\.\d\d dB", text)


@pytest.mark.parametrize(("page", "target"), [("index.md", "tutorial.md"), ("tutorial.md", "tutorial.ipynb")])
def test_links_of_other_pages_lead_to_the_page(page, target):
    seen = TOOL["on_page_markdown"]("[tutorial](tutorial.ipynb)", SimpleNamespace(file=SimpleNamespace(src_uri=page)))
    assert seen == f"[tutorial]({target})"
