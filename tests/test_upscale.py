"""Which file becomes which, and what happens to a batch with every kind of misfortune in it."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr.errors import CheckpointError, ConfigError, ImageError
from samdiffsr.images import Picture, read_image, write_image
from samdiffsr.resize import imresize
from samdiffsr.upscale import Job, Report, find_device, load_model, plan, sift, upscale_files

RNG = np.random.default_rng(3)
CHECKPOINT = Path(__file__).parent / "data" / "golden" / "released_small.ckpt"


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 5), **options: Any) -> Path:
    """Write a small noise image of width and height `size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = RNG.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.frombytes(mode, size, pixels.tobytes()).save(path, **options)
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- plan ------------------------------------------------------------------------------------------------------------


def test_file_to_folder_takes_the_suffix(tmp_path: Path) -> None:
    source = picture(tmp_path / "cat.jpg")
    assert plan([source], tmp_path / "out", "_big") == [Job(source, tmp_path / "out" / "cat_big.jpg")]
    assert names(tmp_path) == ["cat.jpg"]  # planning writes nothing


def test_file_to_file_takes_the_name_as_it_is(tmp_path: Path) -> None:
    source = picture(tmp_path / "cat.jpg")
    assert plan([str(source)], str(tmp_path / "dog.PNG"), "_big") == [Job(source, tmp_path / "dog.PNG")]


def test_a_folder_may_look_like_an_image(tmp_path: Path) -> None:
    source = picture(tmp_path / "cat.jpg")
    (tmp_path / "out.png").mkdir()
    assert plan([source], tmp_path / "out.png")[0].target == tmp_path / "out.png" / "cat_x4.jpg"


def test_folder_gives_its_images_sorted_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("c.png", "a.PNG", "b.webp", "sub/d.png", ".hidden.png"):
        picture(folder / name)
    (folder / "notes.txt").touch()
    (folder / "e.png").mkdir()
    (folder / "lost.png").symlink_to("nowhere")
    jobs = plan([folder], tmp_path / "out")
    assert [job.source.name for job in jobs] == ["a.PNG", "b.webp", "c.png", "lost.png"]
    assert [job.target.name for job in jobs] == ["a_x4.PNG", "b_x4.webp", "c_x4.png", "lost_x4.png"]


def test_pattern(tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "b1.png", "a3.txt/x.png"):
        picture(tmp_path / name)
    assert [job.source.name for job in plan([f"{tmp_path}/a*"], tmp_path / "o")] == ["a1.png", "a2.png"]
    assert [job.source.name for job in plan([f"{tmp_path}/?1.png"], tmp_path / "o")] == ["a1.png", "b1.png"]
    with pytest.raises(ImageError, match=r"No image matches the pattern '.*z\*\.png'"):
        plan([f"{tmp_path}/z*.png"], tmp_path / "o")


def test_a_name_with_brackets_is_a_name_first(tmp_path: Path) -> None:
    picture(tmp_path / "a1.png")
    source = picture(tmp_path / "a[1].png")
    assert [job.source for job in plan([source], tmp_path / "o")] == [source]


def test_several_inputs_keep_their_order_and_count_once(tmp_path: Path) -> None:
    a, b = picture(tmp_path / "in" / "a.png"), picture(tmp_path / "in" / "b.png")
    jobs = plan([b, tmp_path / "in", str(tmp_path / "in" / ".." / "in" / "a.png")], tmp_path / "o")
    assert [job.source for job in jobs] == [b, a]


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("a.gif", "L", "a_x4.png"),
        ("a.ppm", "RGB", "a_x4.png"),
        ("a.bmp", "RGB", "a_x4.bmp"),
        ("a.tiff", "RGBA", "a_x4.tiff"),
        ("a.webp", "RGBA", "a_x4.webp"),
        ("a.jpeg", "CMYK", "a_x4.jpeg"),
        ("misnamed.jpg", "RGBA", "misnamed_x4.png"),  # a PNG with alpha: JPEG would lose it
        ("misnamed.jpg", "RGB", "misnamed_x4.jpg"),
    ],
)
def test_format_is_kept_if_it_can_hold_the_picture(tmp_path: Path, name: str, mode: str, expected: str) -> None:
    source = picture(tmp_path / name, mode, **({"format": "PNG"} if "misnamed" in name else {}))
    assert plan([source], tmp_path / "o")[0].target.name == expected


def test_missing_input_is_planned_so_that_the_others_are_done(tmp_path: Path) -> None:
    assert plan([tmp_path / "no.png"], tmp_path / "o") == [Job(tmp_path / "no.png", tmp_path / "o" / "no_x4.png")]


@pytest.mark.parametrize(
    ("inputs", "output", "words"),
    [
        ([], "o", "no input"),
        (["empty"], "o", "no image in the folder '.*empty'"),
        (["in"], "o.png", r"'.*o\.png' is one file, but there are 2 inputs"),
        (["in/a.png"], "o.gif", r"extension must be one of \.png"),
        (["in/a.png", "other/a.png"], "o", r"'.*in/a\.png' and '.*other/a\.png' would both become '.*o/a_x4\.png'"),
        (["in/a.png"], "in/a.png", r"in/a\.png' would overwrite itself"),
        (["in/a.png", "in/b.jpg"], "other", None),
        (["in/a.png", "link/b.jpg"], "in", None),
    ],
)
def test_plans_that_cannot_work(tmp_path: Path, inputs: list[str], output: str, words: str | None) -> None:
    for name in ("in/a.png", "in/b.jpg", "other/a.png"):
        picture(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("in")
    given = [tmp_path / name for name in inputs]
    if words is None:
        assert len(plan(given, tmp_path / output)) == len(inputs)
        return
    with pytest.raises(ImageError, match=words) as caught:
        plan(given, tmp_path / output)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_gif_and_png_of_one_name_collide(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.gif", "L")
    picture(tmp_path / "in" / "a.png")
    with pytest.raises(ImageError, match=r"a\.gif' and '.*a\.png' would both become"):
        plan([tmp_path / "in"], tmp_path / "o")


def test_output_through_links_cannot_overwrite_an_input(tmp_path: Path) -> None:
    source = picture(tmp_path / "in" / "a.png")
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(ImageError, match="overwrite itself"):
        plan([source], tmp_path / "link", suffix="")
    (tmp_path / "b.png").symlink_to(source)
    with pytest.raises(ImageError, match="overwrite itself"):
        plan([source], tmp_path / "b.png")


def test_output_cannot_overwrite_another_input(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a_x4.png")
    with pytest.raises(ImageError, match=r"a\.png' would overwrite the input '.*a_x4\.png'"):
        plan([tmp_path], tmp_path)


@pytest.mark.parametrize("suffix", ["/x", "../", "a/b"])
def test_suffix_stays_in_the_folder(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigError, match="suffix"):
        plan([picture(tmp_path / "a.png")], tmp_path / "o", suffix)


# --- what comes out --------------------------------------------------------------------------------------------------


def run(pipe: Any, inputs: list[Path], output: Path, **options: Any) -> Report:
    return upscale_files(pipe, plan(inputs, output), **options)


@pytest.mark.parametrize("size", [(6, 5), (1, 1), (1, 9)])
def test_four_times_larger_and_as_the_pipeline_made_it(tiny_pipe: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    source = picture(tmp_path / "a.png", size=size)
    report = run(tiny_pipe, [source], tmp_path / "o", seed=5, steps=3)
    assert report == Report(done=[Job(source, tmp_path / "o" / "a_x4.png")])
    assert names(tmp_path / "o") == ["a_x4.png"]
    out = read_image(tmp_path / "o" / "a_x4.png").rgb
    assert out.shape == (4 * size[1], 4 * size[0], 3)
    expected = tiny_pipe(read_image(source).rgb, 3, torch.Generator().manual_seed(5)).images[0]
    np.testing.assert_array_equal(out, np.array(expected))


def test_result_depends_on_the_seed_alone_not_on_the_batch(tiny_pipe: Any, tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / "in" / f"{name}.png")
    run(tiny_pipe, [tmp_path / "in"], tmp_path / "all", seed=1)
    run(tiny_pipe, [tmp_path / "in" / "c.png"], tmp_path / "one", seed=1)
    run(tiny_pipe, [tmp_path / "in" / "c.png"], tmp_path / "other", seed=2)
    every, one, other = [(tmp_path / k / "c_x4.png").read_bytes() for k in ("all", "one", "other")]
    assert every == one != other


def test_alpha_is_resized_and_kept_even_if_opaque(tiny_pipe: Any, tmp_path: Path) -> None:
    source = picture(tmp_path / "in" / "a.png", "RGBA")
    write_image(Picture(read_image(source).rgb, np.full((5, 6), 255, np.uint8)), tmp_path / "in" / "b.webp")
    run(tiny_pipe, [tmp_path / "in"], tmp_path / "o")
    alpha = read_image(source).alpha
    assert alpha is not None
    np.testing.assert_array_equal(read_image(tmp_path / "o" / "a_x4.png").alpha, imresize(alpha, scale=4))
    with Image.open(tmp_path / "o" / "a_x4.png") as image:
        assert image.mode == "RGBA"
    opaque = read_image(tmp_path / "o" / "b_x4.webp")
    assert opaque.alpha is None or opaque.alpha.min() == 255  # libwebp itself drops an opaque channel


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_stays_grey_with_its_profile(tiny_pipe: Any, tmp_path: Path, mode: str) -> None:
    source = picture(tmp_path / "a.png", mode, icc_profile=b"x" * 200)
    run(tiny_pipe, [source], tmp_path / "o", seed=0)
    with Image.open(tmp_path / "o" / "a_x4.png") as image:
        assert image.mode == mode and image.info["icc_profile"] == b"x" * 200
        grey = np.array(image.getchannel("L"))
    colour = tiny_pipe(read_image(source).rgb, generator=torch.Generator().manual_seed(0)).images[0]
    np.testing.assert_array_equal(grey, np.array(colour.convert("L")))


def test_notes_reach_the_report(tiny_pipe: Any, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    report = run(tiny_pipe, [tmp_path / "a.gif"], tmp_path / "o")
    assert report.notes == [(tmp_path / "a.gif", "several frames, only the first is used")]
    assert names(tmp_path / "o") == ["a_x4.png"]


# --- misfortune ------------------------------------------------------------------------------------------------------


def test_bad_files_do_not_end_the_batch(tiny_pipe: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    picture(folder / "a.png")
    picture(folder / "z.jpg")
    (folder / "b_empty.png").touch()
    (folder / "c_text.png").write_text("no image")
    whole = picture(folder / "d_cut.png", size=(40, 40)).read_bytes()
    (folder / "d_cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "e_lost.png").symlink_to("nowhere")
    picture(folder / "f_large.png", size=(50, 50))
    report = run(tiny_pipe, [folder, tmp_path / "g_missing.png"], tmp_path / "o", max_pixels=2000)
    assert names(tmp_path / "o") == ["a_x4.png", "z_x4.jpg"]
    assert [job.source.name for job in report.done] == ["a.png", "z.jpg"]
    words = {source.name: message for source, message in report.failed}
    expected = {
        "b_empty.png": "0 bytes",
        "c_text.png": "not an image",
        "d_cut.png": "cut short",
        "e_lost.png": "does not exist",
        "f_large.png": "--max-pixels",
        "g_missing.png": "does not exist",
    }
    assert words.keys() == expected.keys()
    for name, part in expected.items():
        assert part in words[name] and str(tmp_path) in words[name] and words[name].endswith(".")


def test_existing_targets(tiny_pipe: Any, tmp_path: Path) -> None:
    a, b = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    (tmp_path / "o").mkdir()
    old = tmp_path / "o" / "a_x4.png"
    old.write_bytes(b"precious")
    todo, _ = sift(plan([a, b], tmp_path / "o"), overwrite=False, skip_existing=False)
    assert [job.source for job in todo] == [b]  # known before a model is loaded
    report = run(tiny_pipe, [a, b], tmp_path / "o")
    ((source, message),) = report.failed
    assert source == a and "--overwrite" in message and "--skip-existing" in message and str(old) in message
    assert old.read_bytes() == b"precious" and [job.source for job in report.done] == [b]

    report = run(tiny_pipe, [a, b], tmp_path / "o", skip_existing=True)
    assert [job.source for job in report.skipped] == [a, b] and not report.done and not report.failed
    assert old.read_bytes() == b"precious"

    report = run(tiny_pipe, [a, b], tmp_path / "o", overwrite=True)
    assert len(report.done) == 2 and read_image(old).rgb.shape == (20, 24, 3)
    with pytest.raises(ConfigError, match="--overwrite and --skip-existing"):
        run(tiny_pipe, [a], tmp_path / "o", overwrite=True, skip_existing=True)


def test_target_that_appears_meanwhile_is_not_overwritten(tiny_pipe: Any, tmp_path: Path) -> None:
    source, target = picture(tmp_path / "a.png"), tmp_path / "o" / "a_x4.png"

    def appear(source: Path, part: float) -> None:
        if part == 0:
            target.write_bytes(b"precious")

    report = run(tiny_pipe, [source], tmp_path / "o", on_progress=appear)
    assert "exists already" in report.failed[0][1] and target.read_bytes() == b"precious"


def test_target_is_a_folder(tiny_pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "o" / "a_x4.png").mkdir(parents=True)
    for switch in ("overwrite", "skip_existing"):
        report = run(tiny_pipe, [picture(tmp_path / "a.png")], tmp_path / "o", **{switch: True})
        assert "is a folder" in report.failed[0][1] and not report.skipped


def test_output_folder_that_cannot_be_made(tiny_pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"Cannot make the output folder '.*file/o'.*choose another\."):
        run(tiny_pipe, [picture(tmp_path / "a.png")], tmp_path / "file" / "o")


def test_no_folder_is_made_when_nothing_can_be_done(tmp_path: Path) -> None:
    todo, report = sift(plan([tmp_path / "no.png"], tmp_path / "o"), overwrite=False, skip_existing=False)
    assert todo == [] and len(report.failed) == 1 and names(tmp_path) == []


def test_format_limits_are_found_before_the_work(tmp_path: Path) -> None:
    Image.new("L", (4096, 1)).save(tmp_path / "a.webp")
    picture(tmp_path / "b.png", "RGBA")
    jobs = [*plan([tmp_path / "a.webp"], tmp_path / "o"), *plan([tmp_path / "b.png"], tmp_path / "o" / "b.jpg")]
    todo, report = sift(jobs, overwrite=False, skip_existing=False)
    assert todo == []
    assert "16384x4" in report.failed[0][1] and "transparency" in report.failed[1][1]


def test_disk_full(tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    report = run(tiny_pipe, [picture(tmp_path / "a.png")], tmp_path / "o")
    assert "No space left on device" in report.failed[0][1] and names(tmp_path / "o") == []


@pytest.mark.parametrize("kind", ["python", "torch"])
def test_out_of_memory_fails_one_image(
    tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    picture(tmp_path / "in" / "a.png", size=(9, 8))
    picture(tmp_path / "in" / "b.png")
    forward = tiny_pipe.denoiser.forward

    def greedy(x_t: torch.Tensor, *rest: Any) -> Any:
        if x_t.shape[3] >= 36:
            bytearray(2**60) if kind == "python" else torch.empty(2**58)  # real refusals
        return forward(x_t, *rest)

    monkeypatch.setattr(tiny_pipe.denoiser, "forward", greedy)
    report = run(tiny_pipe, [tmp_path / "in"], tmp_path / "o")
    assert names(tmp_path / "o") == ["b_x4.png"]
    ((source, message),) = report.failed
    assert source.name == "a.png" and message.startswith("Not enough memory") and "9x8" in message


def test_a_bug_is_not_taken_for_a_bad_image(tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("sizes of tensors must match")

    monkeypatch.setattr(tiny_pipe.denoiser, "forward", broken)
    with pytest.raises(RuntimeError, match="must match"):
        run(tiny_pipe, [picture(tmp_path / "a.png")], tmp_path / "o")


@pytest.mark.parametrize("steps", [0, -1, 10_000])
def test_impossible_steps_end_the_batch(tiny_pipe: Any, tmp_path: Path, steps: int) -> None:
    with pytest.raises(ConfigError, match=str(steps)):
        run(tiny_pipe, [picture(tmp_path / "a.png")], tmp_path / "o", steps=steps)


def test_ctrl_c_leaves_whole_files_only(tiny_pipe: Any, tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / "in" / f"{name}.png")

    def interrupt(source: Path, part: float) -> None:
        if source.name == "b.png" and part > 0.4:
            raise KeyboardInterrupt

    report = Report()
    with pytest.raises(KeyboardInterrupt):
        run(tiny_pipe, [tmp_path / "in"], tmp_path / "o", on_progress=interrupt, report=report)
    assert names(tmp_path / "o") == ["a_x4.png"] and len(report.done) == 1


def test_progress_counts_pixels_and_steps(tiny_pipe: Any, tmp_path: Path) -> None:
    a, b = picture(tmp_path / "a.png", size=(2, 3)), picture(tmp_path / "b.png", size=(6, 3))
    (tmp_path / "bad.png").touch()
    seen: list[tuple[str, float]] = []
    jobs = plan([a, tmp_path / "bad.png", b], tmp_path / "o")
    upscale_files(tiny_pipe, jobs, steps=2, on_progress=lambda source, part: seen.append((source.name, part)))
    # a is a quarter of all pixels; begin, two steps, end
    first = [("a.png", part) for part in (0, 0.125, 0.25, 0.25)]
    assert seen == first + [("b.png", part) for part in (0.25, 0.625, 1, 1)]


# --- models ----------------------------------------------------------------------------------------------------------


def test_model_from_a_folder(tiny_pipe: Any, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    run(load_model(str(tiny_pipe_dir), "cpu"), [source], tmp_path / "o")
    run(tiny_pipe, [source], tmp_path / "p")
    assert (tmp_path / "o" / "a_x4.png").read_bytes() == (tmp_path / "p" / "a_x4.png").read_bytes()


def test_model_from_a_released_checkpoint() -> None:
    pipe = load_model(CHECKPOINT, "auto")
    assert type(pipe.denoiser).__name__ == "ConditionalUNet"


@pytest.mark.parametrize("kind", ["missing", "empty folder", "other file", "damaged.ckpt"])
def test_models_that_are_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "empty folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"something")
    with pytest.raises(CheckpointError) as caught:
        load_model(str(path), "cpu")
    message = str(caught.value)
    assert str(path) in message
    if "ckpt" not in kind:
        assert all(part in message for part in ("'default'", "model_index.json", ".ckpt"))
        assert message.endswith("does not exist." if kind == "missing" else "is none of these.")


@pytest.mark.parametrize("device", ["tpu", "cpu:x", "meta", "", "cuda:99"])
def test_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{device}' is not available here; use 'auto' or .*cpu\."):
        find_device(device)


def test_devices_that_are() -> None:
    assert find_device("cpu") == torch.device("cpu")
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert find_device("auto").type == best
