"""The settings of a job: `Settings` changes the picture, `FileSettings` the files. Each field has its words and its check here.

The command line makes an option of every field, and a form or a query string becomes settings by `from_text`. To add a
setting is to add its field: `_setting` says the rest.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from samdiffsr.errors import ConfigError, Range, choose
from samdiffsr.images.formats import MAX_PIXELS, QUALITY
from samdiffsr.sampling.ranges import CLEAN, DETAIL, SEED, STEPS, TILE, Precision

if TYPE_CHECKING:
    from samdiffsr.upscale.size import OutputSize

Class = TypeVar("Class")
Format = Literal["auto", "png", "jpg", "webp", "tiff", "avif", "jxl"]
FORMATS = get_args(Format)


def _setting(
    default: Any,
    help: str,
    *,
    metavar: str = "",
    short: str = "",
    range: Range | None = None,
    unset: str = "",
    argument: str = "",
) -> Any:
    """A field with its words.

    Args:
        default: of the field; None means that somebody else decides, and `unset` says who.
        help: one sentence for the user.
        metavar, short: the value and the short name of the option on the command line.
        range: of a number.
        argument: of the pipeline's call, which takes the value as it is.
    """
    words = {"help": help, "metavar": metavar, "short": short, "range": range, "unset": unset, "argument": argument}
    return dataclasses.field(default=default, metadata=words)


@dataclass(frozen=True)
class Settings:
    """How a picture is enlarged. Its files are the matter of `FileSettings`.

    Attributes:
        scale: factor from 1 to 16; neither scale nor size means 4.
        size: "1920x1080", "1920x" or "x1080" instead of a factor, see `OutputSize`.
        steps, detail, tile, structure: see `SamDiffSRPipeline`; None takes what the model was saved with, for the tile the free
            memory.
        clean: see `SamDiffSRPipeline`; None estimates it from each picture, where the model can.
        seed: each picture has its own noise from this seed, so its result depends neither on the batch nor on its place in it.
        precision: see `SamDiffSRPipeline`; "float32" gives a picture that hardly depends on the processor.
        consistency: project the result so that its bicubic reduction to the input's size equals the input.

    Raises:
        ConfigError: a value out of its range, both a scale and a size, or consistency at scale 1 or with a level to clean.
    """

    scale: float | None = _setting(None, "Factor from 1 to 16; 1 keeps the size.", metavar="F", short="-s", unset="4")
    size: str | None = _setting(
        None, "Size instead of a factor; 1920x or x1080 keeps the aspect, 1920x1080 must have it.", metavar="WxH"
    )
    steps: int | None = _setting(
        None,
        "Denoising steps.",
        metavar="N",
        range=STEPS,
        unset="as the model was saved",
        argument="num_inference_steps",
    )
    detail: float | None = _setting(
        None,
        "How much of the sampled detail is added, from 0 (none: smooth, truest on average) over 1 (all) to 2.",
        metavar="F",
        range=DETAIL,
        unset="as the model was saved",
        argument="detail",
    )
    structure: Literal["auto", "model", "felzenszwalb", "none"] = _setting(
        "auto",
        "Structure map: model (its own estimate), felzenszwalb (regions of similar colour), none; auto: model, if it has one.",
        metavar="NAME",
        argument="structure",
    )
    clean: float | None = _setting(
        None,
        "How degraded the input is, from 0 (not at all) to 1 (an old scan); only a model trained for it can clean.",
        metavar="F|auto",
        range=CLEAN,
        unset="auto, estimated from the picture where the model can",
        argument="clean",
    )
    seed: int = _setting(0, "Each image starts from this seed.", metavar="N", range=SEED)
    tile: int | None = _setting(
        None,
        "Side of a tile in input pixels, 0: no tiles.",
        metavar="N",
        short="-t",
        range=TILE,
        unset="by the free memory",
        argument="tile",
    )
    precision: Precision = _setting(  # noqa: RUF009 - a field
        "auto",
        "Convolutions in float32, bfloat16 or float16; auto: the short type that the processor has, else float32.",
        metavar="NAME",
        argument="precision",
    )
    consistency: bool = _setting(False, "Make the bicubic reduction of each result equal its input.")

    def __post_init__(self) -> None:
        _check(self)
        if self.output_size.scale == 1 and self.consistency:
            raise ConfigError("consistency at scale 1 would give the input back; leave one of them out.")
        if self.consistency and self.clean:
            raise ConfigError(
                f"consistency brings back the noise that clean, {self.clean}, removes; give one of them, or clean 0."
            )

    @property
    def output_size(self) -> "OutputSize":
        """How large the result is."""
        from samdiffsr.upscale.size import OutputSize

        return OutputSize.parse(self.scale, self.size)

    def pipeline_arguments(self) -> dict[str, Any]:
        """The arguments of the pipeline's call among these settings; the seed is not among them, it becomes a generator."""
        wanted = ((one.metadata["argument"], one.name) for one in dataclasses.fields(self))
        arguments = {argument: getattr(self, name) for argument, name in wanted if argument}
        return arguments | {"clean": 0.0} if self.consistency else arguments  # an estimate would contradict it too


@dataclass(frozen=True)
class FileSettings:
    """Which files are read and how results are written. Nothing here changes a pixel of a lossless file.

    Attributes:
        format: "auto" keeps the input's where it can, see `plan`.
        quality: see `write_image`.
        strip_metadata: leave out EXIF, XMP and resolution. The colour profile stays: colours would shift without it.
        overwrite, skip_existing: what to do with existing targets; with neither, that file fails.
        uncertainty: save the disagreement of three seeds beside each result, see `evaluation.blind`: black where the model
            knows, white where it invents.
        save_structure: save the structure map that was used beside each result, see `draw_structure`; refused where none is.
        max_pixels: of an input, see `read_image`; a picture on the way to the result can have 16 times as many.

    Raises:
        ConfigError: a value out of its range, or both switches.
    """

    format: Format = _setting(  # noqa: RUF009 - a field
        "auto", "auto, png, jpg, webp, tiff, avif, jxl; auto keeps the input's where it can.", metavar="NAME"
    )
    quality: int | None = _setting(
        None,
        "Of JPEG, WebP, AVIF and JPEG XL, from 1 to 100.",
        metavar="N",
        range=QUALITY,
        unset="95 for JPEG and AVIF, lossless for WebP and JPEG XL",
    )
    strip_metadata: bool = _setting(False, "Leave out EXIF, XMP and resolution; the colour profile stays.")
    overwrite: bool = _setting(False, "Replace what is at the output already.")
    skip_existing: bool = _setting(False, "Leave out images whose output exists.")
    uncertainty: bool = _setting(
        False, "Save where three seeds disagree beside each result, as NAME_uncertainty.png; takes three times as long."
    )
    save_structure: bool = _setting(
        False, "Save the structure map beside each result, as NAME_structure.png; needs a map, see --structure."
    )
    max_pixels: int = _setting(
        MAX_PIXELS,
        "Refuse images with more pixels than this.",
        metavar="N",
        range=Range("max_pixels", 1, whole=True),
    )

    def __post_init__(self) -> None:
        _check(self)
        if self.overwrite and self.skip_existing:
            raise ConfigError("overwrite and skip_existing contradict each other; give one of them.")

    @property
    def extension(self) -> str:
        """That of every result, such as ".png"; empty for "auto"."""
        return "" if self.format == "auto" else f".{self.format}"


def _check(settings: Any) -> None:
    """Every value against the range or the choices of its field."""
    kinds = get_type_hints(type(settings))
    for one in dataclasses.fields(settings):
        value: Any = getattr(settings, one.name)
        allowed: Range | None = one.metadata["range"]
        if value is None and one.default is None:
            continue
        if allowed is not None:
            allowed.check(value)
        elif get_origin(kinds[one.name]) is Literal:
            choose(str(value), dict.fromkeys(get_args(kinds[one.name])), one.name)


def from_text(kind: type[Class], given: Mapping[str, str]) -> Class:
    """A dataclass of numbers, switches and names from what a user wrote, such as {"detail": "0.5"}.

    "auto" leaves to whom it may concern what can be left out.

    Raises:
        ConfigError: an unknown name, a text that is no value of its field, or what the class itself refuses.
    """
    hints = get_type_hints(kind)
    names = {one.name: hints[one.name] for one in dataclasses.fields(kind) if one.init}  # type: ignore[arg-type]
    return kind(**{name: _value(name, choose(name, names, "the setting"), text) for name, text in given.items()})


def _value(name: str, kind: Any, text: str) -> Any:
    """The text as a value of the field's type; the class checks its range."""
    kinds = set(get_args(kind)) or {kind}
    if text == "auto" and type(None) in kinds:
        return None
    if bool in kinds:
        return choose(text.lower(), {"true": True, "false": False, "1": True, "0": False}, name)
    for number, words in ((int, "a whole number"), (float, "a number")):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                raise ConfigError(f"{name} is {text!r}, but must be {words}.") from None
    return text
