"""Options that several verbs share, each with one help text; and options made from settings."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import typer

from samdiffsr.errors import ConfigError
from samdiffsr.upscale.settings import FileSettings


def option_of(kind: type, name: str) -> Any:
    """The option for a settings field, with the words that stand there."""
    words = next(field for field in dataclasses.fields(kind) if field.name == name).metadata
    flag = f"--{name.replace('_', '-')}"
    help = words["help"] + (f"  [default: {words['unset']}]" if words["unset"] else "")
    flags = [words["short"], flag] if words["short"] else [flag]
    parser = _number_or_auto if words["metavar"].endswith("|auto") else None
    return typer.Option(*flags, metavar=words["metavar"] or None, help=help, parser=parser)


def _number_or_auto(text: str) -> float | None:
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor auto.") from None


def with_settings(verb: Callable[..., None]) -> Callable[..., None]:
    """Let typer see an option for every field in place of a parameter that is a settings object; the verb gets the object."""
    parameters, made = [], {}
    for parameter in inspect.signature(verb).parameters.values():
        kind = parameter.annotation
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter)
            continue
        made[parameter.name] = kind, [field.name for field in dataclasses.fields(kind)]
        for field in dataclasses.fields(kind):
            hint = get_type_hints(kind)[field.name]
            if get_origin(hint) is Literal:  # the settings check it, with one sentence for command line and page
                hint = str
            hint = Annotated[hint, option_of(kind, field.name)]  # type: ignore[arg-type]
            parameters.append(parameter.replace(name=field.name, annotation=hint, default=field.default))

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        settings = {
            name: kind(**{field: given.pop(field) for field in fields}) for name, (kind, fields) in made.items()
        }
        verb(**given, **settings)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def key_values(given: Sequence[str]) -> dict[str, str]:
    """The values of `--set KEY=VALUE`; a later one of the same key wins."""
    pairs = [text.partition("=") for text in given]
    for key, equals, _ in pairs:
        if not (key and equals):
            raise ConfigError(f"--set is {key!r}, but must be KEY=VALUE.")
    return {key: value for key, _, value in pairs}


Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Work on a Ray cluster instead of here: auto (the one of this machine), local (started here), or an address (ray://head:10001).",
    ),
]
DEVICES = "auto, cpu, cuda, cuda:1, xpu or mps"
Device = Annotated[str, typer.Option(metavar="NAME", help=f"Where the networks run: {DEVICES}.")]
MODELS = "'default', a pipeline folder, a released .ckpt file, or user/repo[@revision] of the Hugging Face Hub"
"""The help of every option that names a model, without the full stop."""

Model = Annotated[str, typer.Option("-m", "--model", metavar="NAME", help=f"{MODELS}.")]
Overwrite = Annotated[bool, option_of(FileSettings, "overwrite")]
MaxPixels = Annotated[int, option_of(FileSettings, "max_pixels")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")]
Workers = Annotated[int, typer.Option(min=1, metavar="N", help="Processes at the same time.")]
