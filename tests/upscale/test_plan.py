"""Which file becomes which: files, folders, trees, patterns; names that collide."""

from pathlib import Path

import pytest

from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.upscale.plan import Job, as_png, plan, read_list
from support import noise_image


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def job(source: Path, target: Path) -> Job:
    return Job(str(source), str(target))


def test_file_to_folder_takes_the_suffix(tmp_path: Path) -> None:
    source = noise_image(tmp_path / "cat.jpg")
    assert plan([source], tmp_path / "out", "_big") == [job(source, tmp_path / "out" / "cat_big.jpg")]
    assert names(tmp_path) == ["cat.jpg"]  # planning writes nothing


def test_file_to_file_takes_the_name_as_it_is(tmp_path: Path) -> None:
    source = noise_image(tmp_path / "cat.jpg")
    assert plan([str(source)], str(tmp_path / "dog.PNG"), "_big") == [
        Job(str(source), str(tmp_path / "dog.PNG"), fixed=True)
    ]


def test_a_folder_may_look_like_an_image(tmp_path: Path) -> None:
    source = noise_image(tmp_path / "cat.jpg")
    (tmp_path / "out.png").mkdir()
    assert plan([source], tmp_path / "out.png") == [job(source, tmp_path / "out.png" / "cat_x4.jpg")]


def test_folder_gives_its_images_sorted_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("c.png", "a.PNG", "b.webp", "sub/d.png", ".hidden.png"):
        noise_image(folder / name)
    (folder / "notes.txt").touch()
    (folder / "e.png").mkdir()
    (folder / "lost.png").symlink_to("nowhere")
    jobs = plan([folder], tmp_path / "out")
    assert [Path(job.source).name for job in jobs] == ["a.PNG", "b.webp", "c.png", "lost.png"]
    assert [Path(job.target).name for job in jobs] == ["a_x4.PNG", "b_x4.webp", "c_x4.png", "lost_x4.png"]


def test_pattern(tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "b1.png", "a3.txt/x.png"):
        noise_image(tmp_path / name)
    assert [Path(job.source).name for job in plan([f"{tmp_path}/a*"], tmp_path / "o")] == ["a1.png", "a2.png"]
    assert [Path(job.source).name for job in plan([f"{tmp_path}/?1.png"], tmp_path / "o")] == ["a1.png", "b1.png"]
    with pytest.raises(ImageError, match=r"No image matches the pattern '.*z\*\.png'"):
        plan([f"{tmp_path}/z*.png"], tmp_path / "o")


def test_a_name_with_brackets_is_a_name_first(tmp_path: Path) -> None:
    noise_image(tmp_path / "a1.png")
    source = noise_image(tmp_path / "a[1].png")
    assert [job.source for job in plan([source], tmp_path / "o")] == [str(source)]


def test_several_inputs_keep_their_order_and_count_once(tmp_path: Path) -> None:
    a, b = noise_image(tmp_path / "in" / "a.png"), noise_image(tmp_path / "in" / "b.png")
    jobs = plan([b, tmp_path / "in", str(tmp_path / "in" / ".." / "in" / "a.png")], tmp_path / "o")
    assert [job.source for job in jobs] == [str(b), str(a)]


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("a.gif", "L", "a_x4.png"),
        ("a.ppm", "RGB", "a_x4.png"),
        ("a.bmp", "RGB", "a_x4.bmp"),
        ("a.tiff", "RGBA", "a_x4.tiff"),
        ("a.webp", "RGBA", "a_x4.webp"),
        ("a.jpeg", "CMYK", "a_x4.jpeg"),
    ],
)
def test_format_is_kept_if_it_can_hold_the_noise_image(tmp_path: Path, name: str, mode: str, expected: str) -> None:
    source = noise_image(tmp_path / name, mode)
    assert plan([source], tmp_path / "o")[0].target.rpartition("/")[2] == expected


def test_missing_input_is_planned_so_that_the_others_are_done(tmp_path: Path) -> None:
    assert plan([tmp_path / "no.png"], tmp_path / "o") == [job(tmp_path / "no.png", tmp_path / "o" / "no_x4.png")]


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
        noise_image(tmp_path / name)
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
    noise_image(tmp_path / "in" / "a.gif", "L")
    noise_image(tmp_path / "in" / "a.png")
    with pytest.raises(ImageError, match=r"a\.gif' and '.*a\.png' would both become"):
        plan([tmp_path / "in"], tmp_path / "o")


def test_output_through_links_cannot_overwrite_an_input(tmp_path: Path) -> None:
    source = noise_image(tmp_path / "in" / "a.png")
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(ImageError, match="overwrite itself"):
        plan([source], tmp_path / "link", suffix="")
    (tmp_path / "b.png").symlink_to(source)
    with pytest.raises(ImageError, match="overwrite itself"):
        plan([source], tmp_path / "b.png")


def test_output_cannot_overwrite_another_input(tmp_path: Path) -> None:
    noise_image(tmp_path / "a.png")
    noise_image(tmp_path / "a_x4.png")
    with pytest.raises(ImageError, match=r"a\.png' would overwrite the input '.*a_x4\.png'; .* suffix\.$"):
        plan([tmp_path / "a.png", tmp_path / "a_x4.png"], tmp_path)
    found = r"a\.png' would overwrite '.*a_x4\.png', which is found among the inputs; .* or give --skip-existing if"
    for given in (tmp_path, tmp_path / "*.png"):
        with pytest.raises(ImageError, match=found):
            plan([given], tmp_path)


@pytest.mark.parametrize("given", [".", "*.png", "**/*.png", "../in/[ab]*"])
def test_earlier_results_beside_their_inputs_are_left_out(tmp_path: Path, given: str) -> None:
    """A second run with --skip-existing goes on, and enlarges nothing twice."""
    folder = tmp_path / "in"
    for name in ("a.png", "a_x4.png", "a_x4_x4.png", "b.png", "b_x2.png"):
        noise_image(folder / name)
    jobs = plan([f"{folder}/{given}"], folder, skip_existing=True)
    assert [Path(job.source).name for job in jobs] == ["a.png", "b.png", "b_x2.png"]
    with pytest.raises(ImageError, match=r"would overwrite the input '.*a_x4\.png'"):  # named: it is meant
        plan([f"{folder}/{given}", folder / "a_x4.png"], folder, skip_existing=True)
    with pytest.raises(ImageError, match="would overwrite itself"):
        plan([folder / "a.png"], folder, "", skip_existing=True)


@pytest.mark.parametrize("suffix", ["/x", "../", "a/b"])
def test_suffix_stays_in_the_folder(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigError, match="suffix"):
        plan([noise_image(tmp_path / "a.png")], tmp_path / "o", suffix)


# --- trees and formats -----------------------------------------------------------------------------------------------


def relative(jobs: list[Job], root: Path) -> dict[str, str]:
    return {str(Path(job.source).relative_to(root)): str(Path(job.target).relative_to(root)) for job in jobs}


def test_a_tree_is_mirrored(tmp_path: Path) -> None:
    for name in ("in/b.png", "in/x/a.png", "in/x/y/b.png", "in/.hidden/c.png", "in/x/.d.png"):
        noise_image(tmp_path / name)
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    found = relative(plan([tmp_path / "in"], tmp_path / "o", recursive=True), tmp_path)
    assert found == {
        "in/b.png": "o/b_x4.png",
        "in/x/a.png": "o/x/a_x4.png",
        "in/x/y/b.png": "o/x/y/b_x4.png",
    }
    assert list(relative(plan([tmp_path / "in"], tmp_path / "o"), tmp_path)) == ["in/b.png"]
    with pytest.raises(ImageError, match="--recursive"):
        plan([tmp_path], tmp_path / "o")


def test_an_output_folder_within_the_input_is_no_input(tmp_path: Path) -> None:
    """A batch that is begun again must not enlarge its own results."""
    for name in ("a.png", "x/b.png", "large/a_x4.png", "large/x/b_x4.png"):
        noise_image(tmp_path / name)
    (tmp_path / "link").symlink_to("large")
    for output in (tmp_path / "large", tmp_path / "link"):
        assert list(relative(plan([tmp_path], output, recursive=True), tmp_path)) == ["a.png", "x/b.png"]


def test_a_pattern_leaves_out_the_output_folder_unless_it_begins_there(tmp_path: Path) -> None:
    for name in ("in/a.png", "in/x/b.png", "in/out/a_x4.png", "in/out/x/b_x4.png", "in/outer/c.png"):
        noise_image(tmp_path / name)
    (tmp_path / "link").symlink_to("in/out")

    def matched(pattern: str, output: str) -> list[str]:
        return [Path(job.source).name for job in plan([f"{tmp_path}/{pattern}"], tmp_path / output)]

    for output in ("in/out", "link"):
        assert matched("in/**/*.png", output) == ["a.png", "c.png", "b.png"]
        assert matched("in/*/*.png", output) == ["c.png", "b.png"]
    assert matched("in/out/*.png", "in/out") == matched("link/*.png", "in/out") == ["a_x4.png"]
    assert matched("in/out/x/*.png", "in/out") == ["b_x4.png"]
    with pytest.raises(ImageError, match=r"matches images in the output folder only; choose another output\.$"):
        matched("in/*/a_*.png", "in/out")


def test_pattern_across_folders(tmp_path: Path) -> None:
    for name in ("x/a.png", "x/y/b.png", "c.png"):
        noise_image(tmp_path / name)
    jobs = plan([f"{tmp_path}/**/*.png"], tmp_path / "o")
    assert sorted(Path(job.target).name for job in jobs) == ["a_x4.png", "b_x4.png", "c_x4.png"]


@pytest.mark.parametrize(
    ("format", "extension"), [("png", ".png"), ("jpg", ".jpg"), ("webp", ".webp"), ("tiff", ".tiff")]
)
def test_format_that_was_asked_for(tmp_path: Path, format: str, extension: str) -> None:
    source = noise_image(tmp_path / "a.bmp")
    assert plan([source], tmp_path / "o", format=format) == [
        Job(str(source), str(tmp_path / "o" / f"a_x4{extension}"), fixed=True)
    ]


@pytest.mark.parametrize("name", ["b.jp2", "b.psd", "b.svg", "b.pdf"])
def test_an_output_of_a_foreign_format_is_no_folder(tmp_path: Path, name: str) -> None:
    source, other = noise_image(tmp_path / "in" / "a.png"), noise_image(tmp_path / "in" / "c.png")
    with pytest.raises(ImageError, match=rf"Cannot write '.*{name}': the extension must be one of \.png, .*\.jxl\.$"):
        plan([source], tmp_path / name)
    for inputs in ([source, other], [tmp_path / "in"]):
        assert plan(inputs, tmp_path / name)[0].target == str(tmp_path / name / "a_x4.png")
    (tmp_path / name).mkdir()
    assert plan([source], tmp_path / name) == [job(source, tmp_path / name / "a_x4.png")]


@pytest.mark.parametrize("name", ["b.heic", "b.HEIF", "b.dng", "b.gif"])
def test_an_output_of_a_format_that_is_only_read(tmp_path: Path, name: str) -> None:
    source = noise_image(tmp_path / "in" / "a.png")
    with pytest.raises(ImageError, match=rf"Cannot write '.*{name}': the extension must be one of \.png, .*\.jxl\.$"):
        plan([source], tmp_path / name)
    assert plan([tmp_path / f"a.{name[2:]}"], tmp_path / "o")[0].target == str(tmp_path / "o" / "a_x4.png")


def test_formats_that_cannot_work(tmp_path: Path) -> None:
    source = noise_image(tmp_path / "a.bmp")
    with pytest.raises(ConfigError, match="format is 'gif', but must be one of 'auto', 'png'"):
        plan([source], tmp_path / "o", format="gif")
    with pytest.raises(ConfigError, match=r"b\.png' contradicts --format jpg"):
        plan([source], tmp_path / "b.png", format="jpg")
    assert plan([source], tmp_path / "b.jpeg", format="jpg")[0].target == str(tmp_path / "b.jpeg")


# --- lists and URIs --------------------------------------------------------------------------------------------------


def test_a_list_takes_names_as_they_are(tmp_path: Path) -> None:
    noise_image(tmp_path / "a1.png")
    listed = [str(tmp_path / "a[1].png"), str(tmp_path / "a1.png")]
    assert plan([], tmp_path / "o", listed=listed) == [
        job(tmp_path / "a[1].png", tmp_path / "o" / "a[1]_x4.png"),
        job(tmp_path / "a1.png", tmp_path / "o" / "a1_x4.png"),
    ]


def test_a_list_from_other_systems(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes("\r\na.png\r\n\nü b.png\n".encode("utf-8-sig"))
    assert read_list(tmp_path / "list") == ["a.png", "ü b.png"]
    (tmp_path / "list").write_bytes("ü.png\na.png".encode("utf-8-sig"))
    assert read_list(tmp_path / "list") == ["ü.png", "a.png"]
    for content in (b"a.png\0b.png\0", "a.png\n".encode("utf-16")):
        (tmp_path / "list").write_bytes(content)
        with pytest.raises(ConfigError, match=r"list' has NUL bytes, .*; give one path a line, in UTF-8\.$"):
            read_list(tmp_path / "list")


def test_a_folder_by_its_uri_is_that_folder(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name in ("b.png", "a 1#%.png", "x/c.jpg", "x/y/d.png", "z.gif", ".hidden.png", ".hidden/e.png", "big/f.png"):
        noise_image(tmp_path / "in" / name, "L")
    (tmp_path / "in" / "text.txt").touch()
    folder = tmp_path / "in"
    for recursive in (False, True):
        by_path = plan([folder], folder / "big", recursive=recursive)
        by_uri = plan([folder.as_uri()], (folder / "big").as_uri(), recursive=recursive)
        assert by_uri == [Job(Path(j.source).as_uri(), Path(j.target).as_uri()) for j in by_path]
        assert len(by_path) == (5 if recursive else 3)
    with pytest.raises(ImageError, match="would overwrite itself"):
        plan([folder], folder.as_uri(), "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"There is no image in the folder 'file:///.*empty'"):
        plan([(tmp_path / "empty").as_uri()], tmp_path / "o")


def test_uris_keep_their_options_and_names_are_decoded() -> None:
    """Names that end like images are not asked after, so no bucket is needed."""
    options = "?endpoint_override=minio:9000"
    given = [f"s3://in/x/a%20b.gif{options}", "s3://in/c.jpg"]
    assert [job.target for job in plan(given, f"s3://out/y{options}")] == [
        f"s3://out/y/a%20b_x4.png{options}",
        f"s3://out/y/c_x4.jpg{options}",
    ]
    assert [job.target for job in plan(given, "o")] == ["o/a b_x4.png", "o/c_x4.jpg"]
    assert plan(given[:1], f"s3://out/d.png{options}") == [Job(given[0], f"s3://out/d.png{options}", True)]
    assert as_png(Job("", f"s3://out/d.bmp{options}")).target == f"s3://out/d.png{options}"
    with pytest.raises(ImageError, match="would overwrite itself"):
        plan(["s3://in/c.jpg"], "s3://in", "")
