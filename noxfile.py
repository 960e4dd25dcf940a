"""The commands of the Makefile for every system, each in an environment of its own: `python -m nox -s tests`."""

import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parent
nox.options.sessions = ["lint", "tests", "docs", "package"]


def install(session: nox.Session, extras: str, constraints: str = "constraints.txt") -> None:
    """Torch first and alone: asked for by its exact version it is the CPU build where one is offered."""
    pins = (ROOT / constraints).read_text(encoding="utf-8").splitlines()
    session.install(next(line for line in pins if line.startswith("torch==")))
    session.install("-c", constraints, "-e", f".[{extras}]")


@nox.session
def tests(session: nox.Session) -> None:
    """The whole test suite, or the files that are named after `--`."""
    install(session, "dev")
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """The test suite with the oldest versions that pyproject.toml allows; `onnx` needs a newer torch, so without its tests."""
    extras = nox.project.load_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    tools = [line for line in extras["dev"] if not line.startswith("samdiffsr[")]
    install(session, "train,sam,ray,web,heif,jxl,raw,video", "constraints-oldest.txt")
    session.install("-c", "constraints-oldest.txt", *tools)
    session.run("python", "-m", "pytest", "-n", "2", "--ignore", "tests/export", *session.posargs)


@nox.session
def newest(session: nox.Session) -> None:
    """The test suite with the newest versions that the package index has."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, import layers."""
    install(session, "dev")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pyright", "--pythonpath", shutil.which("python", path=session.virtualenv.bin) or "python")
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, into site/."""
    install(session, "docs")
    session.run("properdocs", "build", "--strict", "-f", "mkdocs.yml")


@nox.session
def package(session: nox.Session) -> None:
    """Build sdist and wheel, check their descriptions, install the wheel alone, and ask `samdiffsr doctor`."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.install("build", "twine")
    session.run("python", "-m", "build")
    files = [str(file) for file in sorted((ROOT / "dist").iterdir())]
    session.run("python", "-m", "twine", "check", "--strict", *files)
    session.install("-c", "constraints.txt", next(file for file in files if file.endswith(".whl")))
    session.run("samdiffsr", "doctor")


@nox.session
def fuzz(session: nox.Session) -> None:
    """5,000 damaged picture files."""
    install(session, "dev")
    session.run("python", "tests/fuzz.py", "5000")
