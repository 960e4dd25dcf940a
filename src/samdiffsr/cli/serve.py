"""`samdiffsr serve`: a page and an HTTP API on this machine."""

import os
from typing import Annotated

import typer

from samdiffsr.cli.options import DEVICES, MODELS, MaxPixels
from samdiffsr.errors import ConfigError

Host = Annotated[str, typer.Option(metavar="NAME", help="Address to listen at; 0.0.0.0 is every one of this machine.")]
Port = Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: any free one.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "-m",
        "--model",
        metavar="NAME",
        help=f"{MODELS}; repeatable, the first one is the default.",
    ),
]
Devices = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="NAME", help=f"{DEVICES}; repeatable, a worker each."),
]
MaxBytes = Annotated[int, typer.Option(min=1, metavar="N", help="Refuse larger files while they arrive.")]
Queue = Annotated[int, typer.Option(min=1, metavar="N", help="Pictures that can wait; more get 503 and Retry-After.")]
Timeout = Annotated[float, typer.Option(min=1, metavar="S", help="Seconds that one picture can take.")]
TokenEnv = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Environment variable with a token that every client must give."),
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host",
        metavar="NAME",
        help="A name of this machine that clients use, besides localhost and IP addresses; repeatable.",
    ),
]
Open = Annotated[bool, typer.Option("--open", help="Show the page in a browser.")]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("serve")(serve)


def serve(
    *,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    model: Models = None,
    device: Devices = None,
    max_bytes: MaxBytes = 64_000_000,
    max_pixels: MaxPixels = 24_000_000,
    queue: Queue = 16,
    timeout: Timeout = 1800,
    token_env: TokenEnv = None,
    allowed_host: AllowedHosts = None,
    open: Open = False,
) -> None:
    """Serve a page and an HTTP API that enlarge pictures; docs/http-api.md describes the API.

    The first line of the output is the address. Pictures stay on this machine, and nothing of them is kept.
    """
    import fastapi  # noqa: F401 - these two first: without the extra, the sentence comes before any work
    import python_multipart  # noqa: F401

    from samdiffsr.web.app import create_app
    from samdiffsr.web.engine import load_engines
    from samdiffsr.web.limits import Access, Limits, address_of, open_socket, token_from
    from samdiffsr.web.server import serve as run

    limits = Limits(max_bytes, max_pixels, queue, timeout)
    access = Access(frozenset(name.lower() for name in [*(allowed_host or []), host]), token_from(token_env))
    models = _named(model or ["default"])
    with open_socket(host, port) as listener:
        engines = load_engines(models, device or ["auto"])
        for engine in engines:
            engine.warm_up()
        address = address_of(listener)
        typer.echo(address)
        if access.token is None and not _is_loopback(listener.getsockname()[0]):
            typer.echo("Anyone who reaches this address can use this server; --token-env asks for a token.", err=True)
        if open:
            typer.launch(address)
        run(create_app(engines, limits, access), listener)


def _named(models: list[str]) -> dict[str, str]:
    """The models to load, by the name that clients see: the last part of a path, so that they learn nothing of the machine."""
    named: dict[str, str] = {}
    for source in models:
        name = os.path.basename(os.path.normpath(source))
        if name in named:
            raise ConfigError(f"The models '{named[name]}' and '{source}' would both be called '{name}'; rename one.")
        named[name] = source
    return named


def _is_loopback(host: str) -> bool:
    import ipaddress

    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
