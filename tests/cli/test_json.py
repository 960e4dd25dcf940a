"""`samdiffsr upscale --json`: one object for each image, with the names that the HTTP API has."""

import json

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from samdiffsr.cli import main
from samdiffsr.web.app import create_app
from samdiffsr.web.engine import Engine
from support import noise_image


def run(capsys, *arguments: object) -> tuple[int, list[dict]]:
    with pytest.raises(SystemExit) as end:
        main(["upscale", *map(str, arguments), "--json"])
    return end.value.code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def when_done(client, job: str) -> dict:
    """A job of the HTTP API as it is described at its end."""
    while (described := client.get(f"/v1/jobs/{job}").json())["state"] != "done":
        pass
    return described


def test_one_object_for_each_image(tiny_pipe_dir, tmp_path, capsys) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    noise_image(folder / "a.png")
    (folder / "b.png").write_text("no image")
    noise_image(folder / "c.bmp", "RGB")
    code, found = run(capsys, folder, "-o", out, "-m", tiny_pipe_dir, "--seed", "3")
    assert code == 1 and [one["state"] for one in found] == ["done", "failed", "done"]
    first, second, _ = found
    assert first["target"] == str(out / "a_x4.png") and first["seed"] == 3 and first["model"] == str(tiny_pipe_dir)
    assert (first["width"], first["height"]) == (24, 20) and first["bytes"] == (out / "a_x4.png").stat().st_size
    assert first["error"] is None and "b.png" in second["error"] and second["target"] is None
    code, found = run(capsys, folder / "a.png", "-o", out, "-m", tiny_pipe_dir, "--skip-existing")
    assert code == 0 and [one["state"] for one in found] == ["skipped"]


def test_warnings_and_a_target_that_changed(tiny_pipe_dir, tmp_path, capsys) -> None:
    source = noise_image(tmp_path / "a.png", "RGBA").rename(tmp_path / "a.jpg")
    code, (found,) = run(capsys, source, "-o", tmp_path / "out", "-m", tiny_pipe_dir)
    assert code == 0 and found["target"] == str(tmp_path / "out" / "a_x4.png")
    moving = noise_image(tmp_path / "b.gif", "L", save_all=True, append_images=[])
    _, (found,) = run(capsys, moving, "-o", tmp_path / "out" / "b.jpg", "-m", tiny_pipe_dir)
    assert isinstance(found["warnings"], list)


def test_clean_is_the_level_that_was_used(able_pipe, tiny_pipe_dir, tmp_path, capsys) -> None:
    able_pipe.save_pretrained(tmp_path / "model")
    source = noise_image(tmp_path / "a.png", size=(30, 20))
    call = (source, "-o", tmp_path / "out", "--overwrite", "-m")
    _, (estimated,) = run(capsys, *call, tmp_path / "model", "--precision", "float32")
    with Image.open(source) as image:
        level = able_pipe(image, num_inference_steps=1).levels[0]
    assert 0 < estimated["clean"] < 1 and estimated["clean"] == pytest.approx(level, abs=1e-4)
    _, (given,) = run(capsys, *call, tmp_path / "model", "--clean", "0.25")
    _, (without,) = run(capsys, *call, tiny_pipe_dir)
    assert given["clean"] == 0.25 and without["clean"] is None
    with TestClient(create_app([Engine({"able": able_pipe})]), base_url="http://localhost") as client:
        files = {"file": ("a.png", source.read_bytes())}
        answer = client.post("/v1/upscale", files=files, data={"precision": "float32"})
        assert answer.headers["x-clean"] == str(estimated["clean"])
        job = client.post("/v1/jobs", files=files, data={"precision": "float32"}).json()
        assert job["clean"] is None
        described = when_done(client, job["id"])
    assert described["clean"] == estimated["clean"]


def test_the_names_are_those_of_the_api(tiny_pipe, tiny_pipe_dir, tmp_path, capsys) -> None:
    source = noise_image(tmp_path / "a.png")
    _, (found,) = run(capsys, source, "-o", tmp_path / "out", "-m", tiny_pipe_dir)
    with TestClient(create_app([Engine({"tiny": tiny_pipe})]), base_url="http://localhost") as client:
        job = client.post("/v1/jobs", files={"file": ("a.png", source.read_bytes())}).json()["id"]
        described = when_done(client, job)
    assert set(found) <= set(described)
    for name in ("state", "width", "height", "bytes", "seed", "clean", "warnings", "error"):
        assert found[name] == described[name]
