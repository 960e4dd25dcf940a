"""The routes: a page for people, an API for programs. docs/http-api.md describes them."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse

from samdiffsr import __version__
from samdiffsr.models.level import takes_level
from samdiffsr.resize import SCALE
from samdiffsr.sampling.precision import type_name
from samdiffsr.upscale.enlarge import shown_level
from samdiffsr.web import fields
from samdiffsr.web.engine import Engine
from samdiffsr.web.guard import Guard
from samdiffsr.web.jobs import Job, JobQueue, State
from samdiffsr.web.limits import Access, Limits
from samdiffsr.web.problems import MEDIA_TYPE, Problem, add_handlers
from samdiffsr.web.receive import receive_upload

STATIC = Path(__file__).with_name("static")

_PROBLEM = {"content": {MEDIA_TYPE: {}}, "description": "One sentence in `detail` (RFC 9457)."}
_REFUSALS: dict[int | str, dict[str, Any]] = dict.fromkeys((408, 413, 415, 422, 503), _PROBLEM)
_HEADERS = {
    "X-Model": "Name of the model.",
    "X-Seed": "The seed.",
    "X-Clean": "The level of degradation, 0 to 1, that the picture was taken to have, given or estimated; "
    "missing where the model has no such input.",
    "X-Warnings": "A JSON list of sentences, if there are any.",
    "Server-Timing": "Milliseconds in the queue, and for reading, enlarging and writing.",
}
_IMAGE = {
    "content": {"image/*": {}},
    "description": "The larger picture.",
    "headers": {name: {"description": words, "schema": {"type": "string"}} for name, words in _HEADERS.items()},
}


class JobBody(BaseModel):
    """A job as JSON. `samdiffsr upscale --json` prints the same names of a file.

    Attributes:
        place: pictures before it in the queue.
        progress: 0 to 1.
        target: the result's name, like width, height and bytes null before there is one.
        clean: the level of degradation, 0 to 1, that the picture was taken to have, given or estimated; null where the
            model has no such input.
        warnings, error: sentences.
        problem: why it failed, as problem+json.
    """

    id: str
    source: str
    state: State
    place: int
    progress: float
    seconds_left: float | None
    target: str | None
    width: int | None
    height: int | None
    bytes: int | None
    model: str
    seed: int
    clean: float | None
    warnings: list[str]
    error: str | None
    problem: dict[str, Any] | None


def create_app(engines: Sequence[Engine], limits: Limits = Limits(), access: Access = Access()) -> FastAPI:
    """The page and the API over these engines; the first one's first model is the default."""
    models = list(engines[0].pipes)
    queue = JobQueue(engines, limits)

    @asynccontextmanager
    async def at_work(_app: FastAPI) -> AsyncIterator[None]:
        async with queue.at_work():
            yield

    app = FastAPI(
        title="samdiffsr",
        version=__version__,
        summary="Enlarge pictures with a diffusion model.",
        lifespan=at_work,
        docs_url=None,  # FastAPI's own pages load scripts from another origin
        redoc_url=None,
    )
    add_handlers(app)
    app.add_middleware(Guard, access=access)
    _add_upscale(app, queue, models)
    _add_jobs(app, queue)
    _add_facts(app, queue)
    _add_page(app)
    return app


def _add_upscale(app: FastAPI, queue: JobQueue, models: list[str]) -> None:
    described = {"parameters": fields.parameters(models), "requestBody": fields.form(models)}

    async def submitted(request: Request, *, keep: bool) -> Job:
        queue.refuse_if_full()  # before the body is read
        query = request.query_params.multi_items()
        fields.parse(query, models, queue.limits.max_pixels)
        upload = await receive_upload(request, queue.limits.max_bytes)
        try:
            wanted = fields.parse([*query, *upload.fields], models, queue.limits.max_pixels)
        except BaseException:
            upload.file.close()
            raise
        return await queue.submit(upload, wanted, keep=keep)

    @app.post("/v1/upscale", responses={200: _IMAGE, **_REFUSALS}, response_class=Response, openapi_extra=described)
    async def upscale(request: Request) -> Response:
        """Enlarge a picture and answer with it. A client that disconnects ends the work."""
        try:
            job = await submitted(request, keep=False)
        except ClientDisconnect:
            return Response(status_code=400)
        over, gone = asyncio.ensure_future(job.finished()), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({over, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await queue.cancel(job)
            over.cancel()
            gone.cancel()
        return _picture(job)

    @app.post("/v1/jobs", status_code=202, responses={202: {"model": JobBody}, **_REFUSALS}, openapi_extra=described)
    async def create_job(request: Request) -> Response:
        """Queue a picture; the header Location names the job."""
        try:
            job = await submitted(request, keep=True)
        except ClientDisconnect:
            return Response(status_code=400)
        return JSONResponse(describe(queue, job), 202, {"Location": f"/v1/jobs/{job.id}"})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_jobs(app: FastAPI, queue: JobQueue) -> None:
    missing: dict[int | str, dict[str, Any]] = {404: _PROBLEM}

    async def find(identity: str) -> Job:
        return queue.find(identity)

    @app.get("/v1/jobs/{identity}", responses=missing)
    async def job(found: Annotated[Job, Depends(find)]) -> JobBody:
        """How far a job is."""
        return JobBody(**describe(queue, found))

    @app.get("/v1/jobs/{identity}/events", response_class=EventSourceResponse, responses=missing)
    async def events(found: Annotated[Job, Depends(find)]) -> AsyncIterator[ServerSentEvent]:
        """Server-sent events: the job, at once and after each change, until it is done, failed or cancelled."""
        async for _ in found.changes():
            yield ServerSentEvent(data=describe(queue, found), event=found.state)

    @app.get("/v1/jobs/{identity}/result", response_class=Response, responses={200: _IMAGE, 409: _PROBLEM, **missing})
    async def result(found: Annotated[Job, Depends(find)]) -> Response:
        """The larger picture."""
        return _picture(found)

    @app.delete("/v1/jobs/{identity}", status_code=204, responses=missing)
    async def forget(found: Annotated[Job, Depends(find)]) -> Response:
        """Cancel a job and forget its result."""
        await queue.forget(found)
        return Response(status_code=204)


def _add_facts(app: FastAPI, queue: JobQueue) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models, the default one first; the fields of a request; the server's limits."""
        pipes = queue.engines[0].pipes
        listed = [
            {
                "name": name,
                "scale": SCALE,
                "steps": pipe.config["steps"],
                "detail": pipe.config["detail"],
                "cleans": takes_level(pipe.encoder),
                "structure_head": pipe.denoiser.structure_head is not None,
                "precision": type_name(pipe.computed_in("auto")),
            }
            for name, pipe in pipes.items()
        ]
        limits = {name: getattr(queue.limits, name) for name in ("max_bytes", "max_pixels", "queue", "timeout")}
        return {"models": listed, "fields": fields.schemas(pipes), "limits": limits}

    @app.get("/healthz", responses={503: _PROBLEM})
    async def healthz() -> dict[str, Any]:
        """Whether the server works; without a token."""
        if not queue.alive:
            raise Problem(503, "A worker has ended; start the server again.")
        devices = [engine.device for engine in queue.engines]
        return {"status": "ok", "version": __version__, "devices": devices, **queue.counts}


def _add_page(app: FastAPI) -> None:
    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html")

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(STATIC / "docs.html")

    app.mount("/static", StaticFiles(directory=STATIC))


def describe(queue: JobQueue, job: Job) -> dict[str, Any]:
    """The fields of a `JobBody`."""
    result, problem, left = job.result, job.problem, queue.seconds_left(job)
    return {
        "id": job.id,
        "source": job.upload.name,
        "state": job.state,
        "place": queue.place(job),
        "progress": round(job.progress, 4),
        "seconds_left": None if left is None else round(left, 1),
        "target": result and result.name,
        "width": result and result.width,
        "height": result and result.height,
        "bytes": result and result.content.nbytes,
        "model": job.wanted.model,
        "seed": job.wanted.settings.seed,
        "clean": result and shown_level(result.level),
        "warnings": list(result.warnings) if result else [],
        "error": problem and problem.detail,
        "problem": problem and problem.body(),
    }


def _picture(job: Job) -> Response:
    """The result, or why there is none."""
    if job.problem is not None:
        raise job.problem
    if job.result is None:
        raise Problem(409, f"The job is {job.state}; its result is there when it is done.")
    result = job.result
    waited = {"queue": job.started - job.created}
    timing = ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in (waited | dict(result.seconds)).items())
    plain = "".join(
        letter if (letter.isascii() and letter.isalnum()) or letter in "-_. " else "_" for letter in result.name
    )
    headers = {
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(result.name, safe='')}",
        "Server-Timing": timing,
        "X-Model": quote(job.wanted.model, safe=""),
        "X-Seed": str(job.wanted.settings.seed),
    }
    if result.level is not None:
        headers["X-Clean"] = str(shown_level(result.level))
    if result.warnings:
        headers["X-Warnings"] = json.dumps(result.warnings)
    return Response(result.content, headers=headers, media_type=result.media_type)
