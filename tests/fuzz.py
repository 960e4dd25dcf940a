"""Damaged picture files of every kind, and what becomes of them:  python tests/fuzz.py 5000 [SEED]

Each file is a small whole picture that was cut short, had bits flipped, bytes overwritten or its header made absurd. A child
process upscales them one after the other with a tiny network; the parent kills it when one file takes longer than 10 seconds.
Every file must end in a picture or in one sentence, a file cut short in no picture other than the whole one's, and no output
may exist for a file that was refused.
"""

import hashlib
import io
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

TIME_LIMIT = 10.0  # seconds a file
MAX_PIXELS = 250_000
SIZES = ((24, 18), (9, 40), (1, 1))


@dataclass(frozen=True)
class Case:
    """A damaged file.

    Attributes:
        name: what it was and what was done to it.
        content: the damaged file.
        whole: the file it was made from.
        cut: the only damage is that the end is missing.
    """

    name: str
    content: bytes
    whole: bytes
    cut: bool


def seeds() -> dict[str, bytes]:
    """Small whole files: every format, mode and depth, with and without metadata."""
    from samdiffsr.images import Metadata, Picture, write_image
    from support import AVIF, HEIC, dng

    rng = np.random.default_rng(0)
    found: dict[str, bytes] = {}

    def keep(name: str, image: Image.Image, format: str, **options: object) -> None:
        buffer = io.BytesIO()
        image.save(buffer, format=format, **options)
        found[name] = buffer.getvalue()

    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x8769] = "Maker", 6, {0xA002: 24, 0x9003: "2026:11:23 09:00:00"}
    described = {
        "exif": exif.tobytes(),
        "xmp": b'<x tiff:Orientation="3"/>',
        "dpi": (72, 72),
        "icc_profile": b"p" * 200,
    }
    for width, height in SIZES:
        smooth = np.add.outer(np.arange(height) * 3, np.arange(width) * 5)[..., None] + rng.integers(
            0, 30, (height, width, 4)
        )
        image = Image.fromarray(smooth.astype(np.uint8))
        rgb, size = image.convert("RGB"), f"{width}x{height}"
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
            keep(f"{mode}-{size}.png", image.convert(mode), "PNG")
            if mode != "1":
                keep(f"{mode}-{size}.gif", image.convert(mode), "GIF")
        for mode in ("L", "RGB", "CMYK"):
            keep(f"{mode}-{size}.jpg", image.convert(mode), "JPEG", **described)
            keep(f"{mode}-{size}-progressive.jpg", image.convert(mode), "JPEG", progressive=True)
            for compression in ("raw", "tiff_lzw", "packbits", "jpeg"):
                keep(f"{mode}-{size}-{compression}.tif", image.convert(mode), "TIFF", compression=compression)
        keep(f"{size}.bmp", rgb, "BMP")
        keep(f"{size}.ppm", rgb, "PPM")
        keep(f"{size}.tga", image, "TGA", compression="tga_rle")
        keep(f"{size}.webp", image, "WEBP", lossless=True, exif=exif.tobytes())
        keep(f"{size}-lossy.webp", rgb, "WEBP")
        keep(f"{size}-interlaced.png", rgb, "PNG", exif=exif.tobytes(), icc_profile=b"p" * 200)
        keep(f"{size}-animated.gif", rgb, "GIF", save_all=True, append_images=[image.rotate(180)])
        if "AVIF" in Image.SAVE:
            keep(f"{size}.avif", rgb, "AVIF", **described)
        deep = rng.integers(0, 65_536, (height, width, 4)).astype(np.uint16)
        with tempfile.TemporaryDirectory() as folder:
            for alpha in (None, deep[..., 3]):
                picture = Picture(deep[..., :3], alpha, metadata=Metadata(exif=exif.tobytes(), dpi=(300, 300)))
                for extension in ("png", "tif"):
                    file = Path(folder, f"a.{extension}")
                    write_image(picture, file)
                    found[f"16bit-{'rgb' if alpha is None else 'rgba'}-{size}.{extension}"] = file.read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            for alpha in (None, deep[..., 3].astype(np.uint8)):
                file = Path(folder, "a.jxl")
                write_image(Picture(np.asarray(rgb), alpha, metadata=Metadata(exif=exif.tobytes())), file)
                found[f"{'rgb' if alpha is None else 'rgba'}-{size}.jxl"] = file.read_bytes()
    found |= {f"36x24-{file.name}": file.read_bytes() for file in HEIC.glob("*.heic")}
    if "AVIF" in Image.SAVE:
        found |= {f"72x64-{file.name}": file.read_bytes() for file in AVIF.glob("*.avif")}
    found["64x48.dng"] = dng(orientation=6)
    return found


def cases(count: int, seed: int = 0, *, of: str = "") -> list[Case]:
    """`count` damaged files, the same ones for the same seed; of those whose names contain `of`."""
    rng = np.random.default_rng(seed)
    whole = seeds()
    names = sorted(name for name in whole if of in name)
    made = []
    for number in range(count):
        name = names[int(rng.integers(len(names)))]
        content = bytearray(whole[name])
        kind = ("cut", "flip", "overwrite", "header", "insert", "zero")[number % 6]
        places = rng.integers(0, len(content), size=int(rng.integers(1, 9)))
        if kind == "cut":
            content = content[: int(rng.integers(0, len(content)))]
        elif kind == "flip":
            for place in places:
                content[place] ^= 1 << int(rng.integers(8))
        elif kind == "overwrite":
            for place in places:
                content[place] = int(rng.choice((0, 1, 127, 128, 254, 255)))
        elif kind == "header":  # extreme numbers of 1, 2 and 4 bytes where sizes, counts and offsets are
            for place in places:
                value = (b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\1\0\0")[
                    int(rng.integers(5))
                ]
                length = int(rng.choice((1, 2, 4)))
                content[place % 64 : place % 64 + length] = value[:length]
        elif kind == "insert":
            content[places[0] : places[0]] = rng.bytes(int(rng.integers(1, 40)))
        else:
            content[places[0] : places[0] + 64] = bytes(min(64, len(content) - places[0]))
        made.append(Case(f"{number:05d}-{kind}-{name}", bytes(content), whole[name], kind == "cut"))
    return made


def work() -> None:
    """The child: paths on stdin, one JSON line each on stdout."""
    import torch
    from diffusers import DDIMScheduler

    from samdiffsr import LightDenoiser, LightEncoder, NoiseSchedule, SamDiffSRPipeline
    from samdiffsr.errors import ImageError
    from samdiffsr.images import read_image
    from samdiffsr.sampling.schedulers import make_scheduler
    from samdiffsr.upscale.batch import upscale_files
    from samdiffsr.upscale.plan import Job
    from samdiffsr.upscale.settings import FileSettings

    torch.set_num_threads(1)
    scheduler = make_scheduler(DDIMScheduler, NoiseSchedule.cosine(100), "sample", timestep_spacing="trailing")
    networks = LightEncoder(width=16, blocks=1), LightDenoiser(width=16, blocks=1, feature_channels=16)
    pipe = SamDiffSRPipeline(*networks, scheduler, base="encoder", target="sample", steps=1)
    pipe.set_progress_bar_config(disable=True)
    for line in sys.stdin:
        source, target = line.rstrip("\n").split("\t")
        report = upscale_files(lambda: pipe, [Job(source, target, True)], files=FileSettings(max_pixels=MAX_PIXELS))
        answer = {
            "sentences": [message for _, message in report.failed],
            "exists": os.path.exists(target),
            "pixels": "",
        }
        if report.done:
            try:
                picture = read_image(source, keep_16_bit=True, max_pixels=MAX_PIXELS)
                alpha = b"" if picture.alpha is None else picture.alpha.tobytes()
                answer["pixels"] = hashlib.sha256(picture.rgb.tobytes() + alpha).hexdigest()
            except ImageError as error:
                answer["sentences"].append(f"read once, but not twice: {error}")
            os.unlink(target)
        print(json.dumps(answer), flush=True)


class Child:
    """The process at work, begun anew after it has crashed or hung."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, source: Path, target: Path) -> tuple[dict | None, str]:
        """Its answer, or None and what became of it."""
        if self._process is None:
            command = [sys.executable, __file__, "--work"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            self._lines: queue.Queue[str] = queue.Queue()
            self._words: list[str] = []
            threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
            threading.Thread(target=self._overhear, args=(self._process,), daemon=True).start()
            limit = TIME_LIMIT + 60  # torch is imported
        else:
            limit = TIME_LIMIT
        assert self._process.stdin is not None
        self._process.stdin.write(f"{source}\t{target}\n")
        self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            line = ""
            self._words.append(f"no answer in {limit} s")
        if line:
            return json.loads(line), ""
        words = "".join(self._words)[-2000:]
        self.end()
        return None, words

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.put(line)
        self._lines.put("")  # the process has ended

    def _overhear(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self._words.extend(process.stderr)

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def run(files: list[Case]) -> tuple[Counter[str], list[str]]:
    """How many files came to which end, and what went wrong."""
    ends: Counter[str] = Counter()
    faults: list[str] = []
    child = Child()
    originals: dict[bytes, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "out.png")

        def tried(case_name: str, content: bytes) -> dict | None:
            source = Path(folder, case_name)
            source.write_bytes(content)
            answer, words = child.ask(source, target)
            source.unlink()
            if answer is None:
                faults.append(f"{case_name}: the process ended: {words}")
            return answer

        for case in files:
            answer = tried(case.name, case.content)
            target.unlink(missing_ok=True)
            if answer is None:
                ends["fault"] += 1
                continue
            sentences = answer["sentences"]
            faults += [f"{case.name}: {words}" for words in sentences if "\n" in words or not words.endswith(".")]
            if answer["exists"] == bool(sentences) or len(sentences) > 1:
                faults.append(f"{case.name}: output {answer['exists']}, told {sentences}")
            if case.cut and answer["pixels"]:
                if case.whole not in originals:
                    original = tried("whole-" + case.name, case.whole)
                    originals[case.whole] = original["pixels"] if original else ""
                if originals[case.whole] != answer["pixels"]:
                    faults.append(f"{case.name}: cut at {len(case.content)} of {len(case.whole)}, yet another picture")
            ends["refused" if sentences else "upscaled"] += 1
    child.end()
    return ends, faults


def main() -> None:
    if sys.argv[1:] == ["--work"]:
        work()
        return
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    ends, faults = run(cases(count, seed))
    for fault in faults:
        print(fault)
    print(f"{count} damaged files: {dict(ends)}, {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
