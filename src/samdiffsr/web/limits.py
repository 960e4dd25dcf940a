"""How much of this machine a server gives away, and whom it answers."""

import ipaddress
import os
import socket
from dataclasses import dataclass

from samdiffsr.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """The limits of a server, checked before it works.

    Attributes:
        max_bytes: of an uploaded file.
        max_pixels: of a picture, by its header; 16 times as many may be made on the way to the result.
        queue: pictures that may wait for the device; one more is refused with 503.
        timeout: seconds that one picture may take on the device.

    Raises:
        ConfigError: a limit below 1.
    """

    max_bytes: int = 64_000_000
    max_pixels: int = 24_000_000
    queue: int = 16
    timeout: float = 1800

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "queue", "timeout"):
            if not getattr(self, name) >= 1:  # also true for NaN
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"{option} is {getattr(self, name)}, but must be at least 1.")


@dataclass(frozen=True)
class Access:
    """Whom a server answers.

    Attributes:
        hosts: lower-case names under which clients may address it, besides localhost and every IP address. A foreign page
            that points its own name at this machine (DNS rebinding) still sends that name.
        token: what `Authorization: Bearer` must give; None: nothing.
    """

    hosts: frozenset[str] = frozenset()
    token: str | None = None

    def __post_init__(self) -> None:
        for name in self.hosts:
            if (not name or {*"/:@"} & set(name)) and not _is_address(name):
                raise ConfigError(
                    f"The host {name!r} must be a name alone, as in photos.example; leave out scheme, port and path."
                )

    def knows(self, host: str) -> bool:
        """Whether the server answers to this value of the Host header."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        name = name.lower()
        if name == "localhost" or name in self.hosts:
            return True
        return _is_address(name)


def _is_address(name: str) -> bool:
    """Whether this is an IP address, with or without the brackets of a URL."""
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def token_from(variable: str | None) -> str | None:
    """The token in an environment variable; None if no variable is named.

    Raises:
        ConfigError: the variable is not set, is empty, or holds what a header cannot.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "")
    if not token:
        raise ConfigError(f"--token-env names {variable}, but that variable is not set; set it to a long random text.")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(f"The token in {variable} must be printable ASCII characters without spaces; choose another.")
    return token


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        ConfigError: no such host, or the port is taken or forbidden.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # on Windows the same option would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"Cannot listen at {host}:{port}: {reason}; choose another --host or --port.") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """The address for a browser, as in "http://127.0.0.1:8000"."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
