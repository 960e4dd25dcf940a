"""What happens to a batch with every kind of misfortune in it."""

import errno
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import samdiffsr
from samdiffsr.errors import ConfigError
from samdiffsr.files import is_temporary
from samdiffsr.images import Metadata, Picture, read_image, write_image
from samdiffsr.load import load_model
from samdiffsr.resize import imresize
from samdiffsr.upscale.batch import Progress, Report, upscale_files
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.plan import Job, plan
from samdiffsr.upscale.settings import Settings
from support import noise_image, upscale_with


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 5), (1, 1), (1, 9)])
def test_four_times_larger_and_as_enlarge_makes_it(tiny_pipe: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    source = noise_image(tmp_path / "a.png", size=size)
    report = upscale_with(tiny_pipe, [source], tmp_path / "o", seed=5, steps=3)
    assert report == Report(done=[Job(str(source), str(tmp_path / "o" / "a_x4.png"))])
    assert names(tmp_path / "o") == ["a_x4.png"]
    out = read_image(tmp_path / "o" / "a_x4.png").rgb
    assert out.shape == (4 * size[1], 4 * size[0], 3)
    np.testing.assert_array_equal(out, enlarge(tiny_pipe, read_image(source), Settings(seed=5, steps=3)).rgb)


def test_result_depends_on_the_seed_alone_not_on_the_batch(tiny_pipe: Any, tmp_path: Path) -> None:
    for name in "abc":
        noise_image(tmp_path / "in" / f"{name}.png")
    upscale_with(tiny_pipe, [tmp_path / "in"], tmp_path / "all", seed=1)
    upscale_with(tiny_pipe, [tmp_path / "in" / "c.png"], tmp_path / "one", seed=1)
    upscale_with(tiny_pipe, [tmp_path / "in" / "c.png"], tmp_path / "other", seed=2)
    every, one, other = [(tmp_path / k / "c_x4.png").read_bytes() for k in ("all", "one", "other")]
    assert every == one != other


def test_alpha_is_resized_and_kept_even_if_opaque(tiny_pipe: Any, tmp_path: Path) -> None:
    source = noise_image(tmp_path / "in" / "a.png", "RGBA")
    write_image(Picture(read_image(source).rgb, np.full((5, 6), 255, np.uint8)), tmp_path / "in" / "b.webp")
    upscale_with(tiny_pipe, [tmp_path / "in"], tmp_path / "o")
    alpha = read_image(source).alpha
    assert alpha is not None
    np.testing.assert_array_equal(read_image(tmp_path / "o" / "a_x4.png").alpha, imresize(alpha, scale=4))
    with Image.open(tmp_path / "o" / "a_x4.png") as image:
        assert image.mode == "RGBA"
    opaque = read_image(tmp_path / "o" / "b_x4.webp")
    assert opaque.alpha is None or opaque.alpha.min() == 255  # libwebp itself drops an opaque channel


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_stays_grey_with_its_profile(tiny_pipe: Any, tmp_path: Path, mode: str) -> None:
    source = noise_image(tmp_path / "a.png", mode, icc_profile=b"x" * 200)
    upscale_with(tiny_pipe, [source], tmp_path / "o", seed=0)
    with Image.open(tmp_path / "o" / "a_x4.png") as image:
        assert image.mode == mode and image.info["icc_profile"] == b"x" * 200


def test_metadata_is_kept_or_stripped_but_never_the_profile(tiny_pipe: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    source = noise_image(tmp_path / "a.png", exif=exif, dpi=(300, 300), icc_profile=b"x" * 200)
    upscale_with(tiny_pipe, [source], tmp_path / "kept")
    upscale_with(tiny_pipe, [source], tmp_path / "bare", strip_metadata=True)
    kept, bare = (read_image(tmp_path / folder / "a_x4.png") for folder in ("kept", "bare"))
    assert kept.metadata.exif and b"Camera" in kept.metadata.exif and round(kept.metadata.dpi[0]) == 300
    assert bare.metadata == Metadata() and kept.icc == bare.icc == b"x" * 200


def test_the_settings_stand_in_the_xmp_and_replace_those_of_an_earlier_run(tiny_pipe: Any, tmp_path: Path) -> None:
    mine = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    mine += (
        b'<rdf:Description xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="a &lt;tool&gt;" xmp:Rating="3"/>'
    )
    mine += b"</rdf:RDF></x:xmpmeta>"
    rgb = np.random.default_rng(0).integers(60, 190, (6, 5, 3), dtype=np.uint8)
    write_image(Picture(rgb, metadata=Metadata(xmp=mine)), tmp_path / "a.png")
    upscale_with(tiny_pipe, [tmp_path / "a.png"], tmp_path / "one", seed=7, scale=2, precision="float32")
    upscale_with(
        tiny_pipe, [tmp_path / "one" / "a_x4.png"], tmp_path / "two", detail=0.25, scale=2, precision="float16"
    )
    for file, said in (
        (tmp_path / "one" / "a_x4.png", {"scale": "2", "seed": "7", "steps": "2", "detail": "1"}),
        (tmp_path / "two" / "a_x4_x4.png", {"scale": "2", "seed": "0", "steps": "2", "detail": "0.25"}),
    ):
        root = ElementTree.fromstring(read_image(file).metadata.xmp)
        attributes = [pair for element in root.iter() for pair in element.attrib.items()]
        assert dict(attributes)["{http://ns.adobe.com/xap/1.0/}Rating"] == "3"
        tools = [value for name, value in attributes if name.endswith("}CreatorTool")]
        assert tools == [f"samdiffsr {samdiffsr.__version__}"]
        own = {name.partition("}")[2]: value for name, value in attributes if name.startswith("{urn:samdiffsr:")}
        assert own == said | {"precision": "float32" if said["seed"] == "7" else "float16"}
    noise_image(tmp_path / "b.bmp")
    assert upscale_with(tiny_pipe, [tmp_path / "b.bmp"], tmp_path / "one").notes == []  # a BMP has no place for it


def test_16_bit_in_16_bit_out(tiny_pipe: Any, tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(20_000, 21_000, (4, 5, 3)).astype(np.uint16)
    (tmp_path / "in").mkdir()
    write_image(Picture(rgb), tmp_path / "in" / "a.png")
    report = upscale_with(tiny_pipe, [tmp_path / "in"], tmp_path / "o")
    out = read_image(tmp_path / "o" / "a_x4.png", keep_16_bit=True)
    assert report.notes == [] and out.depth == 16 and len(np.unique(out.rgb % 257)) > 100
    report = upscale_files(lambda: tiny_pipe, plan([tmp_path / "in"], tmp_path / "o", format="jpg"))
    assert [note for _, note in report.notes] == ["16-bit pixels reduced to the 8 bit that .jpg holds"]


def test_notes_reach_the_report(tiny_pipe: Any, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    report = upscale_with(tiny_pipe, [tmp_path / "a.tif"], tmp_path / "o")
    assert report.notes == [(str(tmp_path / "a.tif"), "several frames, only the first is used")]
    assert names(tmp_path / "o") == ["a_x4.tif"]


# --- misfortune ------------------------------------------------------------------------------------------------------


def test_bad_files_do_not_end_the_batch(tiny_pipe: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    noise_image(folder / "a.png")
    noise_image(folder / "z.jpg")
    (folder / "b_empty.png").touch()
    (folder / "c_text.png").write_text("no image")
    whole = noise_image(folder / "d_cut.png", size=(40, 40)).read_bytes()
    (folder / "d_cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "e_lost.png").symlink_to("nowhere")
    noise_image(folder / "f_large.png", size=(50, 50))
    report = upscale_with(tiny_pipe, [folder, tmp_path / "g_missing.png"], tmp_path / "o", max_pixels=2000)
    assert names(tmp_path / "o") == ["a_x4.png", "z_x4.jpg"]
    assert [Path(job.source).name for job in report.done] == ["a.png", "z.jpg"]
    words = {Path(source).name: message for source, message in report.failed}
    expected = {
        "b_empty.png": "0 bytes",
        "c_text.png": "not an image",
        "d_cut.png": "is incomplete",
        "e_lost.png": "does not exist",
        "f_large.png": "--max-pixels",
        "g_missing.png": "does not exist",
    }
    assert words.keys() == expected.keys()
    for name, part in expected.items():
        assert part in words[name] and str(tmp_path) in words[name] and words[name].endswith(".")


def test_existing_targets(tiny_pipe: Any, tmp_path: Path) -> None:
    a, b = noise_image(tmp_path / "a.png"), noise_image(tmp_path / "b.png")
    (tmp_path / "o").mkdir()
    old = tmp_path / "o" / "a_x4.png"
    old.write_bytes(b"precious")
    report = upscale_with(tiny_pipe, [a, b], tmp_path / "o")
    ((source, message),) = report.failed
    assert source == str(a) and "--overwrite" in message and "--skip-existing" in message and str(old) in message
    assert old.read_bytes() == b"precious" and [job.source for job in report.done] == [str(b)]

    report = upscale_with(tiny_pipe, [a, b], tmp_path / "o", skip_existing=True)
    assert [job.source for job in report.skipped] == [str(a), str(b)] and not report.done and not report.failed
    assert old.read_bytes() == b"precious"

    report = upscale_with(tiny_pipe, [a, b], tmp_path / "o", overwrite=True)
    assert len(report.done) == 2 and read_image(old).rgb.shape == (20, 24, 3)
    with pytest.raises(ConfigError, match="overwrite and skip_existing contradict"):
        upscale_with(tiny_pipe, [a], tmp_path / "o", overwrite=True, skip_existing=True)


def test_target_that_appears_meanwhile_is_not_overwritten(tiny_pipe: Any, tmp_path: Path) -> None:
    source, target = noise_image(tmp_path / "a.png"), tmp_path / "o" / "a_x4.png"

    def appear(now: Progress) -> None:
        if now.part > 0 and not target.exists():
            target.write_bytes(b"precious")

    report = upscale_with(tiny_pipe, [source], tmp_path / "o", on_progress=appear)
    assert "exists already" in report.failed[0][1] and target.read_bytes() == b"precious"
    target.unlink()
    report = upscale_with(tiny_pipe, [source], tmp_path / "o", on_progress=appear, skip_existing=True)
    assert len(report.skipped) == 1 and not report.failed and target.read_bytes() == b"precious"


def test_target_is_a_folder(tiny_pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "o" / "a_x4.png").mkdir(parents=True)
    for switch in ("overwrite", "skip_existing"):
        report = upscale_with(tiny_pipe, [noise_image(tmp_path / "a.png")], tmp_path / "o", **{switch: True})
        assert "is a folder" in report.failed[0][1] and not report.skipped


def not_needed() -> Any:
    raise AssertionError("a model was loaded")


def test_output_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    jobs = plan([noise_image(tmp_path / "a.png")], tmp_path / "file" / "o")
    report = upscale_files(not_needed, jobs)
    assert re.search(
        r"Cannot make the folder '.*file/o': a file is in its place; choose another output\.",
        report.failed[0][1],
    )


def test_nothing_is_made_or_loaded_when_nothing_can_be_done(tmp_path: Path) -> None:
    Image.new("L", (4096, 1)).save(tmp_path / "a.webp")
    noise_image(tmp_path / "b.png", "RGBA")
    jobs = [
        *plan([tmp_path / "no.png", tmp_path / "a.webp"], tmp_path / "o"),
        *plan([tmp_path / "b.png"], tmp_path / "o" / "b.jpg"),
    ]
    report = upscale_files(not_needed, jobs)
    words = [message for _, message in report.failed]
    assert "does not exist" in words[0] and "16384x4" in words[1] and "transparency" in words[2]
    assert names(tmp_path) == ["a.webp", "b.png"]


def test_transparent_pictures_become_png(tiny_pipe: Any, tmp_path: Path) -> None:
    noise_image(tmp_path / "in" / "misnamed.jpg", "RGBA", format="PNG")
    noise_image(tmp_path / "in" / "misnamed2.jpg", "RGB", format="PNG")
    report = upscale_with(tiny_pipe, [tmp_path / "in"], tmp_path / "o")
    assert names(tmp_path / "o") == ["misnamed2_x4.jpg", "misnamed_x4.png"] and not report.failed
    assert [Path(job.target).name for job in report.done] == ["misnamed_x4.png", "misnamed2_x4.jpg"]
    assert len(upscale_with(tiny_pipe, [tmp_path / "in"], tmp_path / "o", skip_existing=True).skipped) == 2


def test_a_picture_that_becomes_png_takes_no_other_ones_place(tiny_pipe: Any, tmp_path: Path) -> None:
    noise_image(tmp_path / "in" / "a.jpg", "RGBA", format="PNG")
    noise_image(tmp_path / "in" / "a.jpeg", "RGBA", format="PNG")
    report = upscale_with(tiny_pipe, [tmp_path / "in"], tmp_path / "o", overwrite=True)
    assert len(report.done) == 1 and "would both become" in report.failed[0][1]
    noise_image(tmp_path / "in" / "a.png")
    report = upscale_with(tiny_pipe, [tmp_path / "in"], tmp_path / "o", overwrite=True)
    assert [Path(job.source).name for job in report.done] == ["a.png"] and len(report.failed) == 2


def test_disk_full(tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    report = upscale_with(tiny_pipe, [noise_image(tmp_path / "a.png")], tmp_path / "o")
    assert "No space left on device" in report.failed[0][1] and names(tmp_path / "o") == []


@pytest.mark.parametrize("kind", ["python", "torch"])
def test_out_of_memory_fails_one_image(
    tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    noise_image(tmp_path / "in" / "a.png", size=(9, 8))
    noise_image(tmp_path / "in" / "b.png")
    forward = tiny_pipe.denoiser.forward

    def greedy(x_t: torch.Tensor, *rest: Any) -> Any:
        if x_t.shape[3] >= 36:
            bytearray(2**60) if kind == "python" else torch.empty(2**58)  # real refusals
        return forward(x_t, *rest)

    monkeypatch.setattr(tiny_pipe.denoiser, "forward", greedy)
    report = upscale_with(tiny_pipe, [tmp_path / "in"], tmp_path / "o")
    assert names(tmp_path / "o") == ["b_x4.png"]
    ((source, message),) = report.failed
    assert Path(source).name == "a.png" and "Not enough memory" in message and "9x8" in message


def test_smaller_tiles_after_lack_of_memory_are_told(
    tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = noise_image(tmp_path / "a.png", size=(96, 40))
    upscale_with(tiny_pipe, [source], tmp_path / "whole", tile=0)
    forward = tiny_pipe.denoiser.forward

    def greedy(x_t: torch.Tensor, *rest: Any) -> Any:
        if x_t.shape[3] >= 4 * 96:
            torch.empty(2**58)
        return forward(x_t, *rest)

    monkeypatch.setattr(tiny_pipe.denoiser, "forward", greedy)
    report = upscale_with(tiny_pipe, [source], tmp_path / "o")
    ((_, note),) = report.notes
    assert "memory ran out" in note and not note.endswith(".")
    whole, tiled = (read_image(tmp_path / folder / "a_x4.png").rgb.astype(int) for folder in ("whole", "o"))
    assert np.abs(whole - tiled).max() <= 1


def test_a_bug_is_not_taken_for_a_bad_image(tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("sizes of tensors must match")

    monkeypatch.setattr(tiny_pipe.denoiser, "forward", broken)
    with pytest.raises(RuntimeError, match="must match"):
        upscale_with(tiny_pipe, [noise_image(tmp_path / "a.png")], tmp_path / "o")


@pytest.mark.parametrize("steps", [0, -1, 10_000])
def test_impossible_steps_end_the_batch(tiny_pipe: Any, tmp_path: Path, steps: int) -> None:
    with pytest.raises(ConfigError, match=str(steps)):
        upscale_with(tiny_pipe, [noise_image(tmp_path / "a.png")], tmp_path / "o", steps=steps)


def test_ctrl_c_leaves_whole_files_only(tiny_pipe: Any, tmp_path: Path) -> None:
    for name in "abc":
        noise_image(tmp_path / "in" / f"{name}.png", size=(33, 32))  # too large to be enlarged together

    def interrupt(now: Progress) -> None:
        if now.number == 2 and now.part > 0.4:
            raise KeyboardInterrupt

    report = Report()
    with pytest.raises(KeyboardInterrupt):
        upscale_with(tiny_pipe, [tmp_path / "in"], tmp_path / "o", on_progress=interrupt, report=report)
    assert names(tmp_path / "o") == ["a_x4.png"] and len(report.done) == 1


def test_killed_and_begun_again(tiny_pipe_dir: Path, tmp_path: Path) -> None:
    """A process killed without warning; the next one goes on and ends with the same bytes."""
    for name in ("a", "x/b", "x/c"):
        noise_image(tmp_path / "in" / f"{name}.png", size=(33, 32))  # too large to be enlarged together
    script = f"""
        import os
        from samdiffsr.load import load_model
        from samdiffsr.upscale.batch import upscale_files
        from samdiffsr.upscale.plan import plan
        kill = lambda now: os._exit(9) if now.number == 3 else None
        jobs = plan([{str(tmp_path / "in")!r}], {str(tmp_path / "o")!r}, recursive=True)
        upscale_files(lambda: load_model({str(tiny_pipe_dir)!r}, "cpu"), jobs, on_progress=kill)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == 9 and (tmp_path / "o" / "a_x4.png").is_file()
    assert not (tmp_path / "o" / "x" / "c_x4.png").exists()
    old, fresh = (tmp_path / "o" / "x" / f".samdiffsr-{c * 16}.tmp" for c in "01")
    for file in (old, fresh):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    os.utime(old, (0, 0))
    pipe = load_model(tiny_pipe_dir, "cpu")
    report = upscale_with(pipe, [tmp_path / "in"], tmp_path / "o", tree=True, skip_existing=True)
    assert len(report.done) + len(report.skipped) == 3 and report.done and report.skipped
    assert not old.exists() and fresh.exists()  # the fresh one may be of a process that is still at work
    fresh.unlink()
    upscale_with(pipe, [tmp_path / "in"], tmp_path / "p", tree=True)
    ours, theirs = (
        {str(f.relative_to(r)): f.read_bytes() for f in r.rglob("*.*") if not is_temporary(f.name)}
        for r in (tmp_path / "o", tmp_path / "p")
    )
    assert ours == theirs and len(ours) == 3


def test_progress_counts_images_and_output_pixels(tiny_pipe: Any, tmp_path: Path) -> None:
    a, b = noise_image(tmp_path / "a.png", size=(2, 3)), noise_image(tmp_path / "b.png", size=(6, 3))
    (tmp_path / "bad.png").touch()
    seen: list[Progress] = []
    upscale_with(tiny_pipe, [a, tmp_path / "bad.png", b], tmp_path / "o", steps=2, on_progress=seen.append)
    assert [(now.number, now.part) for now in seen] == [
        *[(1, part) for part in (0, 1 / 3, 2 / 3, 1, 1)],
        *[(2, part) for part in (0, 1)],
        *[(3, part) for part in (0, 1 / 3, 2 / 3, 1, 1)],
    ]
    assert {now.total for now in seen} == {3} and seen[0].source == str(a)
    pixels = [round(1e6 * now.megapixels) for now in seen]
    assert pixels == [0, 32, 64, 96, 96, 96, 96, 96, 96 + 96, 96 + 192, 96 + 288, 96 + 288]


def test_the_report_keeps_the_order_of_the_jobs(tiny_pipe: Any, tmp_path: Path) -> None:
    """A result that cannot be written comes before the next file that cannot be read, though it is found out later."""
    for name in ("a", "b", "c", "d" * 250, "e", "f"):
        noise_image(tmp_path / "in" / f"{name}.png")
        if name in "be":
            (tmp_path / "in" / f"{name}.png").write_text("no image")
    report = upscale_with(tiny_pipe, [tmp_path / "in"], tmp_path / "o")
    assert [Path(job.source).stem for job in report.done] == list("acf")
    assert [Path(source).stem[0] for source, _ in report.failed] == list("bde")


def test_model_from_a_folder(tiny_pipe: Any, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    source = noise_image(tmp_path / "a.png")
    upscale_with(load_model(str(tiny_pipe_dir), "cpu"), [source], tmp_path / "o")
    upscale_with(tiny_pipe, [source], tmp_path / "p")
    assert (tmp_path / "o" / "a_x4.png").read_bytes() == (tmp_path / "p" / "a_x4.png").read_bytes()
