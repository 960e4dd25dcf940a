"""The tutorial as a page of the site: runs docs/tutorial.ipynb, which is stored without results, and puts its pictures in.

ProperDocs calls the functions `on_...` (mkdocs.yml, `hooks`). In the sources the tutorial is `tutorial.ipynb`, so that links to
it lead somewhere on GitHub too; on the site they lead to the page.
"""

import base64
import io
import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "docs/tutorial.ipynb"
PAGE, PICTURES = "tutorial.md", "tutorial-pictures"
LIMIT = 300  # seconds for one cell; all of them take about 10


def execute(file: Path = NOTEBOOK) -> Any:
    """The notebook with its results, computed in its folder; a failing cell raises `CellExecutionError`."""
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": file.parent}}
    )
    return client.execute()


def page(notebook: Any) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as Markdown, and its pictures as JPEG by name; each picture's text is the heading above it."""
    parts, pictures, heading = [], {}, ""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            heading = next(iter(re.findall(r"^#+ (.*)", cell.source, re.MULTILINE)), heading)
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if output.output_type == "stream":
                parts.append(f"```text\n{output.text.rstrip()}\n```")
            elif "image/png" in output.data:
                name = f"{len(pictures) + 1:02d}.jpg"
                pictures[name] = _jpeg(base64.b64decode(output.data["image/png"]))
                parts.append(f"![{heading}]({PICTURES}/{name})")
    return "\n\n".join(parts) + "\n", pictures


def _jpeg(png: bytes) -> bytes:
    """Noise as PNG would make the page four times larger."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()


def on_files(files: Any, config: Any) -> Any:
    """Add the page and its pictures to the site."""
    from properdocs.structure.files import File

    text, pictures = page(execute())
    files.append(File.generated(config, PAGE, content=text))
    for name, content in pictures.items():
        files.append(File.generated(config, f"{PICTURES}/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of other pages to the notebook lead to its page."""
    return markdown if page.file.src_uri == PAGE else markdown.replace("(tutorial.ipynb)", f"({PAGE})")
