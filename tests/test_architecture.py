"""Promises about the whole tree: light imports, no side effects, a true layout, small files."""

import ast
import re
import subprocess
import sys

import pytest

from support import ROOT

SOURCES = sorted((ROOT / "src/samdiffsr").rglob("*.py"))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    ["import samdiffsr", "from samdiffsr.cli import app; from typer.main import get_command; get_command(app)"],
)
def test_import_and_command_line_load_nothing_heavy(code):
    heavy = ["torch", "diffusers", "transformers", "numpy", "PIL", "scipy", "skimage", "pydantic", "yaml"]
    assert run_python(f"{code}; import sys; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_every_public_name_can_be_imported():
    import samdiffsr

    for name in samdiffsr.__all__:
        assert getattr(samdiffsr, name) is not None
    assert set(samdiffsr.__all__) <= set(dir(samdiffsr))
    with pytest.raises(AttributeError, match="upscayl"):
        samdiffsr.upscayl  # noqa: B018


def test_importing_sets_no_global_torch_state():
    code = (
        "import torch\n"
        "def state(): return (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),\n"
        "    torch.initial_seed(), torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled())\n"
        "before = state()\n"
        "import samdiffsr.pipeline, samdiffsr.released, samdiffsr.upscale, samdiffsr.training.run\n"
        "import samdiffsr.evaluation.html, samdiffsr.sampling.schedulers\n"
        "try: import samdiffsr.export.networks, samdiffsr.export.image\n"
        "except ModuleNotFoundError as error: assert error.name in ('onnx', 'onnxruntime', 'onnxscript')\n"
        "import samdiffsr.masks.sam, samdiffsr.masks.folder\n"
        "print(state() == before)"
    )
    assert run_python(code) == "True"


def test_importing_needs_no_torchvision():
    code = (
        "import sys; sys.modules['torchvision'] = None; import samdiffsr.pipeline, samdiffsr.masks.sam; print('fine')"
    )
    assert run_python(code) == "fine"


def test_layout_names_every_folder_and_no_other():
    tree = re.search(r"```text\nsrc/samdiffsr/ .*?\n(.*?)```", (ROOT / "docs/layout.md").read_text(), re.DOTALL)
    assert tree, "docs/layout.md has no tree of src/samdiffsr/"
    named = [line.split()[0].rstrip("/") for line in tree.group(1).splitlines()]
    package = ROOT / "src/samdiffsr"
    files = [file for file in package.glob("*/*") if "__pycache__" not in file.parts and file.name != "__pycache__"]
    assert sorted(named) == sorted({file.relative_to(package).parts[0] for file in files})


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_stay_small_and_say_what_they_are(file):
    text = file.read_text()
    module = ast.parse(text)
    assert ast.get_docstring(module), "the first line must say what the module is for"
    assert len(text.splitlines()) <= 400
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 70, f"{node.name} is too long"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_text_files_name_their_encoding(file):
    """Windows would take the code page of the country."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in ("read_text", "write_text"):
            assert any(word.arg == "encoding" for word in node.keywords), f"line {node.lineno}"


def test_no_file_is_too_large_for_the_repository():
    for file in (ROOT / "src/samdiffsr/weights").rglob("*"):
        assert file.stat().st_size < 16 * 2**20
