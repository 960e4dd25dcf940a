"""Whom a server answers, what it lets out, and what bad input and bad clients do to it."""

import os
import re
import socket
import tempfile
import time
from pathlib import Path
from typing import get_args

import pytest

from fuzz import MAX_PIXELS, cases
from samdiffsr.errors import ConfigError
from samdiffsr.sampling.ranges import Precision
from samdiffsr.upscale.settings import FORMATS
from samdiffsr.web.limits import Access, Limits, open_socket, token_from
from support import noise_image


@pytest.fixture
def picture(tmp_path) -> bytes:
    return noise_image(tmp_path / "a.png").read_bytes()


def post(client, content: bytes, **options):
    return client.post("/v1/upscale", files={"file": ("a.png", content)}, **options)


# --- names and pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "10.0.0.7"])
def test_known_names(client, host) -> None:
    assert client.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "127.0.0.1.evil"])
@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/models", "/openapi.json"])
def test_foreign_names_are_refused(client, host, path) -> None:
    answer = client.get(path, headers={"host": host})
    assert answer.status_code == 421 and answer.json()["detail"].endswith(".")


def test_a_name_can_be_allowed(make_client) -> None:
    client = make_client(access=Access(frozenset({"photos.example"})))
    assert client.get("/healthz", headers={"host": "Photos.example:80"}).status_code == 200
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("name", ["http://photos.example", "photos.example:8000", "photos.example/x", ""])
def test_an_allowed_name_that_no_client_sends_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a name alone, as in photos\.example"):
        Access(frozenset({name}))
    assert Access(frozenset({"::1", "[::1]", "fe80::1%eth0"})).knows("[::1]:80")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1"])
def test_other_pages_cannot_make_it_work(client, picture, origin) -> None:
    assert post(client, picture, headers={"origin": origin}).status_code == 403
    assert client.delete("/v1/jobs/x", headers={"origin": origin}).status_code == 403


def test_its_own_page_can(client, picture) -> None:
    assert post(client, picture, headers={"origin": "http://localhost"}).status_code == 200


def test_no_answer_is_for_other_origins(client, picture) -> None:
    answers = [client.get("/"), client.get("/healthz"), post(client, picture), client.get("/nowhere")]
    answers.append(client.options("/v1/upscale", headers={"origin": "https://evil.example"}))
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert "http" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answers[2].headers["cache-control"] == "no-store"


def test_the_page_loads_nothing_from_elsewhere(client) -> None:
    from samdiffsr.web.app import STATIC

    for file in STATIC.iterdir():
        if file.suffix in (".html", ".css", ".js", ".svg"):
            text = file.read_text().replace("http://www.w3.org/", "")  # names of XML, not addresses
            assert "http://" not in text and "https://" not in text, file.name
            assert " style=" not in text and "onclick=" not in text, f"{file.name}: the policy forbids it"
            assert client.get(f"/static/{file.name}").status_code == 200
    for page in ("/", "/docs"):
        for answer in (client.get(page), client.head(page)):
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")


def test_the_page_offers_every_format_and_precision() -> None:
    from samdiffsr.web.app import STATIC

    text = (STATIC / "index.html").read_text()
    for name, choices in (("format", FORMATS), ("precision", get_args(Precision))):
        (offered,) = re.findall(rf'<select id="{name}".*?</select>', text, re.DOTALL)
        assert tuple(re.findall(r'<option value="(\w+)">', offered)) == choices


# --- token ------------------------------------------------------------------------------------------------------------


def test_a_token(make_client, picture) -> None:
    client = make_client(access=Access(token="sesame"))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic sesame"}, {"authorization": "ü"}):
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        answer = post(client, picture, headers=encoded)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert post(client, picture, headers={"authorization": "Bearer sesame"}).status_code == 200
    assert client.get("/v1/models").status_code == 401
    assert client.get("/healthz").status_code == client.get("/").status_code == 200


def test_the_token_comes_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("SECRET", "abc")
    assert token_from("SECRET") == "abc" and token_from(None) is None
    for bad in ("", "a b", "schlüssel"):
        monkeypatch.setenv("SECRET", bad)
        with pytest.raises(ConfigError, match="SECRET"):
            token_from("SECRET")
    with pytest.raises(ConfigError, match="NOT_SET"):
        token_from("NOT_SET")


@pytest.mark.parametrize("wrong", [{"max_bytes": 0}, {"max_pixels": 0}, {"queue": 0}, {"timeout": float("nan")}])
def test_limits_that_cannot_be(wrong) -> None:
    with pytest.raises(ConfigError, match="--" + next(iter(wrong)).replace("_", "-")):
        Limits(**wrong)


def test_a_port_that_is_taken() -> None:
    with open_socket("127.0.0.1", 0) as listener, pytest.raises(ConfigError, match="--port"):
        open_socket("127.0.0.1", listener.getsockname()[1])
    with pytest.raises(ConfigError, match="--host"):
        open_socket("no such host", 0)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_200_damaged_files(make_client, picture) -> None:
    client = make_client(max_pixels=MAX_PIXELS)
    refused = 0
    for case in (*cases(200, seed=1), *cases(36, seed=1, of="10bit")):
        answer = client.post("/v1/upscale", files={"file": (case.name, case.content)})
        if answer.status_code != 200:
            refused += 1
            assert answer.status_code in (413, 415, 422), (case.name, answer.text)
            detail = answer.json()["detail"]
            assert detail.endswith(".") and "\n" not in detail, case.name
    assert refused > 60
    assert post(client, picture).status_code == 200


def test_nothing_stays_on_disk(make_client, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(folder)
    large = noise_image(tmp_path / "large.bmp", size=(700, 600)).read_bytes()  # more than 1 MB goes through a file
    client = make_client(max_bytes=2_000_000)
    assert len(large) > 1_100_000
    assert post(client, large[:-500_000]).status_code == 422
    assert post(client, large + bytes(10**6)).status_code == 413
    assert post(client, large, data={"scale": "99"}).status_code == 422
    job = client.post("/v1/jobs", files={"file": ("a.bmp", large)}, data={"steps": "1"}).json()["id"]
    client.delete(f"/v1/jobs/{job}")
    assert post(client, large, data={"scale": "1.1", "steps": "1"}).status_code == 200
    assert os.listdir(folder) == []


# --- bad clients, on a real port --------------------------------------------------------------------------------------


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=30)


def start_of_upload(length: int, content: bytes, fields: str = "") -> bytes:
    """A request whose body may be shorter than it says."""
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    head = f"POST /v1/upscale?{fields} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    return head.encode() + f"Content-Length: {length or len(body)}\r\n\r\n".encode() + body


def get(address: str, path: str) -> dict:
    import httpx2

    return httpx2.get(address + path, timeout=30).json()


def wait_for(address: str, **wanted: int) -> None:
    limit = time.monotonic() + 30
    while any(get(address, "/healthz")[name] != number for name, number in wanted.items()):
        assert time.monotonic() < limit, wanted
        time.sleep(0.05)


def test_a_client_that_goes_frees_the_worker(serve_on_a_port, tmp_path) -> None:
    address = serve_on_a_port()
    content = noise_image(tmp_path / "long.png", size=(400, 400)).read_bytes()
    with connect(address) as running, connect(address) as waiting:
        for client in (running, waiting):
            client.sendall(start_of_upload(0, content, "steps=100"))
        wait_for(address, running=1, waiting=1)
    wait_for(address, running=0, waiting=0)


def test_half_uploads_and_slow_headers_block_nobody(serve_on_a_port, picture) -> None:
    import httpx2

    address = serve_on_a_port()
    slow = [connect(address) for _ in range(20)]
    for number, client in enumerate(slow):
        client.sendall(start_of_upload(10**6, b"half") if number % 2 else b"GET / HT")
    assert httpx2.post(address + "/v1/upscale", files={"file": ("a.png", picture)}, timeout=60).status_code == 200
    for client in slow:
        client.close()
    assert get(address, "/healthz")["running"] == 0


def test_who_stalls_is_sent_away(serve_on_a_port, monkeypatch) -> None:
    import samdiffsr.web.receive
    import samdiffsr.web.server

    monkeypatch.setattr(samdiffsr.web.receive, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(samdiffsr.web.server, "HEADER_SECONDS", 0.3)
    address = serve_on_a_port()
    with connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert client.recv(1000) == b""
    with connect(address) as client:
        client.sendall(start_of_upload(10**6, b"half"))
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
    with connect(address) as client:  # a second request on the same connection
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(4000).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"GET /healthz HTTP")
        while client.recv(4000):
            pass


def test_too_large_is_answered_on_the_wire(serve_on_a_port) -> None:
    import httpx2

    address = serve_on_a_port(max_bytes=1000)
    answer = httpx2.post(address + "/v1/upscale", files={"file": ("a.png", bytes(3_000_000))}, timeout=30)
    assert answer.status_code == 413 and "1000 bytes" in answer.json()["detail"]
    with connect(address) as client:  # curl asks before it sends
        head = start_of_upload(10**9, b"").partition(b"\r\n\r\n")[0]
        client.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(4000).startswith(b"HTTP/1.1 413 ")


def test_garbage_is_no_request(serve_on_a_port) -> None:
    address = serve_on_a_port()
    for words in (b"\0\1\2\3\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 200_000 + b"\r\n\r\n"):
        with connect(address) as client:
            client.sendall(words)
            assert client.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert get(address, "/healthz")["status"] == "ok"


def test_of_a_path_in_a_field_nothing_is_read(client, tmp_path, picture) -> None:
    secret = Path(tmp_path / "secret.png")
    secret.write_bytes(picture)
    answer = client.post("/v1/upscale", files={"file": (None, str(secret))})
    assert answer.status_code == 422
    assert client.post("/v1/upscale", data={"file": f"file://{secret}"}).status_code == 415
