"""Files and folders appear completely or not at all, whatever goes wrong; what a killed process left is removed later."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from samdiffsr.errors import ConfigError, SamDiffSRError
from samdiffsr.files import (
    IDLE_SECONDS,
    check_place,
    is_temporary,
    make_folder,
    sweep,
    temporary_name,
    whole_file,
    whole_folder,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def make_old(path: Path, seconds: float = IDLE_SECONDS + 60) -> None:
    for one in (path, *path.rglob("*")):
        os.utime(one, (one.stat().st_atime, one.stat().st_mtime - seconds))


def test_a_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"former")
    with whole_file(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"former"
        (other,) = set(names(tmp_path)) - {"a"}
        assert is_temporary(other)
    assert target.read_bytes() == b"new" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("failure", [ValueError("mine"), KeyboardInterrupt()])
def test_a_failed_block_leaves_the_former_file_and_folder(tmp_path: Path, failure: BaseException) -> None:
    (tmp_path / "a").write_bytes(b"former")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").touch()

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise failure

    with pytest.raises(type(failure)), whole_file(tmp_path / "a") as file:
        fail(Path(file.name))
    with pytest.raises(type(failure)), whole_folder(tmp_path / "b") as fresh:
        fail(fresh / "d")
    assert names(tmp_path) == ["a", "b"] and names(tmp_path / "b") == ["c"]
    assert (tmp_path / "a").read_bytes() == b"former"


def test_one_sentence_for_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught, whole_file(tmp_path / "no" / "a", error=ConfigError):
        pass
    assert (
        str(caught.value)
        == f"Cannot write '{tmp_path}/no/a': the folder '{tmp_path}/no' does not exist; make it first."
    )
    with pytest.raises(SamDiffSRError, match="file/a': Not a directory; choose another output"):
        write_json({}, tmp_path / "file" / "a")
    with (
        pytest.raises(ConfigError, match=r"Cannot write '.*file/a'"),
        whole_folder(tmp_path / "file/a", error=ConfigError),
    ):
        pass
    with (
        pytest.raises(SamDiffSRError, match=r"a': No space left on device; free some space\."),
        whole_file(tmp_path / "a"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == ["file"]


def test_a_place_is_tried_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_place(tmp_path / "new" / "folder", is_folder=True)
    check_place(tmp_path / "new" / "a.png", is_folder=False)
    check_place(tmp_path / "file", is_folder=False)
    for path, is_folder in (
        (tmp_path / "file", True),
        (tmp_path / "file" / "b" / "c", True),
        (tmp_path / "file/c", False),
    ):
        with pytest.raises(ConfigError) as caught:
            check_place(path, is_folder=is_folder, error=ConfigError)
        assert (
            str(caught.value) == f"Cannot write to '{path}': '{tmp_path}/file' is not a folder; choose another output."
        )
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to")
def test_a_place_of_the_system_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^Cannot write to '/proc/self/a/b': no file can be made in '/proc/self' \(.*\);"
    ):
        check_place(Path("/proc/self/a/b"), is_folder=True, error=ConfigError)


def test_a_folder_is_made_or_one_sentence_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    for folder in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(ConfigError) as caught:
            make_folder(folder, error=ConfigError)
        assert str(caught.value) == f"Cannot make the folder '{folder}': a file is in its place; choose another output."
    assert names(tmp_path) == ["a", "file"] and names(tmp_path / "a") == ["b"]


def test_a_folder_replaces_the_former_one_or_adds_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "y"
    for number in range(2):
        with whole_folder(folder) as fresh:
            (fresh / f"{number}").touch()
        assert names(folder) == [f"{number}"]
    with whole_folder(folder, add=True) as fresh:
        (fresh / "2").touch()
    assert names(folder) == ["1", "2"] and names(tmp_path / "x") == ["y"]


def test_killed_between_the_renames(tmp_path: Path) -> None:
    """The former folder has its other name, and the new one is not there yet."""
    script = f"""
        import os
        from pathlib import Path
        from samdiffsr import files
        folder = Path({str(tmp_path / "m")!r})
        with files.whole_folder(folder) as fresh:
            (fresh / "first").touch()
        rename, calls = os.replace, []
        def replace(*names):
            calls.append(names)
            rename(*names) if len(calls) == 1 else os._exit(9)
        os.replace = replace
        with files.whole_folder(folder) as fresh:
            (fresh / "second").touch()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == 9 and not (tmp_path / "m").exists()
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "m"):
        raise KeyboardInterrupt
    assert names(tmp_path / "m") == ["first"]
    for leftover in tmp_path.glob(".samdiffsr-*"):
        make_old(leftover)
    with whole_folder(tmp_path / "m") as fresh:
        (fresh / "third").touch()
    assert names(tmp_path) == ["m"] and names(tmp_path / "m") == ["third"]


def test_sweep_takes_only_what_is_ours_and_idle(tmp_path: Path) -> None:
    old_file, new_file, old_folder, busy_folder = (tmp_path / temporary_name() for _ in range(4))
    for file in (old_file, new_file, tmp_path / ".samdiffsr-1.tmp", tmp_path / "a.tmp"):
        file.touch()
    for folder in (old_folder, busy_folder):
        (folder / "in").mkdir(parents=True)
        (folder / "in" / "file").touch()
    for path in (old_file, old_folder, busy_folder, tmp_path / ".samdiffsr-1.tmp", tmp_path / "a.tmp"):
        make_old(path)
    os.utime(busy_folder / "in" / "file")
    sweep(tmp_path)
    assert set(names(tmp_path)) == {new_file.name, busy_folder.name, ".samdiffsr-1.tmp", "a.tmp"}
    sweep(tmp_path, idle_seconds=0)
    assert names(tmp_path) == [".samdiffsr-1.tmp", "a.tmp"]
    sweep(tmp_path / "nowhere")


def test_json(tmp_path: Path) -> None:
    write_json({"a": [1]}, tmp_path / "a.json", indent=1)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [1]} and text.endswith("}\n")


def test_nothing_else_renames_or_names_unfinished_files() -> None:
    """The ONNX runner is copied beside its files and imports nothing of this package."""
    source = Path(__file__).parents[1] / "src" / "samdiffsr"
    users = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if "os.replace" in (text := path.read_text()) or ".tmp" in text
    }
    assert users == {"files.py", "export/run_onnx.py"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows itself refuses it")
def test_only_what_is_open_for_writing_is_flushed_as_windows_demands(tmp_path: Path, monkeypatch) -> None:
    import fcntl

    flushed = []

    def fsync(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "FlushFileBuffers needs write access")
        flushed.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_folder(tmp_path / "folder") as fresh:
        (fresh / "a").write_bytes(b"content")
    write_json({}, tmp_path / "b.json")
    assert len(flushed) == 2 and names(tmp_path) == ["b.json", "folder"]
