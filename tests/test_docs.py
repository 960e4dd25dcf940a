"""Promises of the pages: a short README without broken links, a complete command reference, a site that lists every page."""

import importlib.util
import re
from importlib.metadata import version

import pytest
import typer.main
import yaml

from samdiffsr import __version__
from samdiffsr.cli import app
from support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {file.name for file in (ROOT / "docs").glob("*.md")}


def reference() -> str:
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "runs/cli_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference()


def test_the_readme_is_read_in_a_minute():
    lines = README.splitlines()
    assert len(lines) <= 90
    assert [line for line in lines if len(line) > 120] == []
    assert "make demo" in README and "make test" in README


def test_no_link_of_the_readme_breaks_on_a_package_index():
    targets = re.findall(r"\]\(([^)]*)\)", README)
    assert len(targets) > 10
    assert [target for target in targets if not target.startswith("https://")] == []
    assert not re.search(r"<img|\bsrc=|^\[[^]]+\]:", README, re.MULTILINE)


def test_links_of_the_readme_into_the_repository_lead_to_files():
    inside = re.findall(r"samdiffsr/(?:blob/)?main/([^)#]*)", README)
    assert "docs/comparison.jpg" in inside
    assert [path for path in inside if not (ROOT / path).is_file()] == []


@pytest.mark.skipif(version("typer") < "0.29", reason="this typer words the help differently")
def test_the_command_reference_is_what_the_program_says():
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert page == reference(), "an option changed: run python runs/cli_reference.py"


@pytest.mark.parametrize("verb", typer.main.get_command(app).commands)  # pyright: ignore
def test_every_option_stands_in_the_command_reference(verb):
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {verb}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert section, verb
    for parameter in typer.main.get_command(app).commands[verb].params:  # pyright: ignore
        for option in parameter.opts:
            assert not option.startswith("-") or re.search(rf"(?<![\w-]){option}(?![\w-])", section[1]), option


def test_the_site_lists_every_page_once():
    listed = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(PAGES | {"tutorial.md"})  # made of the notebook: runs/tutorial_page.py


def test_llms_txt_names_pages_that_exist():
    named = re.findall(r"github\.io/samdiffsr/([\w-]+)/\)", (ROOT / "docs/llms.txt").read_text(encoding="utf-8"))
    assert len(named) > 10 and {f"{name}.md" for name in named} <= PAGES | {"tutorial.md"}


def test_version_and_licence_of_the_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (__version__, "MIT")


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.name)
def test_forms_and_workflows_are_yaml(file):
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)
