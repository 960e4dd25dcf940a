"""Jobs: 202, events, the result, and cancelling; a bounded queue before one worker."""

import asyncio
import json
import time

import pytest

from samdiffsr.web.jobs import Job
from support import noise_image


@pytest.fixture
def long_work(tmp_path):
    """Files and fields of a picture that takes many seconds, layer by layer."""
    content = noise_image(tmp_path / "long.png", size=(400, 400)).read_bytes()
    return {"files": {"file": ("long.png", content)}, "data": {"steps": "100"}}


@pytest.fixture
def short_work(tmp_path):
    return {"files": {"file": ("short.png", noise_image(tmp_path / "short.png").read_bytes())}}


def wait_until(condition, seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come to pass"
        time.sleep(0.02)


def events_of(client, job: str) -> list[tuple[str, dict]]:
    found, kind = [], ""
    with client.stream("GET", f"/v1/jobs/{job}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                found.append((kind, json.loads(value)))
    return found


def test_a_job_from_start_to_end(client, short_work) -> None:
    made = client.post("/v1/jobs", **short_work, data={"steps": "5"})
    assert made.status_code == 202
    job = made.json()
    assert made.headers["location"] == f"/v1/jobs/{job['id']}" and job["source"] == "short.png"
    events = events_of(client, job["id"])
    assert events[-1][0] == "done"
    parts = [event["progress"] for _, event in events]
    assert parts == sorted(parts) and parts[-1] == 1
    last = client.get(f"/v1/jobs/{job['id']}").json()
    assert last["state"] == "done" and last["target"] == "short_x4.png" and last["error"] is None
    assert (last["width"], last["height"], last["seconds_left"]) == (24, 20, 0)
    result = client.get(f"/v1/jobs/{job['id']}/result")
    assert result.content == client.post("/v1/upscale", **short_work, data={"steps": "5"}).content
    assert len(result.content) == last["bytes"]
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_an_end_while_a_change_is_being_sent_is_sent_too() -> None:
    async def states() -> list[str]:
        job, seen = Job(None, (1, 1), None), []
        async for _ in job.changes():
            seen.append(job.state)
            if job.state == "waiting":
                job.change(state="done")
        return seen

    assert asyncio.run(states()) == ["waiting", "done"]


def test_progress_comes_with_every_step(client, tmp_path) -> None:
    content = noise_image(tmp_path / "a.png", size=(90, 90)).read_bytes()
    job = client.post("/v1/jobs", files={"file": ("a.png", content)}, data={"steps": "20"}).json()
    parts = {event["progress"] for _, event in events_of(client, job["id"])}
    assert len(parts) > 5  # a reader may miss some, but not most


def test_progress_comes_with_every_tile(client, tmp_path) -> None:
    """One step, but many tiles."""
    content = noise_image(tmp_path / "a.png", size=(120, 120)).read_bytes()
    job = client.post("/v1/jobs", files={"file": ("a.png", content)}, data={"steps": "1", "tile": "20"}).json()
    assert len({event["progress"] for _, event in events_of(client, job["id"])}) > 5


def test_a_job_that_fails_says_why(client, tmp_path) -> None:
    content = noise_image(tmp_path / "a.png", size=(60, 50)).read_bytes()[:-200]
    job = client.post("/v1/jobs", files={"file": ("a.png", content)}).json()["id"]
    kind, last = events_of(client, job)[-1]
    assert kind == "failed" and "incomplete" in last["error"] and last["problem"]["status"] == 422
    answer = client.get(f"/v1/jobs/{job}/result")
    assert answer.status_code == 422 and answer.json() == last["problem"]


def test_no_picture_makes_no_job(client) -> None:
    assert client.post("/v1/jobs", files={"file": ("a.txt", b"text")}).status_code == 415


@pytest.mark.parametrize("path", ["", "/events", "/result"])
def test_an_unknown_job(client, path) -> None:
    answer = client.get(f"/v1/jobs/nobody{path}")
    assert answer.status_code == 404 and "'nobody'" in answer.json()["detail"]


def test_cancelling_frees_the_worker(client, long_work, short_work) -> None:
    long = client.post("/v1/jobs", **long_work).json()["id"]
    short = client.post("/v1/jobs", **short_work).json()["id"]
    wait_until(lambda: client.get(f"/v1/jobs/{long}").json()["state"] == "running")
    waiting = client.get(f"/v1/jobs/{short}").json()
    assert (waiting["state"], waiting["place"]) == ("waiting", 0)
    assert client.get(f"/v1/jobs/{short}/result").status_code == 409
    assert client.delete(f"/v1/jobs/{long}").status_code == 204
    assert events_of(client, short)[-1][0] == "done"
    assert client.get(f"/v1/jobs/{long}").status_code == 404


def test_cancelling_a_job_that_waits(client, long_work, short_work) -> None:
    long = client.post("/v1/jobs", **long_work).json()["id"]
    short = client.post("/v1/jobs", **short_work).json()["id"]
    wait_until(lambda: client.get("/healthz").json()["running"] == 1)
    client.delete(f"/v1/jobs/{short}")
    assert client.get("/healthz").json()["waiting"] == 0
    client.delete(f"/v1/jobs/{long}")
    wait_until(lambda: client.get("/healthz").json()["running"] == 0)


def test_a_full_queue(make_client, long_work, short_work) -> None:
    client = make_client(queue=1)
    long = client.post("/v1/jobs", **long_work).json()["id"]
    wait_until(lambda: client.get("/healthz").json()["running"] == 1)
    assert client.post("/v1/jobs", **short_work).status_code == 202
    for path in ("/v1/jobs", "/v1/upscale"):
        refused = client.post(path, **short_work)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.headers["content-type"] == "application/problem+json" and "queue" in refused.json()["detail"]
    client.delete(f"/v1/jobs/{long}")
    wait_until(lambda: client.get("/healthz").json()["waiting"] == 0)
    assert client.post("/v1/upscale", **short_work).status_code == 200


def test_the_oldest_results_make_room(client, short_work, monkeypatch) -> None:
    import samdiffsr.web.jobs

    def done() -> str:
        job = client.post("/v1/jobs", **short_work).json()["id"]
        assert events_of(client, job)[-1][0] == "done"
        return job

    first = done()
    size = client.get(f"/v1/jobs/{first}").json()["bytes"]
    monkeypatch.setattr(samdiffsr.web.jobs, "KEEP_BYTES", 2 * size + 1)
    second, third = done(), done()
    statuses = [client.get(f"/v1/jobs/{job}/result").status_code for job in (first, second, third)]
    assert statuses == [404, 200, 200]


def test_results_are_forgotten_in_time(make_client, short_work, monkeypatch) -> None:
    import samdiffsr.web.jobs

    monkeypatch.setattr(samdiffsr.web.jobs, "KEEP_SECONDS", 0.2)
    client = make_client()
    job = client.post("/v1/jobs", **short_work).json()["id"]
    wait_until(lambda: client.get(f"/v1/jobs/{job}").status_code == 404)


def test_a_fault_of_ours_ends_the_picture_and_not_the_worker(make_client, tiny_pipe, short_work) -> None:
    client, broken = make_client(), True

    def fail(*_):
        if broken:
            raise KeyError("a bug")

    tiny_pipe.denoiser.register_forward_pre_hook(fail)
    answer = client.post("/v1/upscale", **short_work)
    assert answer.status_code == 500 and "report" in answer.json()["detail"]
    broken = False
    assert client.post("/v1/upscale", **short_work).status_code == 200
