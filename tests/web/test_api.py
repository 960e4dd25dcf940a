"""The HTTP API in process: the bytes of the command line, headers, and one sentence for whatever is wrong."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samdiffsr.cli import main
from samdiffsr.images import Picture, write_image
from samdiffsr.upscale.settings import Settings
from support import EXAMPLES, noise_image


def post(client, file: Path, path: str = "/v1/upscale", query: str = "", **fields: object):
    return client.post(path + query, files={"file": (file.name, file.read_bytes())}, data=fields)


def command_line(source: Path, folder: Path, *options: str) -> Path:
    """What `samdiffsr upscale` writes."""
    with pytest.raises(SystemExit) as end:
        main(["upscale", str(source), "-o", str(folder), *options])
    assert end.value.code == 0
    (made,) = folder.iterdir()
    return made


def deep_picture(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 65_536, (6, 7, 4)).astype(np.uint16)
    write_image(Picture(pixels[..., :3], pixels[..., 3]), path)
    return path


PICTURES = {
    "plain.png": lambda path: noise_image(path),
    "photo.JPG": lambda path: noise_image(path, dpi=(300, 300), quality=90),
    "grey.webp": lambda path: noise_image(path, "L"),
    "moving.gif": lambda path: noise_image(path, "L"),
    "deep.tif": deep_picture,
    "transparent.bmp.png": lambda path: noise_image(path, "RGBA"),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, []),
        (
            {"scale": "2.5", "seed": "7", "steps": "3", "detail": "0.4", "strip_metadata": "true"},
            ["-s", "2.5", "--seed", "7", "--steps", "3", "--detail", "0.4", "--strip-metadata"],
        ),
    ],
)
def test_bytes_equal_those_of_the_command_line(client, tiny_pipe_dir, tmp_path, name, fields, options) -> None:
    source = PICTURES[name](tmp_path / "in" / name)
    expected = command_line(source, tmp_path / "out", "-m", str(tiny_pipe_dir), *options)
    answer = post(client, source, **fields)
    assert answer.status_code == 200
    assert answer.content == expected.read_bytes()
    assert f'filename="{expected.name}"' in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    ("fields", "options", "kind"),
    [
        ({"format": "jpg", "quality": "30"}, ["--format", "jpg", "--quality", "30"], "image/jpeg"),
        ({"format": "webp", "consistency": "true"}, ["--format", "webp", "--consistency"], "image/webp"),
        ({"format": "tiff", "size": "40x"}, ["--format", "tiff", "--size", "40x"], "image/tiff"),
    ],
)
def test_bytes_of_other_formats_too(client, tiny_pipe_dir, tmp_path, fields, options, kind) -> None:
    source = noise_image(tmp_path / "in" / "a.png", size=(20, 14))
    expected = command_line(source, tmp_path / "out", "-m", str(tiny_pipe_dir), *options)
    answer = post(client, source, **fields)
    assert answer.content == expected.read_bytes() and answer.headers["content-type"] == kind


def test_the_default_model_too(tmp_path) -> None:
    from fastapi.testclient import TestClient

    from samdiffsr.web.app import create_app
    from samdiffsr.web.engine import load_engines

    source = tmp_path / "in" / "cat.png"
    source.parent.mkdir()
    Image.open(EXAMPLES / "cat.png").crop((0, 0, 24, 16)).save(source)
    expected = command_line(source, tmp_path / "out", "--device", "cpu")
    with TestClient(create_app(load_engines({"default": "default"}, ["cpu"])), base_url="http://localhost") as client:
        assert post(client, source).content == expected.read_bytes()


def test_fields_may_stand_in_the_query(client, tmp_path) -> None:
    source = noise_image(tmp_path / "a.png")
    in_form, in_query = post(client, source, seed="3"), post(client, source, query="?seed=3")
    assert in_form.content == in_query.content != post(client, source).content
    assert in_form.headers["x-seed"] == in_query.headers["x-seed"] == "3"


def test_headers_of_an_answer(client, tmp_path) -> None:
    source = noise_image(tmp_path / "größe; x.png")
    headers = post(client, source).headers
    assert headers["content-type"] == "image/png" and headers["x-model"] == "tiny" and headers["x-seed"] == "0"
    assert "filename*=UTF-8''gr%C3%B6%C3%9Fe%3B%20x_x4.png" in headers["content-disposition"]
    assert "x-clean" not in headers  # this model does not clean
    for stage in ("queue", "read", "enlarge", "write"):
        assert f"{stage};dur=" in headers["server-timing"]


def test_warnings_of_an_answer(client, tmp_path) -> None:
    answer = post(client, deep_picture(tmp_path / "a.png"), format="webp")
    assert any("16-bit" in warning for warning in json.loads(answer.headers["x-warnings"]))


@pytest.mark.parametrize("name", ["../../etc/passwd.png", "C:\\photos\\a.png", "/abs.png"])
def test_of_a_path_only_the_name_counts(client, tmp_path, name) -> None:
    content = noise_image(tmp_path / "a.png").read_bytes()
    answer = client.post("/v1/upscale", files={"file": (name, content)})
    stem = name.replace("\\", "/").rpartition("/")[2].removesuffix(".png")
    assert f'filename="{stem}_x4.png"' in answer.headers["content-disposition"]


# --- problems ---------------------------------------------------------------------------------------------------------


def check_problem(answer, status: int, *words: str) -> None:
    """RFC 9457, with one sentence."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status and body["title"] and body["type"] == "about:blank"
    assert body["detail"].endswith(".") and "\n" not in body["detail"]
    for word in words:
        assert word in body["detail"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scale": "99"}, ["99", "16"]),
        ({"scale": "many"}, ["scale", "many"]),
        ({"scale": "2", "size": "40x"}, ["size"]),
        ({"detail": "3"}, ["detail", "3", "2"]),
        ({"steps": "0"}, ["steps", "0"]),
        ({"steps": "1.5"}, ["steps", "1.5"]),
        ({"seed": "-1"}, ["seed", "-1"]),
        ({"format": "gif"}, ["format", "gif", "png"]),
        ({"quality": "101"}, ["quality", "101"]),
        ({"consistency": "perhaps"}, ["consistency", "perhaps"]),
        ({"model": "/etc/passwd"}, ["model", "tiny"]),
        ({"overwrite": "true"}, ["overwrite", "scale"]),
        ({"max_pixels": "9999999"}, ["max_pixels"]),
        ({"size": "1000x1000"}, ["a.png"]),
        ({"steps": "5000"}, ["5000"]),
    ],
)
def test_a_field_that_cannot_be(client, tmp_path, fields, words) -> None:
    source = noise_image(tmp_path / "a.png")
    check_problem(post(client, source, **fields), 422, *words)
    query = "?" + "&".join(f"{name}={value}" for name, value in fields.items())
    check_problem(post(client, source, query=query), 422, *words)


def test_a_field_given_twice(client, tmp_path) -> None:
    check_problem(post(client, noise_image(tmp_path / "a.png"), query="?seed=1", seed="2"), 422, "seed", "'1'", "'2'")


def test_an_empty_field_is_left_out(client, tmp_path) -> None:
    source = noise_image(tmp_path / "a.png")
    assert post(client, source, steps="", model="", scale=" ").content == post(client, source).content


def test_not_a_picture(client) -> None:
    for content in (b"Dear Sir or Madam", b"", b"\x89PN"):
        answer = client.post("/v1/upscale", files={"file": ("letter.txt", content)})
        check_problem(answer, 415, "letter.txt")


def test_a_damaged_picture(client, tmp_path) -> None:
    content = noise_image(tmp_path / "a.png", size=(60, 50)).read_bytes()
    for length in (8, 200, len(content) - 200):
        answer = client.post("/v1/upscale", files={"file": ("a.png", content[:length])})
        check_problem(answer, 422, "'a.png' is incomplete, for it ends before the picture in it does; copy it again.")
    changed = content[:100] + bytes([content[100] ^ 255]) + content[101:]
    check_problem(client.post("/v1/upscale", files={"file": ("a.png", changed)}), 422, "'a.png' is damaged (")


def test_transparency_that_the_format_loses(client, tmp_path) -> None:
    check_problem(post(client, noise_image(tmp_path / "a.png", "RGBA"), format="jpg"), 422, "transparency")


def test_other_bodies(client, tmp_path) -> None:
    content = noise_image(tmp_path / "a.png").read_bytes()
    check_problem(client.post("/v1/upscale", content=content), 415, "multipart/form-data")
    check_problem(client.post("/v1/upscale", data={"file": "a.png"}), 415, "multipart/form-data")
    check_problem(client.post("/v1/upscale", files={"picture": ("a.png", content)}), 422, "'picture'")
    check_problem(client.post("/v1/upscale", files=[("file", ("a.png", content))] * 2), 422, "'file', 'file'")
    check_problem(client.post("/v1/upscale", files={"file": (None, "text")}), 422, "none")
    cut = {"content-type": "multipart/form-data; boundary=x"}
    check_problem(client.post("/v1/upscale", content=b"--x\r\nbroken", headers=cut), 422)
    check_problem(client.post("/v1/upscale", content=b"", headers={"content-type": "multipart/form-data"}), 422)


def test_unknown_paths_and_methods(client) -> None:
    check_problem(client.get("/v2/upscale"), 404, "/v2/upscale", "/docs")
    check_problem(client.get("/v1/upscale"), 405, "GET")
    check_problem(client.get("/static/../app.py"), 404)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_too_many_bytes_with_and_without_a_length(make_client) -> None:
    client = make_client(max_bytes=1000)
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + b"0" * 200_000
    headers = {"content-type": "multipart/form-data; boundary=x"}
    check_problem(client.post("/v1/upscale", content=body, headers=headers), 413, "1000 bytes")
    pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
    check_problem(client.post("/v1/upscale", content=pieces, headers=headers), 413, "1000 bytes")
    check_problem(client.post("/v1/upscale", files={"file": ("a.png", b"0" * 1001)}), 413, "1000 bytes")


def test_too_many_pixels_by_the_header_alone(make_client, tmp_path) -> None:
    """The pixels are missing, so decoding would fail in another way."""
    file = noise_image(tmp_path / "a.png", "L", size=(40, 30))
    client = make_client(max_pixels=1199)
    answer = client.post("/v1/upscale", files={"file": ("a.png", file.read_bytes()[:60])})
    check_problem(answer, 413, "40x30", "1199")


def test_too_many_pixels_on_the_way(make_client, tmp_path) -> None:
    answer = post(make_client(max_pixels=1200), noise_image(tmp_path / "a.png", size=(40, 30)), scale="9")
    check_problem(answer, 413, "640x480")


def test_too_many_seconds(make_client, tmp_path) -> None:
    answer = post(make_client(timeout=1), noise_image(tmp_path / "a.png", size=(600, 600)), steps="100")
    check_problem(answer, 504, "1 seconds", "a.png")


# --- facts ------------------------------------------------------------------------------------------------------------


def test_models_fields_and_limits(client, make_client, able_pipe) -> None:
    found = client.get("/v1/models").json()
    (listed,) = found["models"]
    assert listed.pop("precision") in ("float32", "bfloat16")
    plain = {"name": "tiny", "scale": 4, "steps": 2, "detail": 1.0, "cleans": False, "structure_head": False}
    assert listed == plain
    (able,) = make_client(pipe=able_pipe).get("/v1/models").json()["models"]
    assert able["cleans"] and able["structure_head"]
    assert {one.name for one in dataclasses.fields(Settings)} < set(found["fields"])
    assert found["limits"]["max_bytes"] == 64_000_000
    assert {"scale", "size", "detail", "steps", "seed", "format", "quality", "model"} <= set(found["fields"])
    assert found["fields"]["detail"]["maximum"] == 2 and "png" in found["fields"]["format"]["enum"]


def test_health(client) -> None:
    found = client.get("/healthz").json()
    assert found["status"] == "ok" and found["waiting"] == found["running"] == 0


def test_openapi_describes_every_route_and_field(client, tmp_path) -> None:
    found = client.get("/openapi.json").json()
    assert {"/v1/upscale", "/v1/jobs", "/v1/jobs/{identity}/events", "/v1/models", "/healthz"} <= set(found["paths"])
    upscale = found["paths"]["/v1/upscale"]["post"]
    names = set(client.get("/v1/models").json()["fields"])
    assert {one["name"] for one in upscale["parameters"]} == names
    form = upscale["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(form) == names | {"file"}
    assert all(field["description"] for field in form.values())
    assert {"X-Seed", "X-Clean", "X-Warnings"} <= set(upscale["responses"]["200"]["headers"])
    job = found["components"]["schemas"]["JobBody"]["properties"]
    assert set(job) == set(post(client, noise_image(tmp_path / "a.png"), "/v1/jobs").json())
