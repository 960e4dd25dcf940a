"""Checks that every request passes: the name it asks for, its page, its token; and the headers of every answer."""

import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samdiffsr.web.limits import Access
from samdiffsr.web.problems import Problem

POLICY = (
    "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Nothing is loaded from elsewhere; blob: is a picture that the page itself holds."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware. Starlette's TrustedHostMiddleware takes no "any IP address" and answers in plain text."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a problem, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store" if scope["path"].startswith("/v1/") else "no-cache")
            await send(message)

        problem = self._problem(scope)
        await (self._app if problem is None else problem.response())(scope, receive, send_guarded)

    def _problem(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._access.knows(host):
            advice = "use its IP address, or start it with --allowed-host"
            return Problem(421, f"This server does not answer to the name {host!r}; {advice}.")
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
            return Problem(403, f"A page of {origin!r} may not use this server; open the server's own page.")
        if self._access.token is not None and scope["path"].startswith("/v1/"):
            kind, _, given = headers.get("authorization", "").partition(" ")
            same = secrets.compare_digest(given.strip().encode(), self._access.token.encode())
            if kind.lower() != "bearer" or not same:
                detail = "This server wants its token in the header 'Authorization: Bearer TOKEN'; ask who runs it."
                return Problem(401, detail, {"WWW-Authenticate": "Bearer"})
        return None
