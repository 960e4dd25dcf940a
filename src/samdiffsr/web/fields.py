"""The fields of a form or a query: those of the settings that the command line has too, and the model's name."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

from samdiffsr.errors import ConfigError, choose
from samdiffsr.upscale.settings import FileSettings, Settings, from_text
from samdiffsr.web.engine import Wanted

FILE_FIELDS = ("format", "quality", "strip_metadata")
"""The fields of `FileSettings` that a client can set; the rest is about files of the server."""

_SETTINGS = tuple(one.name for one in dataclasses.fields(Settings))
FIELDS = (*_SETTINGS, *FILE_FIELDS, "model")


def parse(given: Iterable[tuple[str, str]], models: Iterable[str], max_pixels: int) -> Wanted:
    """The settings that the fields describe; an empty text stands for a field that is left out.

    Args:
        models: names, the first of which is the default.

    Raises:
        ConfigError: an unknown field, one given twice, or a value that the settings refuse.
    """
    fields: dict[str, str] = {}
    for name, text in given:
        choose(name, dict.fromkeys(FIELDS), "a field")
        if name in fields:
            raise ConfigError(f"{name} is given twice, as {fields[name]!r} and as {text!r}; leave one out.")
        fields[name] = text
    fields = {name: text.strip() for name, text in fields.items() if text.strip()}
    known = list(models)
    model = choose(fields.pop("model", known[0]), {name: name for name in known}, "model")
    settings = from_text(Settings, {name: text for name, text in fields.items() if name in _SETTINGS})
    files = from_text(FileSettings, {name: text for name, text in fields.items() if name in FILE_FIELDS})
    return Wanted(settings, dataclasses.replace(files, max_pixels=max_pixels), model)


def schemas(models: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Each field as JSON schema, for OpenAPI and for the page."""
    found = {}
    for kind in (Settings, FileSettings):
        hints = get_type_hints(kind)
        for one in dataclasses.fields(kind):
            if one.name in FIELDS:
                found[one.name] = _schema(hints[one.name], one.default, one.metadata)
    known = list(models)
    return found | {"model": {"type": "string", "enum": known, "default": known[0], "description": "Name of a model."}}


def _schema(hint: Any, default: Any, words: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    schema: dict[str, Any] = {"type": "string", "description": words["help"]}
    if all(isinstance(kind, str) for kind in kinds):
        schema["enum"] = kinds
    else:
        schema["type"] = {bool: "boolean", int: "integer", float: "number", str: "string"}[kinds[0]]
    if words["range"] is not None:
        schema["minimum"] = words["range"].least
        if words["range"].most != float("inf"):
            schema["maximum"] = words["range"].most
    if default is not None:
        schema["default"] = default
    elif words["unset"]:
        schema["description"] += f" Default: {words['unset']}."
    return schema


def parameters(models: Iterable[str]) -> list[dict[str, Any]]:
    """The fields as parameters of the query."""
    found = schemas(models)
    return [
        {"name": name, "in": "query", "description": schema["description"], "schema": schema}
        for name, schema in found.items()
    ]


def form(models: Iterable[str]) -> dict[str, Any]:
    """The request body: a multipart form with the picture and the fields."""
    file = {"type": "string", "contentMediaType": "application/octet-stream", "description": "The picture."}
    schema = {"type": "object", "required": ["file"], "properties": {"file": file} | schemas(models)}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
