"""Films: frames, times, sound and subtitles; going on after an interruption; and how much still and moving films flicker."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samdiffsr.cli import main
from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.images import Picture
from samdiffsr.upscale import video
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.settings import FileSettings, Settings
from samdiffsr.upscale.video import upscale_film

av = pytest.importorskip("av")

TIMES = (0, 40, 80, 200, 240, 280, 320)  # milliseconds: one frame stays longer
LUMA = np.array([0.2126, 0.7152, 0.0722])
SUBTITLES = "1\n00:00:00,080 --> 00:00:00,280\nHello Ж\n"


def scene(width: int = 64, height: int = 48) -> np.ndarray:
    """Smooth patches with some texture."""
    from PIL import Image

    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), int)
    return np.clip(large + rng.integers(-12, 13, large.shape), 0, 255).astype(np.uint8)


def make_film(path: Path, frames: list[np.ndarray], *, sound: bool = True, subtitles: bool = True) -> Path:
    """A lossless H.264 film, with AAC and SubRip beside it if wanted."""
    if subtitles:
        path.with_suffix(".srt").write_text(SUBTITLES, encoding="utf-8")
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("libx264rgb", rate=25, options={"crf": "0"})
        pictures.height, pictures.width, pictures.pix_fmt = *frames[0].shape[:2], "rgb24"
        pictures.time_base = pictures.codec_context.time_base = Fraction(1, 1000)
        audio = out.add_stream("aac", rate=8000, layout="mono") if sound else None
        text = av.open(str(path.with_suffix(".srt"))) if subtitles else None
        copy = out.add_stream_from_template(text.streams[0]) if text else None
        for pixels, time in zip(frames, TIMES, strict=False):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode(None))
        if audio:
            wave = (np.sin(np.arange(4096) / 8)[None] * 0.5).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            samples.sample_rate = 8000
            out.mux(audio.encode(samples))
            out.mux(audio.encode(None))
        if text:
            for packet in text.demux():
                if packet.dts is not None:
                    packet.stream = copy
                    out.mux(packet)
            text.close()
    return path


def contents(path: Path) -> tuple[list[float], list[np.ndarray], dict[str, list[bytes]]]:
    """Times in seconds and pixels of the frames, and the packets of the other streams by their kind."""
    with av.open(str(path)) as film:
        frames = list(film.decode(film.streams.video[0]))
        times = [float(frame.time) for frame in frames]
        pixels = [video._pixels(frame) for frame in frames]
    packets: dict[str, list[bytes]] = {}
    with av.open(str(path)) as film:
        for packet in film.demux([stream for stream in film.streams if stream.type != "video"]):
            if packet.size:
                packets.setdefault(packet.stream.type, []).append(bytes(packet))
    return times, pixels, packets


@pytest.fixture
def panning(tmp_path: Path) -> Path:
    wide = scene(96)
    return make_film(tmp_path / "film.mkv", [wide[:, 2 * place : 2 * place + 64] for place in range(len(TIMES))])


def test_frames_times_sound_and_subtitles(tiny_pipe: Any, panning: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    target = tmp_path / "large.mkv"
    warnings = upscale_film(
        lambda: tiny_pipe, panning, target, Settings(seed=3), on_progress=lambda part, _: seen.append(part), segment=3
    )
    before, after = contents(panning), contents(target)
    assert warnings == [] and after[0] == before[0] == [time / 1000 for time in TIMES]
    assert after[2] == before[2] and set(after[2]) == {"audio", "subtitle"}
    assert len(seen) == len(TIMES) + 1 and seen == sorted(seen) and seen[-1] == 1
    for small, large in zip(before[1], after[1], strict=True):
        alone = enlarge(tiny_pipe, Picture(small), Settings(seed=3)).rgb
        assert large.shape == (192, 256, 3)
        assert np.abs((large.astype(int) - alone) @ LUMA).mean() < 3  # of H.264; the frame beside it is 14 away
        assert np.abs(large.mean((0, 1)) - alone.mean((0, 1))).max() < 1  # the matrix of colours is the same twice
    assert not (tmp_path / "large.mkv.parts").exists()


def test_an_interrupted_film_goes_on(tiny_pipe: Any, panning: Path, tmp_path: Path) -> None:
    """The finished segments are kept, the others made: the same bytes as without interruption."""
    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    upscale_film(lambda: tiny_pipe, panning, whole, segment=2)
    made: list[float] = []

    def interrupt(part: float, megapixels: float) -> None:
        made.append(part)
        if len(made) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscale_film(lambda: tiny_pipe, panning, cut, segment=2, on_progress=interrupt)
    assert not cut.exists()
    assert sorted(file.name for file in (tmp_path / "cut.mkv.parts").iterdir()) == [
        "000000.nut", "000001.nut", "film.json",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="was started with another film, model or other settings"):
        upscale_film(lambda: tiny_pipe, panning, cut, Settings(seed=1), segment=2)
    again: list[float] = []
    upscale_film(lambda: tiny_pipe, panning, cut, segment=2, on_progress=lambda part, _: again.append(part))
    assert len(again) == len(TIMES) - 4 + 1
    old, new = contents(whole), contents(cut)
    assert old[0] == new[0] and old[2] == new[2]
    assert all(np.array_equal(one, other) for one, other in zip(old[1], new[1], strict=True))


def flicker(results: list[np.ndarray], moved: int) -> float:
    """Root mean square of the change from frame to frame along the motion of `moved` pixels, in grey levels."""
    changes = []
    for before, after in pairwise(results):
        width = before.shape[1] - moved
        changes.append(((after[:, :width].astype(float) - before[:, moved:]) ** 2).mean())
    return float(np.sqrt(np.mean(changes)))


@pytest.mark.parametrize("speed", [0, 1])
def test_the_same_noise_flickers_less_than_other_noise(tiny_pipe: Any, speed: int) -> None:
    """Still: not at all. Panning by one pixel of the input: the noise stays on the screen while the picture moves, which
    changes its details; noise that is drawn anew for each frame changes at least as much."""
    wide = scene(96)
    frames = [Picture(wide[:, speed * place : speed * place + 64]) for place in range(4)]

    def of(seeds: list[int]) -> float:
        settings = [Settings(seed=seed) for seed in seeds]
        return flicker([enlarge(tiny_pipe, *each).rgb for each in zip(frames, settings, strict=True)], 4 * speed)

    same, other = of([0, 0, 0, 0]), of([0, 1, 2, 3])
    assert other > 0
    assert same == 0 if speed == 0 else same < 1.05 * other


def test_a_still_film_has_equal_frames(tiny_pipe: Any, tmp_path: Path) -> None:
    film = make_film(tmp_path / "still.mkv", [scene()] * 4, sound=False, subtitles=False)
    seen: list[np.ndarray] = []
    original = video._Segment.add
    try:
        video._Segment.add = lambda self, rgb, source: (seen.append(rgb), original(self, rgb, source))[1]
        upscale_film(lambda: tiny_pipe, film, tmp_path / "large.mkv")
    finally:
        video._Segment.add = original
    assert len(seen) == 4 and all(np.array_equal(seen[0], frame) for frame in seen[1:])


def test_streams_that_a_container_cannot_hold_are_refused_before_the_work(panning: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot hold the subtitle \((srt|subrip)\) of .*; name the output \.mkv\."):
        upscale_film(lambda: pytest.fail("too late"), panning, tmp_path / "large.mp4")
    assert [file.name for file in tmp_path.iterdir() if "large" in file.name] == []


def test_mp4_with_sound(tiny_pipe: Any, tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mp4", [scene()] * 3, subtitles=False)
    upscale_film(lambda: tiny_pipe, film, tmp_path / "large.mp4", Settings(scale=2))
    before, after = contents(film), contents(tmp_path / "large.mp4")
    assert after[2] == before[2] and after[1][0].shape == (96, 128, 3)
    assert after[0] == pytest.approx(before[0], abs=1e-3)


def encoded(
    path: Path, codec: str, frames: list[np.ndarray], kind: str, *, container: Any = None, **options: str
) -> Path:
    """A film of one stream in a pixel format; skips where this PyAV has no such encoder."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], kind
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.dtype == np.uint8 else "rgb48le")
            out.mux(stream.encode(frame.reformat(format=kind, dst_colorspace=5, interpolation=video.EXACT)))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("codec", "options"), [("libx264", {"x264-params": "tff=1", "crf": "4"}), ("mpeg2video", {"flags": "+ilme+ildct"})]
)
def test_an_interlaced_film_is_enlarged_as_it_is_with_a_warning(
    tiny_pipe: Any, tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    """What moves between the two fields of a frame makes a comb; it goes into the network as it is."""
    frames = [scene() for _ in range(3)]
    for frame in frames:
        frame[1::2] = np.roll(frame[1::2], 8, axis=1)
    film = encoded(tmp_path / "film.mkv", codec, frames, "yuv420p", **options)
    words = upscale_film(lambda: tiny_pipe, film, tmp_path / "large.mkv", Settings(scale=1))
    assert words == ["its frames are interlaced and are enlarged as they are; deinterlace the film first"]
    before, after = contents(film)[1], contents(tmp_path / "large.mkv")[1]
    assert len(before) == len(after) == 3

    def comb(pixels: np.ndarray) -> float:
        """How much more neighbouring rows differ than rows of one field."""
        rows = pixels.astype(float)
        return np.abs(np.diff(rows, axis=0)).mean() - np.abs(rows[2:] - rows[:-2]).mean()

    assert comb(scene()) < 0 and all(comb(frame) > 2 for frame in before)
    for small, large in zip(before, after, strict=True):
        assert np.abs(large - enlarge(tiny_pipe, Picture(small), Settings(scale=1)).rgb.astype(int)).mean() < 6
    plain = encoded(tmp_path / "plain.mkv", codec, [scene()] * 2, "yuv420p")
    assert upscale_film(lambda: tiny_pipe, plain, tmp_path / "plain_large.mkv") == []


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The same MP4 with a matrix of display (a, b, c, d) in its track's header, as a phone writes it."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # behind version and flags, times, id, length, layer, group and volume
    a, b, c, d = (value * 65_536 for value in matrix)
    for number, value in enumerate((a, b, 0, c, d, 0, 0, 0, 1 << 30)):
        content[place + 4 * number : place + 4 * number + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)], ids=["right", "over", "left"]
)
def test_a_film_that_says_how_it_was_held_becomes_upright(
    tiny_pipe: Any, tmp_path: Path, matrix: tuple[int, int, int, int], turns: int
) -> None:
    """Its frames are turned, and the result needs no matrix."""
    film = encoded(tmp_path / "film.mp4", "libx264", [scene()] * 2, "yuv420p", crf="4")
    stored = contents(film)[1][0]
    turned(film, matrix)
    assert upscale_film(lambda: tiny_pipe, film, tmp_path / "large.mp4", Settings(scale=2)) == []
    with av.open(str(tmp_path / "large.mp4")) as out:
        frame = next(out.decode(out.streams.video[0]))
        assert frame.rotation == 0
        found = frame.to_ndarray(format="rgb24")
    alone = enlarge(tiny_pipe, Picture(np.ascontiguousarray(np.rot90(stored, turns))), Settings(scale=2)).rgb
    assert found.shape == alone.shape == ((128, 96, 3) if turns % 2 else (96, 128, 3))
    assert np.abs(found.astype(int) - alone).mean() < 6


@pytest.mark.parametrize(
    ("codec", "kind", "name"),
    [("libx265", "yuv420p10le", "a.mkv"), ("prores_ks", "yuv422p10le", "a.mov"), ("ffv1", "yuv444p10le", "a.mkv")],
)
def test_ten_bits_become_eight_with_a_warning(tiny_pipe: Any, tmp_path: Path, codec: str, kind: str, name: str) -> None:
    deep = scene().astype(np.uint16) * 257
    options = {"x265-params": "lossless=1:log-level=none"} if codec == "libx265" else {}
    film = encoded(tmp_path / name, codec, [deep] * 2, kind, **options)
    with av.open(str(film)) as file:
        assert next(file.decode(file.streams.video[0])).format.name == kind
    words = upscale_film(lambda: tiny_pipe, film, tmp_path / "large.mkv", Settings(scale=2))
    assert words == ["more than 8 bits a sample, which become 8"]
    small, large = contents(film)[1][0], contents(tmp_path / "large.mkv")[1][0]
    alone = enlarge(tiny_pipe, Picture(small), Settings(scale=2)).rgb
    assert np.abs(small.astype(int) - scene()).mean() < 8 and np.abs(large.astype(int) - alone).mean() < 6
    assert np.abs(large.mean((0, 1)) - alone.mean((0, 1))).max() < 1.5


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("large.avi", {}, r"the extension of a film must be one of \.mp4, \.m4v, \.mov, \.mkv\."),
        ("large.mkv", {"uncertainty": True}, "is a film, which does not take uncertainty; leave that out."),
        ("large.mkv", {"format": "png", "quality": 3}, "does not take format, quality;"),
        ("film.mkv", {"overwrite": True}, "would overwrite itself"),
        ("there.mkv", {}, "exists already; give --overwrite"),
        ("large.mkv", {"max_pixels": 99}, "has 64x48 = 3072 pixels, above the limit of 99"),
    ],
)
def test_bad_requests(panning: Path, tmp_path: Path, target: str, options: dict, message: str) -> None:
    (tmp_path / "there.mkv").touch()
    with pytest.raises((ImageError, ConfigError), match=message):
        upscale_film(lambda: pytest.fail("too late"), panning, tmp_path / target, files=FileSettings(**options))


def test_odd_sizes_and_damaged_films(panning: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="would become 68x51, but a film has even sides"):
        upscale_film(lambda: pytest.fail("too late"), panning, tmp_path / "a.mkv", Settings(scale=1.0625))
    (tmp_path / "bad.mkv").write_bytes(b"no film at all")
    with pytest.raises(ImageError, match=r"bad\.mkv' cannot be read as a film"):
        upscale_film(lambda: pytest.fail("too late"), tmp_path / "bad.mkv", tmp_path / "a.mkv")
    with pytest.raises(ImageError, match=r"none\.mkv' does not exist"):
        upscale_film(lambda: pytest.fail("too late"), tmp_path / "none.mkv", tmp_path / "a.mkv")


@pytest.mark.parametrize(("name", "options"), [("a.mkv", {}), ("a.mp4", {"movflags": "faststart"}), ("a.webm", {})])
def test_a_film_whose_end_is_missing_is_refused_before_the_work(
    tiny_pipe: Any, tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    codec, film, target = "libvpx" if "webm" in name else "libx264", tmp_path / name, tmp_path / "large.mkv"
    encoded(film, codec, [scene()] * 5, "yuv420p", container=options)
    whole = film.read_bytes()
    for part in (0.6, 0.95):
        film.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(ImageError, match=r"is incomplete, for it ends before the film in it does; wait until it"):
            upscale_film(lambda: pytest.fail("too late"), film, target)
    film.write_bytes(whole)
    assert upscale_film(lambda: tiny_pipe, film, target, Settings(scale=1)) == []


def test_a_film_that_changes_meanwhile(tiny_pipe: Any, panning: Path, tmp_path: Path) -> None:
    """It is noticed after the segment at hand, and the parts, which belong to no film any more, are removed."""
    made: list[float] = []

    def grow(part: float, megapixels: float) -> None:
        made.append(part)
        with open(panning, "ab") as file:
            file.write(bytes(100))

    with pytest.raises(ImageError, match=r"film\.mkv' changed while it was read; try again when nobody writes to it\."):
        upscale_film(lambda: tiny_pipe, panning, tmp_path / "large.mkv", segment=2, on_progress=grow)
    assert len(made) == 2 and not (tmp_path / "large.mkv.parts").exists() and not (tmp_path / "large.mkv").exists()


def test_places_that_cannot_be_written_are_named_as_they_were_given(panning: Path, tmp_path: Path) -> None:
    target = panning / "x.mp4"
    with pytest.raises(ImageError) as caught:
        upscale_film(lambda: pytest.fail("too late"), tmp_path / "none.mp4", target)
    assert str(caught.value) == f"Cannot write to '{target}': '{panning}' is not a folder; choose another output."
    (tmp_path / "large.mkv.parts").touch()
    words = (
        r"Cannot write '.*large\.mkv': its unfinished parts need the folder '.*large\.mkv\.parts' \(.*\); remove that,"
    )
    with pytest.raises(ConfigError, match=words):
        upscale_film(lambda: pytest.fail("too late"), panning, tmp_path / "large.mkv")


def test_the_command(tiny_pipe_dir: Path, panning: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["upscale", str(panning), "-o", str(tmp_path / "large.mkv"), "-m", str(tiny_pipe_dir)]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0 and len(contents(tmp_path / "large.mkv")[0]) == len(TIMES)
    for more, message in (
        (["photo.png"], "is a film, which is enlarged alone"),
        (["--cluster", "local"], "which does not take --cluster"),
        (["--json"], "which does not take --json"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*words, *more])
        assert end.value.code == 2 and message in capsys.readouterr().err


def test_without_the_extra(panning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match=r'av is not installed; run pip install "samdiffsr\[video\]"'):
        upscale_film(lambda: pytest.fail("too late"), panning, tmp_path / "large.mkv")
