"""Every command and Python block of the documentation: run here as written, run by another test, or not run for a reason.

All that start samdiffsr are also parsed, so that no page names an option that is gone.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.main
from PIL import Image

from samdiffsr.cli import app, main
from samdiffsr.models.weights import DEFAULT_MODEL
from support import ROOT, noise_image

PAGES = [
    ROOT / "README.md",
    *(file for file in sorted((ROOT / "docs").glob("*.md")) if file.name not in ("cli.md", "log.md")),
]
PROGRAMS = "samdiffsr|python|pip|torchrun|curl|make|find|uvx|\\."

RUN = (
    "samdiffsr upscale photo.jpg -o large/",
    "samdiffsr upscale -i holiday -r -o large/ --skip-existing",
    "samdiffsr upscale -i photo.jpg -o big.png -s 2.5 --detail 0.5",
    "samdiffsr upscale -i photo.jpg -o same/ -s 1",
    "samdiffsr upscale -i photo.png -o large/ -m run/model",
    "samdiffsr doctor",
    "samdiffsr masks -i photos -o masks --preview",
    "samdiffsr train light --dry-run --set diffusion.loss.features_weight=0",
    "samdiffsr evaluate --hr Set5/HR --lr Set5/LR -m default --baseline bicubic -o report",
    "samdiffsr evaluate --hr SET/HR --lr SET/LR --border 0 -m default --published -o report",
)
"""Run here, in this order, in one folder."""

ELSEWHERE = {
    "make (demo|test)": "Makefile::test",
    "samdiffsr upscale .*--clean 0.4": "tests/sampling/test_clean.py::test_a_saved_model_keeps_the_input",
    "samdiffsr evaluate --lr photos": "tests/evaluation/test_blind.py::test_evaluate_of_lr_alone",
    "samdiffsr prepare .*--lr": "tests/data/test_pairs.py::test_masks_can_be_left_out_and_that_is_said",
    "samdiffsr prepare .*--encoding": "tests/data/test_prepare_input.py::test_overlapping_masks_are_no_error",
    "samdiffsr train finetune --set": "tests/training/test_finetune.py::test_the_command",
    "samdiffsr evaluate --hr test-hr": "tests/evaluation/test_evaluate.py::test_the_report_says_what_was_run",
    "samdiffsr upscale film": "tests/upscale/test_video.py::test_the_command",
    "samdiffsr train .*targets": "tests/training/test_distillation.py::test_the_commands_of_the_guide",
    "samdiffsr masks .*felzenszwalb|samdiffsr prepare .*-o data$|samdiffsr train tiny|samdiffsr upscale .*(small|teacher)": (
        "tests/test_guide.py::test_the_four_commands_of_the_guide"
    ),
    "samdiffsr prepare -i photos --masks masks -o data --workers 8": (
        "tests/test_guide.py::test_the_four_commands_of_the_guide"
    ),
    "samdiffsr (masks|prepare) .*df2k": "tests/data/test_prepare.py::test_a_folder_of_links_is_the_folder_itself",
    "samdiffsr serve": "tests/web/test_serve.py::test_from_address_to_end",
    "samdiffsr convert": "tests/cli/test_verbs.py::test_convert",
    "samdiffsr upscale .*[.]ckpt": "tests/cli/test_verbs.py::test_convert",
    "samdiffsr export( |$)": "tests/export/test_image.py::test_default_model_is_one_file",
    "python folder/run_onnx": "tests/export/test_networks.py::test_runner_needs_neither_torch_nor_samdiffsr",
    "samdiffsr train run/model/.*safetensors": "tests/training/test_config.py::test_weights_carry_their_configuration",
    "python runs/study": "tests/test_study.py::test_interrupted_it_goes_on_and_the_table_has_the_arms",
    "torchrun": "tests/training/test_resume.py::test_two_nodes_make_the_weights_of_one_process",
}
"""Run by another test, with these or smaller values."""

NOT_RUN = {
    "(python -m )?pip install|python -m venv|[.] .venv": "installs packages; runs/release.sh and the workflows do it",
    "make comfyui": "needs a real ComfyUI; tests/integrations/test_comfyui.py runs the nodes in a small one",
    "curl": "needs a server; tests/web/test_api.py sends the same requests",
    "samdiffsr .*(s3://|--cluster)|find /net": "needs a cluster or an object store; tests/upscale has small ones",
    "samdiffsr .*(DF2K|BENCH)": "takes hours and data sets that may not be passed on",
    "samdiffsr train light .*[.][.][.]": "is cut short on its page; tests/models/test_level.py does the same",
}
"""Not run, and why."""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """(page, command) of all shell blocks, fenced or indented; without comments."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = [line for block in blocks(text, "sh") for line in block.splitlines()]
        outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for line in [*fenced, *re.findall(r"^    (\S.*)$", outside, re.MULTILINE)]:
            command = re.split(r"\s+#", line)[0].strip()
            if re.match(rf"({PROGRAMS})\s", command):
                found.append((page.name, command))
    return found


COMMANDS = commands()


def fate(command: str) -> str:
    """How a command is kept true, or an empty text."""
    if command in RUN:
        return "run"
    return next((why for table in (ELSEWHERE, NOT_RUN) for key, why in table.items() if re.match(key, command)), "")


def test_the_pages_have_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_is_run_or_has_a_reason(page, command):
    assert fate(command), f"add it to RUN, ELSEWHERE or NOT_RUN of {Path(__file__).name}"


def test_no_rule_is_left_over():
    texts = [command for _, command in COMMANDS]
    assert set(RUN) <= set(texts)
    assert [key for key in (*ELSEWHERE, *NOT_RUN) if not any(re.match(key, text) for text in texts)] == []


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_the_other_tests_exist(place):
    file, name = place.split("::")
    assert re.search(rf"^(def )?{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("page", "command"), [pair for pair in COMMANDS if "samdiffsr " in pair[1]])
def test_every_option_of_a_page_exists(page, command):
    words = shlex.split(command.rpartition("samdiffsr ")[2].partition(" | ")[0])
    verb = typer.main.get_command(app).commands[words[0]]  # pyright: ignore
    known = {option for parameter in verb.params for option in parameter.opts}
    assert [word for word in words[1:] if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known] == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the pages take for granted."""
    for file in ("photo.png", "photo.jpg", "holiday/sea/one.png", "lr/a.png"):
        noise_image(tmp_path / file)
    for file in ("photos/a.png", "Set5/HR/a.png", "SET/HR/a.png"):
        noise_image(tmp_path / file, size=(48, 40))
    for name in ("Set5", "SET"):
        noise_image(tmp_path / name / "LR/a.png", size=(12, 10))
    shutil.copytree(DEFAULT_MODEL, tmp_path / "run/model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", RUN)
def test_commands_as_written(folder, command):
    with pytest.raises(SystemExit) as end:
        main(shlex.split(command)[1:])
    assert end.value.code == 0
    if command == RUN[0]:
        assert Image.open("large/photo_x4.jpg").size == (24, 20)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_blocks_as_written(folder, page):
    """Those of one page share their names, as a reader's session does."""
    found, session = blocks((ROOT / page).read_text(encoding="utf-8"), "python"), {}
    assert found
    for block in found:
        exec(compile(block, page, "exec"), session)
