"""Work that any machine can do: the files and the report of `upscale_files`, from paths and from URIs."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from samdiffsr.errors import CheckpointError, ConfigError
from samdiffsr.load import load_model
from samdiffsr.upscale.batch import Progress, Report, upscale_files
from samdiffsr.upscale.cluster import Outcomes, Work, _pipeline, upscale_on_cluster, upscale_work
from samdiffsr.upscale.plan import Job, plan
from samdiffsr.upscale.settings import FileSettings, Settings
from support import contents, noise_image, settings_of

pytest.importorskip("pyarrow")


def run(works: Iterable[Work]):
    """Here, one after the other."""
    return (upscale_work(work) for work in works)


def upscale(
    model: Path, inputs: list[Any], output: Any, *, more: dict[str, Any] | None = None, **options: Any
) -> Report:
    jobs = plan([str(given) for given in inputs], str(output))
    return upscale_on_cluster(run, jobs, *settings_of(options), model=str(model), **(more or {}))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Names with every sign that a URI has a meaning for; a broken file; a GIF, which becomes a PNG and a note."""
    folder = tmp_path / "in"
    for name in ("a b.png", "c#1%20.jpg", "ü.png"):
        noise_image(folder / name)
    first, second = noise_image(folder / "x.gif", "L").read_bytes(), b"broken"
    (folder / "x.gif").write_bytes(first)
    (folder / "d.png").write_bytes(second)
    return folder


@pytest.mark.parametrize("source_uri", [False, True])
@pytest.mark.parametrize("target_uri", [False, True])
def test_same_files_and_report(
    tiny_pipe_dir: Path, photos: Path, tmp_path: Path, source_uri: bool, target_uri: bool
) -> None:
    pipe = load_model(tiny_pipe_dir, "cpu")
    here = upscale_files(lambda: pipe, plan([photos], tmp_path / "one"), Settings(seed=3))
    source, target = photos, tmp_path / "two"
    there = upscale(
        tiny_pipe_dir, [source.as_uri() if source_uri else source], target.as_uri() if target_uri else target, seed=3
    )
    assert contents(tmp_path / "two") == contents(tmp_path / "one") and len(contents(tmp_path / "two")) == 4

    def named(path: str) -> str:
        path = path.replace("/one/", "/two/")
        wanted = source_uri if "/in/" in path else target_uri
        return Path(path).as_uri() if wanted else path

    assert there.done == [Job(named(job.source), named(job.target), job.fixed) for job in here.done]
    assert [source for source, _ in there.failed] == [named(source) for source, _ in here.failed]
    assert [why for _, why in there.failed] == [
        why.replace(f"'{source}'", f"'{named(source)}'") for source, why in here.failed
    ]
    assert len(there.failed) == 1 and named(str(photos / "d.png")) in there.failed[0][1]


def test_existing_targets(tiny_pipe_dir: Path, tmp_path: Path) -> None:
    source = noise_image(tmp_path / "a.png")
    old = tmp_path / "o" / "a_x4.png"
    old.parent.mkdir()
    old.write_bytes(b"precious")
    target = old.parent.as_uri()
    report = upscale(tiny_pipe_dir, [source.as_uri()], target)
    assert (
        report.failed[0][1]
        == f"'{target}/a_x4.png' exists already; give --overwrite to replace it or --skip-existing to keep it."
    )
    away = source.rename(tmp_path / "away.png")  # what is skipped is not even fetched
    report = upscale(tiny_pipe_dir, [source.as_uri()], target, skip_existing=True)
    assert [job.target for job in report.skipped] == [f"{target}/a_x4.png"] and old.read_bytes() == b"precious"
    away.rename(source)
    report = upscale(tiny_pipe_dir, [source.as_uri()], target, overwrite=True)
    assert len(report.done) == 1 and old.read_bytes() != b"precious"
    old.unlink()
    old.mkdir()
    report = upscale(tiny_pipe_dir, [source.as_uri()], target, overwrite=True)
    assert f"'{target}/a_x4.png': it is a folder" in report.failed[0][1]
    assert os.listdir(old.parent) == ["a_x4.png"]


@pytest.mark.parametrize("uri", [False, True])
def test_pictures_that_meet_as_png_are_decided_together(tiny_pipe_dir: Path, tmp_path: Path, uri: bool) -> None:
    folder, target = tmp_path / "in", tmp_path / "o"
    for name in ("a.jpg", "a.jpeg", "b.jpg"):
        noise_image(folder / name, "RGBA", format="PNG")
    source, into = (folder.as_uri(), target.as_uri()) if uri else (str(folder), str(target))
    report = upscale(tiny_pipe_dir, [source], into)
    ((lost, why),) = report.failed
    assert lost == f"{source}/a.jpg"
    assert why == f"'{source}/a.jpeg' and '{source}/a.jpg' would both become '{into}/a_x4.png'; rename one."
    assert [job.target for job in report.done] == [f"{into}/a_x4.png", f"{into}/b_x4.png"]
    report = upscale(tiny_pipe_dir, [source], into, skip_existing=True)
    assert len(report.skipped) == 2 and sorted(os.listdir(target)) == ["a_x4.png", "b_x4.png"]


def test_a_bad_uri_fails_alone_and_leaves_nothing(tiny_pipe_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "o").write_bytes(b"a file")
    source = noise_image(tmp_path / "a.png").as_uri()
    report = upscale(tiny_pipe_dir, [source, "file:///no.png", f"file://{tmp_path}/folder.png"], f"file://{tmp_path}/o")
    assert len(report.failed) == 3 and not report.done
    report = upscale(tiny_pipe_dir, [source, "file:///no.png"], f"file://{tmp_path}/p")
    assert report.failed == [("file:///no.png", "'file:///no.png' does not exist; check the name.")]
    assert os.listdir(tmp_path / "p") == ["a_x4.png"]


def test_what_could_not_be_moved_is_removed(
    tiny_pipe_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target turns into a folder while the work goes on."""
    from samdiffsr.upscale import uris

    source, target, store = noise_image(tmp_path / "a.png"), tmp_path / "o" / "a_x4.png", uris.store

    def meanwhile(file: Path, uri: str) -> None:
        (target / "full").mkdir(parents=True)
        store(file, uri)

    monkeypatch.setattr(uris, "store", meanwhile)
    report = upscale(tiny_pipe_dir, [source], target.parent.as_uri())
    assert report.failed[0][1].startswith(f"Cannot write '{target.as_uri()}': ") and not report.done
    assert os.listdir(target.parent) == ["a_x4.png"] and os.listdir(target) == ["full"]


def test_relative_paths_are_made_absolute_for_workers_elsewhere(
    tiny_pipe_dir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_pipe_dir.parent)
    jobs = plan([os.path.relpath(photos / "a b.png")], os.path.relpath(tmp_path / "o"))

    def elsewhere(works: Iterable[Work]):
        monkeypatch.chdir("/")
        return run(works)

    report = upscale_on_cluster(elsewhere, jobs, model=tiny_pipe_dir.name)
    assert report.done == [Job(str(photos / "a b.png"), str(tmp_path / "o" / "a b_x4.png"))]


def test_progress_model_and_leftovers(tiny_pipe_dir: Path, photos: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    (tmp_path / "o").mkdir()
    leftover = tmp_path / "o" / f".samdiffsr-{'0' * 16}.tmp"
    leftover.touch()
    os.utime(leftover, (0, 0))
    _pipeline.cache_clear()
    kept = Report()
    report = upscale(tiny_pipe_dir, [photos], tmp_path / "o", more={"on_progress": seen.append, "report": kept})
    assert report is kept and len(report.done) == 4
    assert [(now.number, now.total, now.part) for now in seen] == [(1, 5, 0.0), *((n, 5, 1.0) for n in range(1, 6))]
    assert seen[-1].megapixels == pytest.approx(4 * 24 * 20 / 1e6)
    assert _pipeline.cache_info().misses == 1
    assert not leftover.exists()


def test_what_concerns_all_images_is_raised(tiny_pipe_dir: Path, tmp_path: Path) -> None:
    source = noise_image(tmp_path / "a.png")
    with pytest.raises(CheckpointError, match="nonsense"):
        upscale(tmp_path / "nonsense", [source], tmp_path / "o")
    for uri in ("nope://x/a.png", "file://host/a.png"):
        with pytest.raises(ConfigError, match=r"^Cannot use '(nope://x/|file://host/)': [^\n]*; URIs are of file, s3"):
            upscale(tiny_pipe_dir, [uri], tmp_path / "o")
    assert upscale_on_cluster(run, []) == Report()


def test_the_model_is_named_as_every_machine_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path from the root, but a name of the Hub as it is."""
    monkeypatch.chdir(tmp_path)
    source, asked = noise_image(tmp_path / "a.png"), []

    def note(works: list[Work]) -> Outcomes:
        asked.extend(work.model for work in works)
        return ((Report(), 0.0) for _ in works)

    for model in ("default", "me/small@v1.0", "models/mine"):
        (tmp_path / "models").mkdir(exist_ok=True)
        upscale_on_cluster(note, plan([source], tmp_path / "o"), model=model)
    assert asked == ["default", "me/small@v1.0", str(tmp_path / "models/mine")]


@pytest.mark.parametrize("option", ["uncertainty", "save_structure"])
def test_pictures_beside_a_result_are_refused_on_a_cluster(option: str) -> None:
    flag = "--" + option.replace("_", "-")
    with pytest.raises(ConfigError, match=f"{flag} saves no pictures on a cluster; leave out {flag} or --cluster"):
        upscale_on_cluster(lambda works: iter(()), [], files=FileSettings(**{option: True}))
