"""Photographs and their regions -> a prepared folder: shards, and a manifest that is written last.

The sorted photographs are cut into consecutive shards, and `prepare_shard` makes one of them, anywhere: the driver here is
a loop over it. Where a shard ends depends on the names near it alone, and its file is named after the names in it, so a
photograph added or taken away leaves all other shards as they are.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from samdiffsr.data import FORMULAS, SCHEMA
from samdiffsr.data.example import PrepareOptions, Regions, Sources, prepare_example
from samdiffsr.data.pairs import find_partners
from samdiffsr.data.shards import MEMBERS, ShardWriter, read_manifest
from samdiffsr.errors import ConfigError, SamDiffSRError, choose
from samdiffsr.files import sweep, whole_file, write_json
from samdiffsr.images import list_images
from samdiffsr.resize import SCALE
from samdiffsr.workers import in_processes

IMAGES_PER_SHARD = 64
NAMED = 100  # bad files, at most, in the message at the end of a run


@dataclass(frozen=True)
class ShardPlan:
    """The sources of one shard.

    Attributes:
        names: file names of its photographs, sorted, in the folder `photos`.
        regions: folder of "<stem>.json" or, for `kind` "structure", of "<stem>.npy"; None for `kind` "none".
        output: folder the shard is written to.
        targets: name and folder of further targets of the encoder, sorted; a folder has "<stem>.png" for each photograph.
        lr: the user's own LR image of each photograph; empty: they are made from the photographs.
    """

    names: tuple[str, ...]
    photos: Path
    regions: Path | None
    kind: Regions
    output: Path
    options: PrepareOptions
    targets: tuple[tuple[str, Path], ...] = ()
    lr: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The shard's file name without extension: the same for the same names and encoding on every machine."""
        head = header(self.kind, self.options, [name for name, _ in self.targets], own_lr=bool(self.lr))
        content = json.dumps([head, self.names])
        return f"shard-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def sources(self) -> Iterator[Sources]:
        """The files of each image."""
        suffix = choose(self.kind, {"masks": "json", "structure": "npy", "none": ""}, "kind")
        for name, lr in zip(self.names, self.lr or [None] * len(self.names), strict=True):
            stem = Path(name).stem
            regions = None if self.regions is None else self.regions / f"{stem}.{suffix}"
            targets = {target: folder / f"{stem}.png" for target, folder in self.targets}
            yield Sources(self.photos / name, regions, targets, lr)


@dataclass(frozen=True)
class ShardReport:
    """The outcome of one shard of `images` photographs: its `entry` in the manifest and the versions of the tools that
    made it, or else one sentence for each bad file in it, and no shard."""

    name: str
    images: int
    entry: dict | None = None
    tools: dict | None = None
    problems: tuple[str, ...] = ()


class _BadFiles(Exception):  # noqa: N818 - ends the writing of a shard, never leaves this module
    """Its arguments are the problems."""


HEADER = ("schema", "scale", "regions", "structure", "targets", "lr")


def header(kind: Regions, options: PrepareOptions, targets: Sequence[str], *, own_lr: bool) -> dict:
    """The properties that two prepared folders must share to be the same kind of data; "targets" only if there are any, and
    "lr" only if the LR images are the user's own."""
    encoding = options.structure if kind == "masks" else None
    if encoding is not None and options.encoding != "rope":
        encoding = encoding | {"formulas": FORMULAS}
    found = {"schema": SCHEMA, "scale": SCALE, "regions": kind, "structure": encoding}
    return found | ({"targets": list(targets)} if targets else {}) | ({"lr": "own"} if own_lr else {})


def tools() -> dict[str, str]:
    """The versions of what decodes and computes."""
    return {name: version(name) for name in ("samdiffsr", "numpy", "pillow")}


def cut(names: Iterable[str], limit: int) -> Iterator[tuple[str, ...]]:
    """Cut a list into consecutive pieces of at most `limit` names; all but the last have a quarter of it at least.

    A piece starts where the last one is full, or at a name whose checksum says so. A name added or taken away therefore
    moves a few cuts near it, where cutting by number would move every one that follows.
    """
    quarter = -(-limit // 4)
    period = max(2, quarter)
    piece: list[str] = []
    for name in names:
        marked = zlib.crc32(name.encode(errors="surrogateescape")) % period == 0
        if len(piece) == limit or (marked and len(piece) >= quarter):
            yield tuple(piece)
            piece = []
        piece.append(name)
    if piece:
        yield tuple(piece)


def plan_shards(
    photos: Path,
    regions: Path | None,
    output: Path,
    *,
    kind: Regions,
    options: PrepareOptions,
    images_per_shard: int,
    targets: Mapping[str, Path] = MappingProxyType({}),
    lr: Path | None = None,
) -> list[ShardPlan]:
    """The shards of a folder of photographs, in the order of their names; nothing is opened.

    Raises:
        ConfigError: no such folder, a photograph without LR image, or a name of targets that cannot be used.
        ImageError: no photograph in the folder, or two of one stem.
    """
    for name in targets:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in MEMBERS:
            raise ConfigError(
                f"targets cannot be named {name!r}: use letters, digits, - and _, and none of {', '.join(MEMBERS)}."
            )
    given = [
        (photos, "photographs"),
        (regions, kind),
        (lr, "LR images"),
        *((found, "targets") for found in targets.values()),
    ]
    for folder, what in given:
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"folder {folder} with the {what} does not exist.")
    names = [file.name for file in list_images(photos, distinct=True)]
    further = tuple((name, Path(folder)) for name, folder in sorted(targets.items()))
    partners = None if lr is None else iter(find_partners(Path(photos), names, Path(lr)))
    folders = (Path(photos), regions and Path(regions), kind, Path(output), options, further)
    return [
        ShardPlan(piece, *folders, tuple(islice(partners, len(piece))) if partners else ())
        for piece in cut(names, images_per_shard)
    ]


def prepare_shard(plan: ShardPlan) -> ShardReport:
    """Make one shard, or find it made already of the same files. A bad file is reported, and leaves the shard unwritten.

    Raises:
        SamDiffSRError: the shard cannot be written, as on a full disk.
    """
    tar, index = (plan.output / f"{plan.name}{suffix}" for suffix in (".tar", ".json"))
    content = _kept(plan, tar, index)
    if content is None:
        try:
            with whole_file(tar) as file:
                images = _write_images(plan, file)
        except _BadFiles as bad:
            return ShardReport(plan.name, len(plan.names), problems=bad.args)
        content = {"tools": tools(), "bytes": tar.stat().st_size, "images": images}
        write_json(content, index)
    images = content["images"]
    entry = {
        "name": plan.name,
        "images": len(images),
        "without_masks": sum(image["without_masks"] for image in images),
        "resized_masks": sum(image["resized"] for image in images),
        "unchecked": sum(image.get("unchecked", False) for image in images),
        "bytes": content["bytes"],
        "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest(),
    }
    return ShardReport(plan.name, len(images), entry, content["tools"])


def _write_images(plan: ShardPlan, file: BinaryIO) -> list[dict]:
    """Write all images of a shard; returns the index. _BadFiles names every file that cannot be used."""
    writer = ShardWriter(file)
    problems, index = [], []
    for sources in plan.sources():
        try:
            prepared = prepare_example(sources, plan.kind, plan.options)
            source = {
                "photo": _source(sources.photo),
                "regions": _source(sources.regions) if sources.regions and sources.regions.exists() else None,
                "without_masks": prepared.without_masks,
                "resized": prepared.resized,
            }
            if sources.targets:
                source["targets"] = {name: _source(file) for name, file in sources.targets.items()}
            if sources.lr is not None:  # the shift that was accepted too: a smaller one looks again
                source |= {
                    "own_lr": _source(sources.lr),
                    "unchecked": prepared.unchecked,
                    "max_shift": plan.options.max_shift,
                }
        except SamDiffSRError as error:
            problems.append(str(error))
            continue  # the rest is looked at too, so that one run reports every bad file
        if not problems:
            index.append(writer.add(sources.photo.stem, prepared.example, list(sources.targets)) | source)
    if problems:
        raise _BadFiles(*problems)
    writer.close()
    return index


def _source(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            return {
                "name": path.name,
                "bytes": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    except OSError as error:
        raise SamDiffSRError(f"{path} cannot be read ({error.strerror}); check it and its permissions.") from None


def _kept(plan: ShardPlan, tar: Path, index: Path) -> dict | None:
    """The index of a shard made earlier, unless it is unfinished or damaged, holds what is not accepted now, or a source
    has changed."""
    try:
        content, written = json.loads(index.read_text(encoding="utf-8")), index.stat().st_mtime_ns
        if tar.stat().st_size != content["bytes"] or not content["tools"]:
            return None
        for sources, image in zip(plan.sources(), content["images"], strict=True):
            refused = (image["without_masks"] and plan.options.missing_masks == "error") or (
                image["resized"] and not plan.options.resize_masks
            )
            files = [(sources.photo, image["photo"])]
            files += [(sources.regions, image["regions"])] if sources.regions else []
            files += [(file, image["targets"][name]) for name, file in sources.targets.items()]
            if sources.lr is not None:
                refused |= image["max_shift"] != plan.options.max_shift or image["own_lr"]["name"] != sources.lr.name
                files.append((sources.lr, image["own_lr"]))
            if refused or not all(_same(file, source, written) for file, source in files):
                return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no such file, or no index of ours in it
        return None
    except SamDiffSRError:  # a source that cannot be read is reported with all other bad files
        return None
    return content


def _same(path: Path, source: dict | None, written: int) -> bool:
    """Whether a file is still the `source` of an index written then (in ns): of the same size, and older or else with the
    same content. An older file put in its place keeps its time of modification, but not that of its status."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return source is None
    if source is None or status.st_size != source["bytes"]:
        return False
    return max(status.st_mtime_ns, status.st_ctime_ns) < written or _source(path)["sha256"] == source["sha256"]


MapShards = Callable[[Callable[[ShardPlan], ShardReport], Sequence[ShardPlan]], Iterable[ShardReport]]
"""Maps a function over the plans, in any order."""


@dataclass(frozen=True)
class PreparedFolder:
    """Counts of a finished folder; `unchecked` are own LR images too small or plain to be compared with their photographs,
    `leftovers` shards of earlier runs that are no longer part of it."""

    images: int
    shards: int
    without_masks: int
    resized_masks: int
    unchecked: int
    bytes: int
    leftovers: int


def prepare_folder(
    photos: Path,
    regions: Path | None,
    output: Path,
    *,
    kind: Regions = "masks",
    options: PrepareOptions = PrepareOptions(),
    targets: Mapping[str, Path] = MappingProxyType({}),
    lr: Path | None = None,
    images_per_shard: int = IMAGES_PER_SHARD,
    run: MapShards = partial(in_processes, workers=1),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PreparedFolder:
    """Prepare every photograph of a folder. Shards made already of the same files are kept, so a run that was killed goes on.

    Bad files do not end the run: the shards without one are made, then an error names them, and there is no manifest.
    With these files mended or taken away the same command makes what is left.

    Args:
        photos: folder of pictures. regions: folder of masks or, for `kind` "structure", of structure maps; None for "none".
        output: folder to write, made if need be.
        targets: name -> folder of further targets of the encoder, "<stem>.png" of each photograph's size (cut to multiples
            of 4): an upscaler's results, from which it may learn.
        lr: folder of the user's own LR images, "<stem>" of any format; None makes them from the photographs.
        images_per_shard: at most; half of it typically.
        run: maps `prepare_shard` over the plans: `in_processes`, or a cluster's. May yield in any order.
        progress: called with (photographs done, photographs in all).

    Raises:
        SamDiffSRError: an empty folder, two photographs of one stem, bad files, a full disk, an output folder
            prepared with other options.
    """
    output = Path(output)
    plans = plan_shards(
        photos, regions, output, kind=kind, options=options, images_per_shard=images_per_shard, targets=targets, lr=lr
    )
    head = header(kind, options, sorted(targets), own_lr=lr is not None)
    if (output / "manifest.json").exists():
        found = read_manifest(output)
        if any(found.get(key) != head.get(key) for key in HEADER):
            raise ConfigError(f"folder {output} was prepared with other options; use a new folder.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"folder {output} cannot be made ({error.strerror}); choose another.") from None
    reports, done, total = {}, 0, sum(len(plan.names) for plan in plans)
    for report in run(prepare_shard, plans):
        reports[report.name] = report
        done += report.images
        progress(done, total)
    return _conclude(output, head, [reports[plan.name] for plan in plans])


def _conclude(output: Path, head: dict, reports: list[ShardReport]) -> PreparedFolder:
    """Write the manifest, or raise what stands in its way."""
    problems = [problem for report in reports for problem in report.problems]
    if len(problems) == 1:
        raise SamDiffSRError(problems[0])
    if problems:
        names = "\n".join(problems[:NAMED])
        raise SamDiffSRError(f"{len(problems)} files cannot be used: mend or remove them and start again.\n{names}")
    entries = [report.entry for report in reports if report.entry]
    names = {f"{entry['name']}{suffix}" for entry in entries for suffix in (".tar", ".json")}
    sweep(output, idle_seconds=0)  # this run has finished its files, so these are of a run that was killed
    leftovers = 0
    for path in output.iterdir():
        leftovers += path.name.startswith("shard-") and path.suffix == ".tar" and path.name not in names
    made_with = sorted({json.dumps(report.tools) for report in reports})
    counts = {
        key: sum(entry[key] for entry in entries)
        for key in ("images", "without_masks", "resized_masks", "unchecked", "bytes")
    }
    tools = {"tools": [json.loads(found) for found in made_with]}
    write_json(head | tools | counts | {"shards": entries}, output / "manifest.json", indent=1)
    return PreparedFolder(shards=len(entries), leftovers=leftovers, **counts)
