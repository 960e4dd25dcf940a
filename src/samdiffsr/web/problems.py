"""Errors as RFC 9457 has them: `application/problem+json` with a status and one sentence."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from samdiffsr.errors import ConfigError, ImageError, SamDiffSRError, TooLargeError, UnknownFormatError

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818 - the name that RFC 9457 gives it
    """An answer that is an error.

    Args:
        status: of HTTP.
        detail: one sentence for the user.
        headers: more headers of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The members of RFC 9457; "about:blank" says that the status is all there is to the kind of error."""
        title = HTTPStatus(self.status).phrase
        return {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}

    def response(self) -> Response:
        """The answer."""
        return JSONResponse(self.body(), self.status, self.headers, MEDIA_TYPE)


def problem_of(error: SamDiffSRError) -> Problem:
    """The answer to an error of the package: 415 not a picture, 413 too large, 422 for the rest that the client can mend."""
    if isinstance(error, UnknownFormatError):
        return Problem(415, str(error))
    if isinstance(error, TooLargeError):
        return Problem(413, str(error))
    return Problem(422 if isinstance(error, ImageError | ConfigError) else 500, str(error))


def add_handlers(app: FastAPI) -> None:
    """Let every error of the app become a problem."""

    @app.exception_handler(Problem)
    async def problem(_request: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(SamDiffSRError)
    async def ours(_request: Request, error: SamDiffSRError) -> Response:
        return problem_of(error).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        path, details = request.url.path, {404: "does not exist", 405: f"does not know {request.method}"}
        detail = f"{path!r} {details[error.status_code]}; see /docs." if error.status_code in details else error.detail
        return Problem(error.status_code, detail, error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}; see /docs.").response()

    @app.exception_handler(Exception)
    async def fault(_request: Request, _error: Exception) -> Response:
        return Problem(500, "The server has a fault, which its log describes; please report it.").response()
