"""The command line as a user meets it: exit codes, one-sentence errors, and a help text that comes at once."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import samdiffsr.upscale.batch
from samdiffsr import __version__
from samdiffsr.cli import VERBS, app, main, upscale
from samdiffsr.cli.options import key_values
from samdiffsr.errors import ConfigError
from samdiffsr.images import MAX_PIXELS, read_image
from samdiffsr.upscale.enlarge import enlarge_together
from samdiffsr.upscale.settings import FileSettings, Settings


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
    modules = {path.stem for path in folder.glob("*.py") if "def register(" in path.read_text()}
    assert {verb.__name__.rpartition(".")[2] for verb in VERBS} == modules
    assert {command.name for command in app.registered_commands} == modules


def test_verb_help_explains_every_option(command) -> None:
    code, out, _ = command("upscale", "-h")
    text = " ".join(out.split())
    settings = [
        (field.name.replace("_", "-"), field.metadata["help"])
        for kind in (Settings, FileSettings)
        for field in fields(kind)
    ]
    others = ("input", "input-list", "output", "model", "device", "recursive", "suffix", "cluster")
    assert code == 0 and all(f"--{option} " in out for option in others)
    assert all(f"--{option} " in text and help in text for option, help in settings)
    assert f"[default: {MAX_PIXELS}]" in text


def test_key_values() -> None:
    assert key_values(["a=1", "b=x=y", "a=2"]) == {"a": "2", "b": "x=y"}
    for text in ("a", "=1"):
        with pytest.raises(ConfigError, match="KEY=VALUE"):
            key_values([text])


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


def test_names_that_are_no_utf_8_do_not_end_a_verb_at_its_last_words(source: Path, tmp_path: Path) -> None:
    line = ("-m", "samdiffsr", "masks", "-i", source.parent, "-o", tmp_path / os.fsdecode(b"o\xff"))
    call = [sys.executable, *map(str, line), "--segmenter", "felzenszwalb"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1 made, 0 there before, 0 failed; masks in {tmp_path}/o\\udcff\n"


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
    assert (code, out) == (1, "")
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
    assert code == 1 and "--overwrite" in err and "--skip-existing" in err
    assert command(*line, "--skip-existing") == (0, "", "0 upscaled, 1 skipped, 0 failed.\n")
    code, _, err = command(*line, "--skip-existing", "--overwrite")
    assert (code, err) == (2, "Error: overwrite and skip_existing contradict each other; give one of them.\n")
    assert old.read_bytes() == b"precious"
    assert command(*line, "--overwrite") == (0, "", "")
    assert read_image(old).rgb.shape == (20, 24, 3)


def test_options_reach_the_pipeline(command, source: Path, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    def result(*options: object) -> bytes:
        target = tmp_path / f"{len(os.listdir(tmp_path))}.png"
        assert command("upscale", "-i", source, "-o", target, "-m", tiny_pipe_dir, *options)[0] == 0
        return read_image(target).rgb.tobytes()  # the settings themselves stand in the file

    default = result()
    assert default == result("--seed", 0, "--steps", 2, "--device", "cpu")  # the model was saved with 2 steps
    assert default != result("--seed", 1)
    assert default != result("--steps", 3)
    assert default == result("--detail", 1)
    assert default != result("--detail", 0.5)
    assert default == result("--clean", "auto") == result("--clean", 0)  # the model takes no level
    assert command("upscale", "-i", source, "-o", tmp_path, "-m", tiny_pipe_dir, "--suffix", "-big")[0] == 0
    assert read_image(tmp_path / "a-big.png").rgb.tobytes() == default


def test_size_format_and_tree(command, source: Path, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    deep = tmp_path / "in" / "x" / "b.png"
    deep.parent.mkdir()
    deep.write_bytes(source.read_bytes())

    def made(*options: object) -> dict[str, tuple[int, int]]:
        target = tmp_path / f"o{len(os.listdir(tmp_path))}"
        line = ("upscale", "-i", tmp_path / "in", "-o", target, "-m", tiny_pipe_dir)
        assert command(*line, *options)[0] == 0
        return {
            str(path.relative_to(target)): read_image(path).rgb.shape[1::-1]
            for path in sorted(target.rglob("*"))
            if path.is_file()
        }

    assert made("-r", "-s", "2.5") == {"a_x2.5.png": (15, 13), "x/b_x2.5.png": (15, 13)}
    assert made("--size", "30x", "--format", "webp", "--quality", "50") == {"a_30x.webp": (30, 25)}
    assert made("--size", "x10", "--suffix", "") == {"a.png": (12, 10)}
    assert made("--consistency", "--strip-metadata", "-t", "8") == {"a_x4.png": (24, 20)}


def test_inputs_need_no_option(command, source: Path, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    other, third = (source.with_name(name) for name in ("b.png", "c.png"))
    for path in (other, third):
        path.write_bytes(source.read_bytes())
    line = ("upscale", source, other, "-o", tmp_path / "o", "-m", tiny_pipe_dir, "-i", third)
    assert command(*line)[0] == 0
    assert sorted(os.listdir(tmp_path / "o")) == ["a_x4.png", "b_x4.png", "c_x4.png"]


def test_a_list_of_inputs(command, source: Path, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    odd = source.with_name("b [1].png")
    odd.write_bytes(source.read_bytes())
    (tmp_path / "list").write_text(f"{source}\r\n\n{odd}\n{tmp_path}/c [2].png")
    line = ("upscale", "-o", tmp_path / "o", "-m", tiny_pipe_dir, "--input-list")
    code, _, err = command(*line, tmp_path / "list")
    assert code == 1 and "c [2].png' does not exist" in err and err.endswith("2 upscaled, 0 skipped, 1 failed.\n")
    assert sorted(os.listdir(tmp_path / "o")) == ["a_x4.png", "b [1]_x4.png"]
    call = [sys.executable, "-m", "samdiffsr", *map(str, line), "-", "-i", str(source), "--skip-existing"]
    done = subprocess.run(call, input=f"{odd}\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "0 upscaled, 2 skipped, 0 failed.\n")


def test_notes_are_told(command, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    code, _, err = command("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "b.jpg", "-m", tiny_pipe_dir)
    assert (code, err) == (0, f"Note: '{tmp_path / 'a.png'}': 16-bit pixels reduced to the 8 bit that .jpg holds.\n")


def test_options_without_effect_are_told(command, source: Path, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    def told(output: str, *options: str) -> str:
        line = ("upscale", source, "-o", tmp_path / output, "-m", tiny_pipe_dir, "--overwrite", *options)
        code, out, err = command(*line)
        assert (code, out) == (0, "")
        return err

    no_quality = "--quality is ignored, for no output is JPEG, WebP, AVIF or JPEG XL"
    no_suffix = "--suffix is ignored, for the output is one file"
    assert told("b.png", "--quality", "90", "--suffix", "_big") == f"Note: {no_quality}; {no_suffix}.\n"
    assert told("o", "--quality", "90", "--suffix", "_big") == f"Note: {no_quality}.\n"
    assert told("b.JPG", "--quality", "90", "--suffix", "") == f"Note: {no_suffix}.\n"
    assert told("o", "--quality", "90", "--format", "webp") == "" == told("b.png")


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (1, ("-i", "{tmp}/no.png", "-o", "{tmp}/o"), "no.png' does not exist"),
        (
            2,
            ("-i", "{source}", "-o", "{source}/o"),
            "a.png/o': '{tmp}/in/a.png' is not a folder; choose another output.",
        ),
        (2, ("-i", "{source}", "-o", "{source}/o.png"), "a.png/o.png': '{tmp}/in/a.png' is not a folder; choose"),
        (
            2,
            ("-i", "{source}", "-o", os.devnull),
            f"Cannot write to '{os.devnull}': it is not a folder, and pictures can",
        ),
        (2, ("-i", "{source}", "-o", ""), "The output has an empty name; give a folder, or a file for one input."),
        (2, ("-i", "", "-o", "{tmp}/o"), "An input has an empty name; give an image, a folder or a pattern."),
        (2, ("-i", "a.mp4", "-o", ""), "The output has an empty name; give a folder or a file."),
        (1, ("-i", "{source}", "-o", "{tmp}/o", "--max-pixels", "29"), "limit of 29"),
        (1, ("-i", "{source}", "-o", "{tmp}/o", "--max-pixels", "30", "-s", "4.1"), "goes through 96x80"),
        (
            1,
            ("-i", "{source}", "-o", "{tmp}/o", "--size", "3x"),
            "a.png': The picture has 6x5 pixels, so 3x3 would shrink",
        ),
        (1, ("-i", "{source}", "-o", "{tmp}/o", "--size", "24x10"), "would distort it; give one side, as in 24x"),
        (2, ("-i", "{tmp}/no*.png", "-o", "{tmp}/o"), "No image matches the pattern"),
        (2, ("-i", "{source}", "-o", "{source}", "--overwrite"), "would overwrite itself"),
        (2, ("-i", "{source}", "-o", "{tmp}/o.gif"), "extension must be one of"),
        (2, ("-i", "{source}", "-o", "{tmp}/o", "-m", "nonsense"), "'nonsense' does not exist"),
        (2, ("-i", "{source}", "-o", "{tmp}/o", "-m", "{model}", "--device", "tpu"), "device 'tpu' is not available"),
        (2, ("-i", "{source}", "-o", "{tmp}/o", "-m", "{model}", "--steps", "5000"), "5000"),
        (2, ("-i", "{source}", "-o", "{tmp}/o", "-s", "0.5"), "The scale is 0.5, but must be from 1 to 16"),
        (2, ("-i", "{source}", "-o", "{tmp}/o", "-m", "{model}", "--clean", "0.5"), "was not trained to clean"),
        (2, ("-i", "{source}", "-o", "{tmp}/o", "--clean", "2"), "clean is 2.0, but must be a number from 0 to 1"),
        (2, ("-i", "{source}", "-o", "{tmp}/o", "--clean", "1", "--consistency"), "consistency brings back the noise"),
        (2, ("-i", "{source}", "-o", "{tmp}/o", "-s", "2", "--size", "9x"), "contradict each other"),
        (2, ("-i", "{source}", "-o", "{tmp}/o", "--size", "big"), "must look like 1920x1080"),
        (2, ("-i", "{source}", "-o", "{tmp}/o", "--format", "gif"), "format is 'gif'"),
        (2, ("-i", "s3://photos/a.png", "-o", "{tmp}/o"), "'s3://photos/a.png' is a URI, which takes --cluster"),
        (2, ("-i", "{source}", "-o", "s3://photos"), "'s3://photos' is a URI, which takes --cluster"),
        (2, ("--input-list", "{tmp}/no", "-o", "{tmp}/o"), "Cannot read the list '{tmp}/no': No such file"),
        (2, ("-i", "{source}", "-o", "{tmp}/o", "--cluster", "local", "--device", "cuda:1"), "give cuda."),
    ],
)
def test_one_sentence_and_exit_code(
    command, source: Path, tiny_pipe_dir: Path, tmp_path: Path, code: int, options: tuple[str, ...], words: str
) -> None:
    """1: an image failed. 2: nothing could be begun."""
    before = source.read_bytes()
    line = (option.format(tmp=tmp_path, source=source, model=tiny_pipe_dir) for option in options)
    ended, out, err = command("upscale", *line)
    assert (ended, out) == (code, "")
    (line,) = err.splitlines()
    assert line.startswith("Error: ") and words.format(tmp=tmp_path) in line and line.endswith(".")
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
        ("-i", "x", "-o", "y", "--clean", "much"),
    ],
)
def test_wrong_usage(command, options: tuple[str, ...]) -> None:
    code, _, err = command("upscale", *options)
    assert code == 2 and "Error: " in err and "Traceback" not in err


def test_a_bad_model_still_tells_of_bad_images(command, source: Path, tmp_path: Path) -> None:
    source.with_name("A.png").touch()  # comes first
    code, _, err = command("upscale", "-i", source.parent, "-o", tmp_path / "o", "-m", "nonsense")
    first, count, last = err.splitlines()
    assert code == 2 and "A.png" in first and "'nonsense'" in last
    assert count == "0 upscaled, 0 skipped, 1 failed, 1 not finished."


def test_ctrl_c(command, source: Path, tiny_pipe_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (3, 2)).save(source.with_name("b.png"))  # of another size: not enlarged together

    calls = []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return enlarge_together(*arguments, **options)

    monkeypatch.setattr(samdiffsr.upscale.batch, "enlarge_together", interrupted)
    code, _, err = command("upscale", "-i", source.parent, "-o", tmp_path / "o", "-m", tiny_pipe_dir)
    assert (code, err) == (130, "1 upscaled, 0 skipped, 0 failed, 1 not finished.\n")
    assert os.listdir(tmp_path / "o") == ["a_x4.png"]


def test_progress_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from samdiffsr.upscale.batch import Progress

    now = Progress("folder/[red]a.png", 2, 4, 0.5, 1.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
        patch.setenv("COLUMNS", "120")
        with upscale._Bar() as bar:
            bar.update(now)
    err = capsys.readouterr().err
    assert "2/4 [red]a.png" in err and "38%" in err and "MP/s" in err
    with upscale._Bar() as bar:  # no terminal: silence
        bar.update(now)
    assert capsys.readouterr().err == ""
