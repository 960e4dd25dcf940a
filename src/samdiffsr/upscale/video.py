"""A film: each frame by itself, with the same noise; sound and subtitles are copied. This is not a video model.

Frames are written in segments, and a finished segment is kept, so an interrupted film goes on where it stood. In memory is one
frame at a time. PyAV (extra `video`) reads and writes the files.
"""

import contextlib
import hashlib
import heapq
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samdiffsr import __version__
from samdiffsr.errors import ConfigError, ImageError
from samdiffsr.files import check_place, sweep, whole_file, write_json
from samdiffsr.images import Picture
from samdiffsr.images.formats import load_package
from samdiffsr.images.incomplete import ends_early
from samdiffsr.images.source import File, changed, failures, incomplete, regular_file
from samdiffsr.images.source import check_size as check_pixels
from samdiffsr.upscale.enlarge import check_size, enlarge, is_telling
from samdiffsr.upscale.settings import FileSettings, Settings

if TYPE_CHECKING:
    from samdiffsr.sampling.upscaler import Upscaler

READABLE = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv"})
"""Extensions that make an input a film."""

WRITABLE = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Extension of an output -> FFmpeg's name of the container."""

SEGMENT = 24  # frames that an interruption can lose
CRF = "16"  # of x264: hardly a difference that anybody sees
BT709, BT601 = 1, 5  # FFmpeg's numbers of these matrices of colours
HD = 720  # rows from which on a film that names no matrix counts as BT.709, as for players; below it is BT.601
EXACT = 4 | 1 << 13 | 1 << 14 | 1 << 18 | 1 << 19
"""FFmpeg's flags for colours: bicubic, all of the chroma on both sides, exact rounding, the same bits on every processor.
Without them each way there and back makes a film a whole level darker (measured)."""


def is_film_name(name: str) -> bool:
    """Whether an input is a film, by its extension."""
    return os.path.splitext(name)[1].lower() in READABLE


def check_film(source: Path, target: Path, files: FileSettings) -> None:
    """Refuse what can be refused by names and settings alone.

    Raises:
        ConfigError: settings that a film does not have. ImageError: a target that cannot be written.
    """
    wrong = [name for name in ("uncertainty", "save_structure", "strip_metadata") if getattr(files, name)]
    wrong += ["format"] * (files.format != "auto") + ["quality"] * (files.quality is not None)
    if wrong:
        raise ConfigError(f"'{source}' is a film, which does not take {', '.join(wrong)}; leave that out.")
    if target.suffix.lower() not in WRITABLE:
        raise ImageError(f"Cannot write '{target}': the extension of a film must be one of {', '.join(WRITABLE)}.")
    if target.is_dir():
        raise ImageError(f"Cannot write '{target}': it is a folder; choose another output.")
    if target.resolve() == source.resolve():
        raise ImageError(f"Upscaling '{source}' would overwrite itself; choose another output.")
    if target.exists() and not files.overwrite:
        raise ImageError(f"'{target}' exists already; give --overwrite to replace it.")
    check_place(target, is_folder=False, error=ImageError)


def _check_whole(source: Path) -> None:
    """Refuse a film whose end is missing, as while it is downloaded: after hours of work it would be too late."""
    film = File(source, None)
    with failures(film), regular_file(source, "a film") as file:
        if ends_early(file):
            raise incomplete(film, "film")


def upscale_film(
    load: Callable[[], "Upscaler"],
    source: Path,
    target: Path,
    settings: Settings = Settings(),
    files: FileSettings = FileSettings(),
    *,
    model: str = "default",
    on_progress: Callable[[float, float], None] = lambda part, megapixels: None,
    segment: int = SEGMENT,
) -> list[str]:
    """Enlarge every frame of `source` and write `target`, an H.264 film with the sound and subtitles of the source.

    Finished segments stand in the folder `TARGET.parts` until the film is complete; the same call goes on from there. The
    level of degradation is estimated once for the film, so that it does not change from frame to frame.

    Args:
        model: its name; parts of another model are refused.
        on_progress: called with the part done, 0 to 1 (0 where the length is not known), and the megapixels made.
        segment: frames of a segment.

    Returns:
        Sentences on what is lost, without full stop.

    Raises:
        ImageError: a file that cannot be read or written, is incomplete or changes meanwhile, streams that the container
            cannot hold, a size that cannot be encoded.
        ConfigError: settings that a film does not have, or `TARGET.parts` belongs to another film, model or settings.
    """
    check_film(source, target, files)
    av = load_package("av", "video", source)
    _check_whole(source)
    with _film(av, source) as film:
        first = next(_frames(film), None)
        if first is None:
            raise ImageError(f"'{source}' has no frame that can be read; copy or export it again.")
        total, warnings = _count(film), _warnings(film, first)
        _check_streams(av, film, source, target)
        shape = _pixels(first).shape
    check_pixels(source, shape[1], shape[0], files.max_pixels)
    size = check_size(shape[0], shape[1], settings.output_size, files.max_pixels)
    if size[0] % 2 or size[1] % 2:
        raise ImageError(
            f"'{source}' would become {size[1]}x{size[0]}, but a film has even sides; choose another size."
        )
    parts = target.with_name(target.name + ".parts")
    stamp = _stamp(source)
    done = _claim(target, parts, {"film": stamp, "model": model, "version": __version__, "segment": segment}, settings)
    pipe = load()
    settings = replace(settings, clean=_level(av, pipe, source, parts, settings))
    with _film(av, source) as film:
        frames = islice(_frames(film), done * segment, None)
        made = done * segment
        while (head := next(frames, None)) is not None:
            with (
                whole_file(parts / f"{done:06d}.nut", error=ImageError) as file,
                _Segment(av, file, film, head, size) as out,
            ):
                for frame in chain([head], islice(frames, segment - 1)):
                    out.add(enlarge(pipe, Picture(_pixels(frame)), settings, max_pixels=files.max_pixels).rgb, frame)
                    made += 1
                    on_progress(min(1.0, made / total) if total else 0.0, made * size[0] * size[1] / 1e6)
            done += 1
            _refuse_changed(source, stamp, parts)
    on_progress(1.0, made * size[0] * size[1] / 1e6)  # the number of frames was an estimate
    with _film(av, source) as film:
        _join(av, film, [parts / f"{number:06d}.nut" for number in range(done)], target)
    shutil.rmtree(parts, ignore_errors=True)
    return warnings


@contextmanager
def _film(av: Any, source: Path) -> Iterator[Any]:
    """The opened film, which has pictures; what FFmpeg says becomes an ImageError."""
    with _explained(av, source), closing(av.open(str(source))) as film:
        if not film.streams.video:
            raise ImageError(f"'{source}' has no pictures; give a film.")
        yield film


@contextmanager
def _explained(av: Any, path: Path) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise ImageError(f"'{path}' cannot be read as a film ({error.strerror}); copy or export it again.") from error


def _frames(film: Any) -> Iterator[Any]:
    """The frames that can be decoded, in order of time."""
    film.streams.video[0].thread_type = "AUTO"
    yield from film.decode(film.streams.video[0])


def _count(film: Any) -> int:
    """About how many frames there are; 0 where nothing says it."""
    stream = film.streams.video[0]
    if stream.frames or not stream.average_rate:
        return stream.frames
    seconds = stream.duration * stream.time_base if stream.duration else Fraction(film.duration or 0, 1_000_000)
    return round(seconds * stream.average_rate)


def _warnings(film: Any, first: Any) -> list[str]:
    found = []
    if len(film.streams.video) > 1:
        found.append("several streams of pictures, only the first is used")
    if first.interlaced_frame:
        found.append("its frames are interlaced and are enlarged as they are; deinterlace the film first")
    if max(component.bits for component in first.format.components) > 8:
        found.append("more than 8 bits a sample, which become 8")
    if any(component.is_alpha for component in first.format.components):
        found.append("transparency, which is left out")
    return found


def _copied(film: Any) -> list[Any]:
    """The streams that are copied."""
    return [stream for stream in film.streams if stream.type in ("audio", "subtitle")]


def _check_streams(av: Any, film: Any, source: Path, target: Path) -> None:
    """Refuse a container that cannot hold the sound or the subtitles."""
    with closing(av.open(io.BytesIO(), "w", format=WRITABLE[target.suffix.lower()])) as trial:
        for stream in _copied(film):
            try:
                trial.add_stream_from_template(stream)
            except (ValueError, av.FFmpegError):
                name = stream.codec_context.name if stream.codec_context else "of an unknown kind"
                raise ImageError(
                    f"'{target}' cannot hold the {stream.type} ({name}) of '{source}'; name the output .mkv."
                ) from None


def _matrix(frame: Any) -> int:
    """FFmpeg's number of the matrix between YCbCr and RGB."""
    named = int(frame.colorspace)
    return named if named not in (0, 2) else BT709 if frame.height >= HD else BT601  # 0 is RGB, 2 is unknown


def _pixels(frame: Any) -> np.ndarray:
    """uint8 (H, W, 3), upright."""
    rgb = frame.to_ndarray(format="rgb24", src_colorspace=_matrix(frame), dst_color_range=2, interpolation=EXACT)
    return np.ascontiguousarray(np.rot90(rgb, (frame.rotation // 90) % 4))


class _Segment:
    """An H.264 stream of some frames in an open file, without frames that look ahead: so segments can be joined.

    Args:
        head: the first frame; its matrix of colours and the stream's time base are kept.
        size: height and width of the results.
    """

    def __init__(self, av: Any, file: Any, film: Any, head: Any, size: tuple[int, int]) -> None:
        self._av, source = av, film.streams.video[0]
        self._container = av.open(file, "w", format="nut")
        self._matrix, self._base = _matrix(head), source.time_base
        rate = source.average_rate or Fraction(25)
        stream = self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": CRF, "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._base
        if source.sample_aspect_ratio and not head.rotation % 180:
            stream.codec_context.sample_aspect_ratio = source.sample_aspect_ratio
        stream.codec_context.colorspace, stream.codec_context.color_range = self._matrix, 1
        stream.codec_context.color_primaries = int(head.color_primaries)
        stream.codec_context.color_trc = int(head.color_trc)
        stream.codec_context.flags |= (
            1 << 22
        )  # AV_CODEC_FLAG_GLOBAL_HEADER: once for all segments, as containers want it

    def __enter__(self) -> "_Segment":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        if kind is None:
            self._mux(None)
        with contextlib.suppress(self._av.FFmpegError) if kind else contextlib.nullcontext():
            self._container.close()

    def add(self, rgb: np.ndarray, source: Any) -> None:
        """Encode the result of a frame at the frame's time."""
        frame = self._av.VideoFrame.from_ndarray(rgb, format="rgb24")
        colours = {"dst_colorspace": self._matrix, "src_color_range": 2, "dst_color_range": 1, "interpolation": EXACT}
        frame = frame.reformat(format="yuv420p", **colours)
        frame.pts, frame.time_base = source.pts, self._base
        self._mux(frame)

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


def _join(av: Any, film: Any, parts: list[Path], target: Path) -> None:
    """The segments one after the other, with the copied streams, into `target`."""
    kind = WRITABLE[target.suffix.lower()]
    with whole_file(target, error=ImageError) as file, closing(av.open(file, "w", format=kind)) as out:
        out.metadata.update({key: film.metadata[key] for key in film.metadata if key.lower() in ("title", "artist")})
        with closing(av.open(str(parts[0]))) as head:
            pictures = out.add_stream_from_template(head.streams.video[0])
        streams = _copied(film)
        copies = {stream.index: out.add_stream_from_template(stream) for stream in streams}
        for stream in streams:
            copies[stream.index].metadata.update(stream.metadata)
        copied = (
            (packet, copies[packet.stream.index])
            for packet in (film.demux(streams) if streams else ())
            if packet.dts is not None
        )
        for packet, stream in heapq.merge(((packet, pictures) for packet in _packets(av, parts)), copied, key=_when):
            packet.stream = stream
            out.mux(packet)
    sweep(target.parent)


def _when(place: tuple[Any, Any]) -> float:
    return float(place[0].dts * place[0].time_base)


def _packets(av: Any, parts: list[Path]) -> Iterator[Any]:
    for part in parts:
        with closing(av.open(str(part))) as segment:
            for packet in segment.demux(segment.streams.video[0]):
                if packet.pts is not None:
                    packet.dts = packet.pts  # no frame looks ahead, which the reader of NUT does not know
                    yield packet


def _stamp(source: Path) -> dict[str, Any]:
    found = source.stat()
    with open(source, "rb") as file:
        head = hashlib.sha256(file.read(1 << 20)).hexdigest()
    return {"name": source.name, "bytes": found.st_size, "start": head}


def _refuse_changed(source: Path, stamp: dict[str, Any], parts: Path) -> None:
    """Parts of a film that is another one by now are of no use."""
    with contextlib.suppress(OSError):
        if _stamp(source) == stamp:
            return
    shutil.rmtree(parts, ignore_errors=True)
    raise changed(source)


def _claim(target: Path, parts: Path, identity: dict[str, Any], settings: Settings) -> int:
    """How many segments are done; the first call for a film makes the folder `parts` and says whose it is."""
    owner = parts / "film.json"
    identity = identity | {"settings": asdict(settings) | {"tile": None}}  # which changes no pixel
    try:
        if owner.exists():
            if json.loads(owner.read_text(encoding="utf-8")) != json.loads(json.dumps(identity)):
                raise ConfigError(
                    f"'{parts}' was started with another film, model or other settings; repeat those, or remove the folder."
                )
            sweep(parts, idle_seconds=0)
            return len(list(parts.glob("*.nut")))
        parts.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its film.json is damaged"
        raise ConfigError(
            f"Cannot write '{target}': its unfinished parts need the folder '{parts}' ({reason}); "
            "remove that, or choose another output."
        ) from None
    write_json(identity, owner)
    return 0


def _level(av: Any, pipe: "Upscaler", source: Path, parts: Path, settings: Settings) -> float | None:
    """The level of degradation for the whole film: as set, else that of its first frame that is not plain."""
    from samdiffsr.models.level import takes_level

    if settings.clean is not None or settings.consistency or not takes_level(pipe.encoder):
        return settings.clean
    kept = parts / "level.json"
    if kept.exists():
        return float(json.loads(kept.read_text(encoding="utf-8")))
    with _film(av, source) as film:
        rgb = next((rgb for rgb in map(_pixels, islice(_frames(film), 500)) if is_telling(rgb)), None)
    level = 0.0 if rgb is None else pipe(rgb, num_inference_steps=1, detail=0.0, output_type="uint8").levels[0]
    write_json(level, kept)
    return level
