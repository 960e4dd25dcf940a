"""The command line as a user meets it: exit codes, one-sentence errors, and a help text that comes at once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import samdiffsr.upscale
from samdiffsr import __version__
from samdiffsr.cli import VERBS, app, main, upscale
from samdiffsr.images import MAX_PIXELS, read_image


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]):
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return run


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


# --- help and version ------------------------------------------------------------------------------------------------


def test_help_names_every_verb(command) -> None:
    code, out, _ = command("--help")
    assert code == 0
    for verb in VERBS:
        assert verb.__name__.rpartition(".")[2] in out


def test_every_module_of_the_folder_is_a_verb() -> None:
    import samdiffsr.cli

    folder = Path(samdiffsr.cli.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if path.stem[0] != "_"}
    assert {verb.__name__.rpartition(".")[2] for verb in VERBS} == modules
    assert {command.name for command in app.registered_commands} == modules


def test_verb_help_explains_every_option(command) -> None:
    code, out, _ = command("upscale", "-h")
    options = [
        "input",
        "output",
        "model",
        "steps",
        "seed",
        "device",
        "suffix",
        "overwrite",
        "skip-existing",
        "max-pixels",
    ]
    assert code == 0 and all(f"--{option} " in out for option in options)
    assert upscale.MAX_PIXELS == MAX_PIXELS and str(MAX_PIXELS) in out


def test_version(command) -> None:
    assert command("--version") == (0, f"samdiffsr {__version__}\n", "")


def test_help_loads_nothing_heavy() -> None:
    """Also --help of a verb: its function has not run."""
    script = """
        import sys
        from samdiffsr.cli import main
        for arguments in (["--help"], ["upscale", "--help"]):
            try:
                main(arguments)
            except SystemExit:
                pass
        print(sorted({"torch", "diffusers", "numpy", "PIL", "rich", "transformers"} & set(sys.modules)))
    """
    done = python("-c", "\n".join(line[8:] for line in script.splitlines()))
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


# --- upscale ---------------------------------------------------------------------------------------------------------


def test_one_file(command, source: Path, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    code, out, err = command("upscale", "-i", source, "-o", tmp_path / "b.jpg", "-m", tiny_pipe_dir, "--steps", 1)
    assert (code, out, err) == (0, "", "")
    assert read_image(tmp_path / "b.jpg").rgb.shape == (20, 24, 3)


def test_in_a_fresh_process(source: Path, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    """Nothing but what the command itself imports: diffusers only finds model classes that were imported before."""
    model = str(tiny_pipe_dir)
    done = python("-m", "samdiffsr", "upscale", "-i", str(source), "-o", str(tmp_path / "o"), "-m", model)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path / "o") == ["a_x4.png"]


def test_batch_with_a_bad_file(command, source: Path, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    (source.parent / "b [text].png").write_text("no image")
    (source.parent / "c.png").touch()
    Image.new("L", (3, 3)).save(source.parent / "d.gif")
    inputs = ("-i", source.parent, "-i", tmp_path / "missing.png")
    code, out, err = command("upscale", *inputs, "-o", tmp_path / "o", "-m", tiny_pipe_dir)
    assert (code, out) == (2, "")
    assert sorted(os.listdir(tmp_path / "o")) == ["a_x4.png", "d_x4.png"]
    lines = err.splitlines()
    assert lines[-1] == "2 upscaled, 0 skipped, 3 failed." and len(lines) == 4
    for line, name in zip(lines, ("b [text].png", "c.png", "missing.png"), strict=False):
        assert line.startswith("Error: ") and name in line


def test_skip_and_overwrite(command, source: Path, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    old = tmp_path / "o" / "a_x4.png"
    old.write_bytes(b"precious")
    line = ("upscale", "-i", source, "-o", tmp_path / "o", "-m", tiny_pipe_dir)
    code, _, err = command(*line)
    assert code == 2 and "--overwrite" in err and "--skip-existing" in err
    assert command(*line, "--skip-existing") == (0, "", "0 upscaled, 1 skipped, 0 failed.\n")
    code, _, err = command(*line, "--skip-existing", "--overwrite")
    assert (code, err) == (2, "Error: --overwrite and --skip-existing contradict each other; give one of them.\n")
    assert old.read_bytes() == b"precious"
    assert command(*line, "--overwrite") == (0, "", "")
    assert read_image(old).rgb.shape == (20, 24, 3)


def test_options_reach_the_pipeline(command, source: Path, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    def result(*options: object) -> bytes:
        target = tmp_path / f"{len(os.listdir(tmp_path))}.png"
        assert command("upscale", "-i", source, "-o", target, "-m", tiny_pipe_dir, *options)[0] == 0
        return target.read_bytes()

    default = result()
    assert default == result("--seed", 0, "--steps", 2, "--device", "cpu")  # the model was saved with 2 steps
    assert default != result("--seed", 1)
    assert default != result("--steps", 3)
    assert command("upscale", "-i", source, "-o", tmp_path, "-m", tiny_pipe_dir, "--suffix", "-big")[0] == 0
    assert (tmp_path / "a-big.png").read_bytes() == default


def test_notes_are_told(command, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    code, _, err = command("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "-m", tiny_pipe_dir)
    assert (code, err) == (0, f"Note: '{tmp_path / 'a.png'}': 16-bit pixels reduced to 8 bit.\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-i", "{tmp}/no.png", "-o", "{tmp}/o"), "no.png' does not exist"),
        (("-i", "{tmp}/no*.png", "-o", "{tmp}/o"), "No image matches the pattern"),
        (("-i", "{source}", "-o", "{source}", "--overwrite"), "would overwrite itself"),
        (("-i", "{source}", "-o", "{source}/o"), "Cannot make the output folder"),
        (("-i", "{source}", "-o", "{tmp}/o.gif"), "extension must be one of"),
        (("-i", "{source}", "-o", "{tmp}/o", "-m", "nonsense"), "'nonsense' does not exist"),
        (("-i", "{source}", "-o", "{tmp}/o", "-m", "{model}", "--device", "tpu"), "device 'tpu' is not available"),
        (("-i", "{source}", "-o", "{tmp}/o", "-m", "{model}", "--steps", "5000"), "5000"),
        (("-i", "{source}", "-o", "{tmp}/o", "--max-pixels", "29"), "limit of 29"),
    ],
)
def test_one_sentence_and_exit_code_2(
    command, source: Path, tiny_pipe_dir: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    before = source.read_bytes()
    code, out, err = command("upscale", *(o.format(tmp=tmp_path, source=source, model=tiny_pipe_dir) for o in options))
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("Error: ") and words in line and line.endswith(".")
    assert source.read_bytes() == before
    assert all(path in (source, source.parent, tmp_path / "o") for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "options",
    [
        ("-o", "x"),
        ("-i", "x"),
        ("-i", "x", "-o", "y", "--steps", "0"),
        ("--nonsense",),
        ("-i", "x", "-o", "y", "--seed", "-1"),
    ],
)
def test_wrong_usage(command, options: tuple[str, ...]) -> None:
    code, _, err = command("upscale", *options)
    assert code == 2 and "Error: " in err and "Traceback" not in err


def test_a_bad_model_still_tells_of_bad_images(command, source: Path, tmp_path: Path) -> None:
    (source.parent / "b.png").touch()
    code, _, err = command("upscale", "-i", source.parent, "-o", tmp_path / "o", "-m", "nonsense")
    first, count, last = err.splitlines()
    assert code == 2 and "b.png" in first and "'nonsense'" in last
    assert count == "0 upscaled, 0 skipped, 1 failed, 1 not begun or finished."


def test_ctrl_c(command, source: Path, tiny_pipe_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.with_name("b.png").write_bytes(source.read_bytes())

    def interrupted(path: Path, **options: int):
        if path.name == "b.png":
            raise KeyboardInterrupt
        return read_image(path, **options)

    monkeypatch.setattr(samdiffsr.upscale, "read_image", interrupted)
    code, _, err = command("upscale", "-i", source.parent, "-o", tmp_path / "o", "-m", tiny_pipe_dir)
    assert (code, err) == (130, "1 upscaled, 0 skipped, 0 failed, 1 not begun or finished.\n")
    assert os.listdir(tmp_path / "o") == ["a_x4.png"]


def test_progress_bar_on_a_terminal(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from samdiffsr.upscale import Job

    jobs = [Job(Path("[red]a.png"), tmp_path), Job(source, tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
        with upscale._Bar(jobs) as bar:
            bar.update(jobs[0].source, 0.25)
    err = capsys.readouterr().err
    assert "1/2 [red]a.png" in err and "25%" in err
    with upscale._Bar(jobs) as bar:  # no terminal: silence
        bar.update(source, 0.5)
    assert capsys.readouterr().err == ""
