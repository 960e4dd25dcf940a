"""A server of the tiny pipeline: in this process (`client`), and on a real port (`address`)."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from samdiffsr.web.app import create_app
from samdiffsr.web.engine import Engine
from samdiffsr.web.limits import Access, Limits, address_of, open_socket
from samdiffsr.web.server import make_server


@pytest.fixture
def make_app(tiny_pipe) -> Callable[..., FastAPI]:
    """An app of the tiny pipeline or of `pipe`; further options are those of `Limits`."""

    def make(access: Access = Access(), pipe: Any = tiny_pipe, **limits: Any) -> FastAPI:
        return create_app([Engine({"tiny": pipe})], Limits(**limits), access)

    return make


@pytest.fixture
def make_client(make_app) -> Iterator[Callable[..., TestClient]]:
    """A client of such an app, whose workers run until the test ends."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(TestClient(make_app(**options), base_url="http://localhost"))


@pytest.fixture
def client(make_client) -> TestClient:
    return make_client()


@contextmanager
def on_a_port(app: FastAPI) -> Iterator[str]:
    """The address of a real server, which runs in a thread."""
    server, listener = make_server(app), open_socket("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def serve_on_a_port(make_app) -> Iterator[Callable[..., str]]:
    """Start a server; options as `make_app`'s."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(on_a_port(make_app(**options)))
