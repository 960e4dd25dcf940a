"""uvicorn with a time limit on request headers: a client that sends them drop by drop (slow-loris) would stay for ever."""

import asyncio
import socket
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20
IDLE_SECONDS = 15
"""For the next request on a connection."""

SHUTDOWN_SECONDS = 3


class TimedProtocol(H11Protocol):
    """Closes a connection whose first request has no complete header after `HEADER_SECONDS`. (uvicorn itself closes those
    that stay idle after a request, and `samdiffsr.web.receive` those whose body stalls.)"""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The time starts."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """The time ends with a complete header, and starts again with the first bytes of the next one."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None and self.conn.trailing_data[0]:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to time."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server that runs in the event loop of whoever calls its `run`."""
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    make_server(app).run(sockets=[listener])
