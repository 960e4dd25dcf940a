"""The body of an upload, within its limits: bytes are counted as they come, and a client that stalls is sent away.

A file above 1 MB waits in a temporary file without a name (Starlette's), which is gone when it is closed or the process ends.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from samdiffsr.web.problems import Problem

IDLE_SECONDS = 20
BODY_SECONDS = 600
_ENVELOPE = 64 * 1024  # bytes of a body besides the file
_FIELDS = 64


@dataclass(frozen=True)
class Upload:
    """One uploaded file.

    Attributes:
        name: the client's name of it, without folders; only for messages and the result's name.
        fields: the other fields of the form, in their order.
    """

    name: str
    file: SpooledTemporaryFile
    fields: tuple[tuple[str, str], ...]


async def receive_upload(request: Request, max_bytes: int) -> Upload:
    """Parse a multipart form with one `file`.

    Raises:
        Problem: 413 more bytes, 408 too slow, 415 another kind of body, 422 no file or several.
        ClientDisconnect: the client has gone.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, "The body must be multipart/form-data with the picture as 'file'; see /docs.")
    body = _Body(request.receive, max_bytes)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes + _ENVELOPE:
        if "expect" not in request.headers:
            await body.drain()
        raise body.too_large()
    try:
        form = await Request(request.scope, body).form(max_files=2, max_fields=_FIELDS, max_part_size=_ENVELOPE)
    except Problem as problem:
        if problem.status == 413:
            await body.drain()
        raise
    except HTTPException as error:
        raise Problem(422, f"The form cannot be read: {error.detail.rstrip('.')}; see /docs.") from error
    files = [(key, value) for key, value in form.multi_items() if isinstance(value, UploadFile)]
    if [key for key, _ in files] != ["file"]:
        await form.close()
        given = ", ".join(repr(key) for key, _ in files) or "none"
        raise Problem(422, f"The form must have exactly one file, named 'file', but it has {given}.")
    upload = files[0][1]
    if (upload.size or 0) > max_bytes:
        await form.close()
        raise body.too_large()
    name = (upload.filename or "").replace("\\", "/").rpartition("/")[2] or "picture"
    fields = tuple((key, value) for key, value in form.multi_items() if isinstance(value, str))
    return Upload(name, upload.file, fields)  # type: ignore[arg-type]  # Starlette's type is the general BinaryIO


class _Body:
    """`receive`, counted and timed."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._max_bytes, self._count, self._over = receive, max_bytes, 0, False
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def __call__(self) -> Message:
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(IDLE_SECONDS, left)):
                message = await self._receive()
        except TimeoutError:
            detail = f"The upload stalled for {IDLE_SECONDS} or took over {BODY_SECONDS} seconds; send it again."
            raise Problem(408, detail, {"Connection": "close"}) from None
        self._over = not message.get("more_body", False)
        self._count += len(message.get("body", b""))
        if self._count > self._max_bytes + _ENVELOPE:
            raise self.too_large()
        return message

    def too_large(self) -> Problem:
        detail = f"The file has more than the {self._max_bytes} bytes that this server takes; send a smaller one."
        return Problem(413, detail, {"Connection": "close"})

    async def drain(self) -> None:
        """Let the client finish, for a while: many read the answer only then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while not self._over:
                    self._over = not (await self._receive()).get("more_body", False)
