"""`samdiffsr evaluate`: real tiny models and pictures, figures against the metrics called directly."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from PIL import Image

from samdiffsr import SamDiffSRError, SamDiffSRPipeline, imresize
from samdiffsr.cli import main
from samdiffsr.evaluation.benchmark import run
from samdiffsr.evaluation.html import to_html
from samdiffsr.evaluation.methods import baseline, model, outputs
from samdiffsr.evaluation.metrics import SqueezeDistance, lr_psnr, psnr_y, ssim_rgb
from samdiffsr.evaluation.pairs import find_pairs, read_pair
from support import save_image


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with a little noise."""
    generator = np.random.default_rng(seed)
    smooth = imresize(generator.uniform(0, 255, (5, 6, 3)), size=(height, width))
    return (smooth + generator.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Two HR images, one of a size that is no multiple of 4, their LR images, and results of others under usual names."""
    for number, (name, size) in enumerate({"baby": (40, 44), "a<b": (37, 46)}.items()):
        hr = photo(*size, seed=number)
        save_image(tmp_path / "Tiny/HR" / f"{name}.png", hr)
        lr = imresize(hr[: size[0] // 4 * 4, : size[1] // 4 * 4], 1 / 4)
        save_image(tmp_path / "Tiny/LR" / f"{name}x4.png", lr)
        save_image(tmp_path / "theirs" / f"{name}_x4.png", lr.repeat(4, 0).repeat(4, 1))
    return tmp_path


@pytest.fixture
def evaluate(bench, tiny_pipe_dir, capsys):
    """Run the command on the bench: (exit code, stdout, stderr)."""

    def run(*options, hr=bench / "Tiny/HR", output=bench / "report") -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(option) for option in ("evaluate", "--hr", hr, "-o", output, *options)])
        return (end.value.code or 0, *capsys.readouterr())

    return run


def read(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)


def rows(report: dict) -> dict[str, dict]:
    return {entry["method"]: entry for entry in report["figures"]["methods"]}


# --- the whole command -----------------------------------------------------------------------------------------------


@pytest.fixture
def full(bench, tiny_pipe_dir):
    """Options that use everything."""
    return (
        *("--lr", bench / "Tiny/LR", "--outputs", f"theirs={bench / 'theirs'}", "--baseline", "bicubic"),
        *("--baseline", "lanczos", "-m", tiny_pipe_dir, "-m", f"{tiny_pipe_dir}@steps=1,scheduler=ddpm"),
        *("--seeds", "0,7", "--published"),
    )


def test_the_figures_are_those_of_the_metrics(bench, evaluate, full, tiny_pipe_dir):
    code, out, err = evaluate(*full)
    assert (code, err) == (0, "")
    report = read(bench / "report")
    found, name = rows(report), str(tiny_pipe_dir)
    assert list(found) == ["bicubic", "lanczos", "theirs", name, f"{name}@steps=1,scheduler=ddpm"]
    images = {pair.name: read_pair(pair) for pair in find_pairs(bench / "Tiny/HR", bench / "Tiny/LR")}
    assert report["figures"]["images"] == list(images) == ["a<b", "baby"]

    bicubic = {key: imresize(i.lr, 4) for key, i in images.items()}
    expected = fmean(psnr_y(bicubic[key], i.hr) for key, i in images.items())
    assert found["bicubic"]["mean"]["psnr-y"] == expected
    assert found["bicubic"]["by_image"]["baby"]["lr-psnr"] == lr_psnr(bicubic["baby"], images["baby"].lr)
    assert found["bicubic"]["seeds"] == [] and found["bicubic"]["deviation"] == {}
    nearest = {key: i.lr.repeat(4, 0).repeat(4, 1) for key, i in images.items()}
    assert found["theirs"]["mean"]["ssim-rgb"] == fmean(ssim_rgb(nearest[key], i.hr) for key, i in images.items())

    pipe = SamDiffSRPipeline.from_pretrained(tiny_pipe_dir)
    pipe.set_progress_bar_config(disable=True)
    by_seed = []
    for seed in (0, 7):  # each image from the seed itself, as `samdiffsr upscale --seed` does
        sr = {key: pipe(i.lr, generator=torch.Generator().manual_seed(seed)).images[0] for key, i in images.items()}
        by_seed.append(fmean(psnr_y(np.asarray(sr[key]), i.hr) for key, i in images.items()))
    assert found[name]["seeds"] == [0, 7] and found[name]["by_seed"]["psnr-y"] == by_seed
    assert found[name]["mean"]["psnr-y"] == fmean(by_seed)
    assert found[name]["deviation"]["psnr-y"] == stdev(by_seed) > 0
    assert found[name]["mean"] != found[f"{name}@steps=1,scheduler=ddpm"]["mean"]

    mean = f"{fmean(by_seed):.2f} ± {stdev(by_seed):.2f}"
    markdown = (bench / "report/report.md").read_text()
    assert mean in markdown and mean in out and "30.99" in markdown and "quoted" in markdown
    for text in report["figures"]["protocols"].values():
        assert text in out
    assert "HR cut from 46x37 to 44x36" in out


def test_the_same_command_gives_the_same_figures(bench, evaluate, full):
    evaluate(*full, output=bench / "one")
    evaluate(*full, output=bench / "two")
    one, two = read(bench / "one"), read(bench / "two")
    assert one.pop("timings") != two.pop("timings")
    assert one == two


def test_the_report_says_what_was_run(bench, evaluate, full, tiny_pipe_dir):
    evaluate(*full)
    report = read(bench / "report")
    setup, name = report["setup"], str(tiny_pipe_dir)
    record = setup["methods"][f"{name}@steps=1,scheduler=ddpm"]
    assert (record["scheduler"], record["steps"], record["target"]) == ("DDPMScheduler", 1, "sample")
    assert setup["methods"][name]["sha256"] == record["sha256"]
    assert {"torch", "samdiffsr", "python"} <= set(setup["versions"]) and setup["machine"]["cores"]
    assert setup["settings"]["seeds"] == [0, 7] and setup["settings"]["hr"] == str(bench / "Tiny/HR")
    timing = report["timings"]["methods"]
    assert timing["theirs"]["seconds"] is None and timing[name]["seconds"] > 0
    assert list(timing[name]["by_image"]) == ["a<b", "baby"] and timing[name]["by_image"]["baby"]["seconds"] > 0
    header = (bench / "report/report.md").read_text().split("| image | bicubic, s | ")[1].splitlines()[0]
    assert f"{name}, peak MB" in header and "theirs" not in header

    hr = np.array(Image.open(bench / "Tiny/HR/baby.png"))
    hr[0, 0, 0] ^= 1
    save_image(bench / "Tiny/HR/baby.png", hr)
    weights = tiny_pipe_dir / "denoiser/diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    evaluate(*full, "--overwrite")
    again = read(bench / "report")["setup"]
    assert again["images_sha256"] != setup["images_sha256"]
    assert again["methods"][name]["sha256"] != record["sha256"]
    assert again["methods"]["theirs"] == setup["methods"]["theirs"]


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else(bench, evaluate, full):
    evaluate(*full, "--pictures", 1)
    text = (bench / "report/report.html").read_text()
    page = _Page(text)
    assert "<!--" not in text and "b" not in page.tags[: page.tags.index("section")]
    assert page.tags.count("section") == 1 and page.tags.count("img") == 7  # HR, LR, five methods
    assert all(source.startswith("data:image/webp;base64,") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "1 of 2 images" in page.text and "a<b" in page.text and "quoted as printed" in page.text
    assert "default-src 'none'" in text


def test_without_lr_it_is_made_from_hr(bench, evaluate):
    assert evaluate("--baseline", "bicubic", "--lr", bench / "Tiny/LR", output=bench / "given")[0] == 0
    assert evaluate("--baseline", "bicubic", output=bench / "made")[0] == 0
    given, made = read(bench / "given"), read(bench / "made")
    assert given["figures"] == made["figures"]
    assert made["setup"]["settings"]["lr"] == "MATLAB's bicubic x1/4 of HR"


def test_equal_images_are_infinitely_good_and_told(bench, evaluate):
    save_image(bench / "same/baby.png", np.array(Image.open(bench / "Tiny/HR/baby.png")))
    save_image(bench / "same/a<b.png", np.array(Image.open(bench / "Tiny/HR/a<b.png"))[:36, :44])
    code, out, _ = evaluate("--outputs", f"same={bench / 'same'}")
    entry = rows(read(bench / "report"))["same"]
    assert code == 0 and entry["mean"]["psnr-y"] == "inf" and entry["mean"]["ssim-y"] == pytest.approx(1)
    assert "2 results equal their HR image inside the border of 4 (of same): their PSNR and" in out
    assert "2 results equal their LR image when shrunk (of same): their LR-PSNR and" in out
    assert "| same | inf |" in (bench / "report/report.md").read_text()


def test_results_that_only_shrink_to_their_lr_image_are_told(bench, evaluate):
    save_image(bench / "Tiny/LR/babyx4.png", np.full((10, 11, 3), 99, np.uint8))
    save_image(bench / "flat/baby.png", np.full((40, 44, 3), 99, np.uint8))
    save_image(bench / "flat/a<b.png", photo(36, 44))
    code, out, _ = evaluate("--outputs", f"flat={bench / 'flat'}", "--lr", bench / "Tiny/LR")
    mean = rows(read(bench / "report"))["flat"]["mean"]
    assert code == 0 and mean["lr-psnr"] == "inf" and mean["psnr-rgb"] != "inf"
    assert "Note: 1 results equal their LR image when shrunk (of flat)" in out and "inside the border" not in out


def test_what_is_lost_of_a_result_is_told(bench, evaluate):
    save_image(bench / "theirs/baby_x4.png", np.zeros((40, 44, 4), np.uint8))
    Image.fromarray(np.zeros((36, 44), np.uint16)).save(bench / "theirs/a<b_x4.png")
    code, out, _ = evaluate("--outputs", f"theirs={bench / 'theirs'}")
    assert code == 0
    assert "Note: theirs, 'baby_x4.png': transparency is not compared." in out
    assert "Note: theirs, 'a<b_x4.png': 16-bit pixels reduced to 8 bit." in out


def test_the_squeeze_distance_and_its_weights(bench, evaluate):
    code, *_ = evaluate("--baseline", "bicubic", "--perceptual", "squeeze")
    report = read(bench / "report")
    pair = read_pair(find_pairs(bench / "Tiny/HR", None)[1])
    expected = SqueezeDistance()(imresize(pair.lr, 4), pair.hr)
    assert code == 0 and rows(report)["bicubic"]["by_image"]["baby"]["squeeze"] == expected
    assert report["figures"]["protocols"]["squeeze"].startswith("NOT LPIPS")
    assert list(report["setup"]["weights_sha256"]) == ["squeeze_distance.safetensors"]


@pytest.mark.parametrize(("border", "protocol"), [(0, "no border cut"), (7, "7 pixels cut from each side")])
def test_the_border_is_cut_and_printed(bench, evaluate, border, protocol):
    code, out, _ = evaluate("--baseline", "bicubic", "--border", border)
    report, pair = read(bench / "report"), read_pair(find_pairs(bench / "Tiny/HR", None)[1])
    found = rows(report)["bicubic"]["by_image"]["baby"]
    sr, inside = imresize(pair.lr, 4), (slice(border, 40 - border), slice(border, 44 - border))
    assert found["psnr-y"] == psnr_y(sr[inside], pair.hr[inside], border=0)
    assert found["ssim-rgb"] == ssim_rgb(sr[inside], pair.hr[inside], border=0)
    assert found["lr-psnr"] == lr_psnr(sr, pair.lr)
    assert code == 0 and report["setup"]["settings"]["border"] == border
    for name in ("psnr-y", "ssim-y", "psnr-rgb", "ssim-rgb"):
        assert f"8-bit results, {protocol}, mean" in report["figures"]["protocols"][name]
    assert protocol in out and protocol in (bench / "report/report.html").read_text()


def test_a_border_needs_larger_images(bench, evaluate):
    code, _, err = evaluate("--baseline", "bicubic", "--border", 15)
    assert code == 2 and "at least 44x44; leave it out" in err
    with pytest.raises(SamDiffSRError, match="border is -1, but must be a whole number from 0"):
        run(find_pairs(bench / "Tiny/HR", None), [baseline("bicubic")], border=-1)


def test_a_report_is_not_replaced_unasked(bench, evaluate):
    assert evaluate("--baseline", "bicubic")[0] == 0
    before = (bench / "report/report.json").read_bytes()
    code, out, err = evaluate("--baseline", "lanczos")
    assert (code, out) == (2, "") and "--overwrite" in err
    assert (bench / "report/report.json").read_bytes() == before
    assert evaluate("--baseline", "lanczos", "--overwrite")[0] == 0
    for name in ("report.md", "report.html"):
        (bench / "other" / name).parent.mkdir(exist_ok=True)
        (bench / "other" / name).write_text("mine")
        code, _, err = evaluate("--baseline", "lanczos", output=bench / "other")
        assert code == 2 and f"{name}' exists already; give --overwrite" in err
        assert (bench / "other" / name).read_text() == "mine"
        (bench / "other" / name).unlink()
    assert sorted(file.name for file in (bench / "report").iterdir()) == ["report.html", "report.json", "report.md"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--hr", "{bench}/none"), "Cannot list the folder"),
        (("--lr", "{bench}/report", "--hr", "{bench}/theirs"), "no image in the folder"),
        (("--hr", "{bench}/theirs", "--lr", "{bench}/Tiny/LR"), "has no image for 'a<b_x4', 'baby_x4'"),
        (("--lr", "{bench}/theirs"), "needs an LR image of"),
        (("--baseline", "nearest"), "'bicubic', 'lanczos'"),
        (("--outputs", "{bench}/theirs"), "must be NAME=DIR"),
        (("--outputs", "a={bench}/theirs", "--outputs", "a={bench}/theirs"), "'a' is given twice"),
        (("--outputs", "HR={bench}/theirs"), "'HR'"),
        (("--outputs", "a={bench}/Tiny/LR"), "LR/a<bx4.png' is 11x9, but 4 times the LR image is 44x36"),
        (("-m", "nonsense"), "'nonsense' does not exist"),
        (("-m", "default@steps=zero"), "steps is 'zero'"),
        (("-m", "default@step=1"), "after the @ come"),
        (("-m", "default@detail=much"), "detail is 'much'"),
        (("-m", "default@detail=3"), "detail is 3"),
        (("-m", "{model}@scheduler=euler"), "'ddim', 'lcm'"),
        (("-m", "{model}@steps=101"), "101"),
        (("--seeds", "1,a"), "0,1,2"),
        (("--seeds", "1,1", "--baseline", "bicubic"), "must be different"),
        (("--perceptual", "niqe", "--baseline", "bicubic"), "'lpips-alex'"),
        (("-o", "{bench}/theirs/baby_x4.png"), "baby_x4.png': a file is in its place; choose another output."),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(bench, evaluate, tiny_pipe_dir, options, told):
    (bench / "report").mkdir()
    code, out, err = evaluate(*(option.format(bench=bench, model=tiny_pipe_dir) for option in options))
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("Error: ") and told in line and line.endswith(".")
    assert list((bench / "report").iterdir()) == []


@pytest.mark.parametrize(("side", "metrics"), [(20, ()), (32, ("--perceptual", "squeeze"))])
def test_an_image_too_small_for_a_metric_is_named_before_the_work(bench, evaluate, side, metrics):
    (bench / "Tiny/HR/a<b.png").write_bytes((bench / "Tiny/HR/a<b.png").read_bytes()[:-99])  # comes first, incomplete
    save_image(bench / "Tiny/HR/speck.png", photo(side - 1, 40))
    code, _, err = evaluate("--baseline", "bicubic", *metrics)
    assert code == 2 and f"speck.png' is 40x{side - 1}, but" in err and f"at least {side}x{side};" in err
    save_image(bench / "Tiny/HR/speck.png", photo(side, 40))
    assert "is incomplete" in evaluate("--baseline", "bicubic", *metrics)[2]
    (bench / "Tiny/HR/a<b.png").unlink()
    assert evaluate("--baseline", "bicubic", *metrics)[0] == 0


def test_an_image_in_outputs_without_hr_is_noted(bench, evaluate):
    save_image(bench / "theirs/comparison.png", np.zeros((4, 4, 3), np.uint8))
    code, out, _ = evaluate("--outputs", f"theirs={bench / 'theirs'}")
    assert code == 0 and "Note: 1 images in the folder of 'theirs' belong to no HR image." in out


# --- methods ---------------------------------------------------------------------------------------------------------


def test_baselines_are_their_references(bench):
    images = read_pair(find_pairs(bench / "Tiny/HR", None)[1])
    size = (images.hr.shape[1], images.hr.shape[0])
    lanczos = np.asarray(Image.fromarray(images.lr).resize(size, Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(baseline("lanczos").run(images, 0)[0], lanczos)
    np.testing.assert_array_equal(baseline("bicubic").run(images, 0)[0], imresize(images.lr, 4))


@pytest.mark.parametrize("name", ["ddpm", "ddim", "lcm", "dpmsolver++"])
def test_every_scheduler_samples_on_the_models_own_betas(name, tiny_pipe, tiny_pipe_dir, bench):
    method = model(f"{tiny_pipe_dir}@steps=3,scheduler={name}", "cpu")
    images = read_pair(find_pairs(bench / "Tiny/HR", None)[1])
    assert method.run(images, 0)[0].shape == images.hr.shape
    assert method.record["timesteps"] == 100 and method.sampled


def test_a_folder_whose_name_looks_like_settings(tiny_pipe_dir):
    folder = tiny_pipe_dir.rename(tiny_pipe_dir.with_name("a@steps=1"))
    with pytest.raises(SamDiffSRError, match=r"'[^']*/a' does not exist"):
        model(str(folder), "cpu")
    assert model(f"{folder}@", "cpu").record["steps"] == 2
    assert model(f"{folder}@steps=3", "cpu").record["steps"] == 3


def test_the_checksum_is_that_of_sha256sum(bench):
    import subprocess

    method, _ = outputs(f"a={bench / 'theirs'}", ["baby", "a<b"])
    listing = subprocess.run(
        "sha256sum * | sha256sum", shell=True, cwd=bench / "theirs", capture_output=True, text=True
    )
    assert listing.stdout.split()[0] == method.record["sha256"]


# --- rendering -------------------------------------------------------------------------------------------------------


def test_names_that_are_no_utf_8(bench, evaluate):
    name = os.fsdecode(b"n\xff")
    save_image(bench / "Tiny/HR" / f"{name}.png", photo(40, 40))
    save_image(bench / "theirs" / f"{name}_x4.png", photo(40, 40, seed=9))
    code, out, err = evaluate("--outputs", f"{name}={bench / 'theirs'}", "--baseline", "bicubic")
    assert (code, err) == (0, "") and r"n\udcff" in out
    report = read(bench / "report")
    assert name in report["figures"]["images"] and list(rows(report)) == ["bicubic", name]
    for extension in ("md", "html"):
        assert r"n\udcff" in (bench / f"report/report.{extension}").read_text(encoding="utf-8")


def test_line_breaks_in_names_break_no_table(bench, evaluate):
    (bench / "Tiny").rename(bench / "Ti\nny")
    hr = (bench / "Ti\nny/HR/baby.png").rename(bench / "Ti\nny/HR/ba\r\nby.png").parent
    assert evaluate("--baseline", "bicubic", hr=hr)[0] == 0
    lines = (bench / "report/report.md").read_bytes().decode().split("\n")
    assert lines[0] == r"# Ti\\nny" and not any("\r" in line for line in lines)
    assert sum(line.startswith(r"| ba\\r\\nby | ") and line.endswith(" |") for line in lines) == 6


def test_the_page_stops_at_its_limit(bench, evaluate, monkeypatch):
    from samdiffsr.evaluation import html

    evaluate("--baseline", "bicubic")
    report = read(bench / "report")
    pictures = {name: {"HR": photo(600, 530)} for name in report["figures"]["images"]}
    text = to_html(report, pictures)
    assert "2 of 2 images" in text and text.count('<img width="512" height="512"') == 2
    monkeypatch.setattr(html, "LIMIT", len(text) // 2 + 1000)
    assert "1 of 2 images" in to_html(report, pictures)
