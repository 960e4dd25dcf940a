"""docs/cli.md, made from the command line itself: python runs/cli_reference.py"""

from pathlib import Path
from typing import Any

import typer.main
from typer.core import TyperGroup

from samdiffsr.cli import app

FILE = Path(__file__).parents[1] / "docs/cli.md"
HEAD = """# Command line

Every verb with every option. `python runs/cli_reference.py` makes this page from the program; a test compares both.

Exit codes: 0 all done; 1 all but some pictures, each with one sentence on stderr; 2 an error that you can mend, with one
sentence on stderr; 130 interrupted.
"""


def reference() -> str:
    """The page as Markdown."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return HEAD + "".join(_verb(name, command) for name, command in group.commands.items())


def _verb(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=f"samdiffsr {name}")
    rows = [_row(parameter, context) for parameter in command.params]
    table = "".join(f"| {_code(left)} | {_cell(right)} |\n" for left, right in rows)
    usage = command.get_usage(context).removeprefix("Usage: ")
    text = "\n\n".join(_plain(part) for part in (command.help or "").split("\n\n"))
    return f"\n## {name}\n\n    {' '.join(usage.split())}\n\n{text}\n\n| option | meaning |\n|---|---|\n{table}"


def _row(parameter: Any, context: Any) -> tuple[str, str]:
    record = parameter.get_help_record(context)
    assert record and record[1], f"{parameter.name} has no help"
    return record[0].partition(" <")[0], record[1]  # "PATH <list[str]>" names a Python type


def _code(text: str) -> str:
    """A cell of code. Between backticks a bar cannot be written for GitHub and the site alike."""
    return f"`{text}`" if "|" not in text else f"<code>{text.replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    """One cell of a table: in one line, with its bars kept."""
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """Text in one line, in which <stem> is no tag of HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8", newline="\n")
