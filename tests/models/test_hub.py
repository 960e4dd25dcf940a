"""Models of the Hub, from a server of our own that speaks its HTTP API: revisions, the cache without network, sentences."""

import ast
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from samdiffsr.evaluation.methods import model
from samdiffsr.models.hub import is_hub_name

COMMITS = {"main": "1" * 40, "v2": "2" * 40, "broken": "3" * 40, "v1": "4" * 40}


class FakeHub(BaseHTTPRequestHandler):
    """What `snapshot_download` asks of the Hub, for the model me/small; each revision has its own files."""

    def __init__(self, folder: Path, asked: list[str], *arguments) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*arguments)

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.asked.append(path)
        if path.startswith("api/models/me/small"):
            kind, _, revision = path.removeprefix("api/models/me/small").strip("/").partition("/")
            commit = COMMITS.get(revision or "main", revision)
            if commit not in COMMITS.values():
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return self.answer(200, json.dumps(self.listing(commit, kind)).encode(), {})
        if path.startswith("me/small/resolve/"):
            commit, _, name = path.removeprefix("me/small/resolve/").partition("/")
            commit = COMMITS.get(commit, commit)
            if commit == COMMITS["broken"] and self.command == "GET":
                self.close_connection = True  # without an answer
                return None
            content = (self.folder / commit / name).read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(200, content, {"ETag": etag, "X-Repo-Commit": commit})
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def listing(self, commit: str, kind: str) -> object:
        folder = self.folder / commit
        files = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
        if kind == "tree":
            sizes = {name: (folder / name).stat().st_size for name in files}
            return [{"type": "file", "path": name, "oid": "0" * 40, "size": sizes[name]} for name in files]
        return {"id": "me/small", "sha": commit, "siblings": [{"rfilename": name} for name in files]}

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Length": str(len(content)), "Content-Type": "application/json"} | headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[ThreadingHTTPServer, list[str]]]:
    for number, commit in enumerate(COMMITS.values()):
        folder = tmp_path / "hub" / commit
        (folder / "denoiser").mkdir(parents=True)
        (folder / "model_index.json").write_text(json.dumps({"number": number}))
        (folder / "denoiser/weights.safetensors").write_bytes(bytes([number]))
        (folder / "denoiser/weights.bin").write_bytes(b"a pickle")
        (folder / "code.py").write_text("raise SystemExit")
    (tmp_path / "hub" / COMMITS["v2"] / "model_index.json").unlink()
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(FakeHub, tmp_path / "hub", asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, asked
    server.shutdown()
    server.server_close()


FETCH = "from samdiffsr.models.hub import fetch\nprint(fetch(sys.argv[1]))"
EVALUATE = "from samdiffsr.evaluation.methods import model\nprint(model(sys.argv[1], 'cpu').record)"


def fetch(port: int, name: str, tmp_path: Path, script: str = FETCH) -> str:
    """The folder or the sentence, from a process of its own, because the Hub's library reads its address when imported."""
    lines = "\n    ".join(script.splitlines())
    code = f"import sys\nfrom samdiffsr.errors import SamDiffSRError\ntry:\n    {lines}\n"
    code += "except SamDiffSRError as error:\n    print('Error:', error)"
    here = {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    words = [sys.executable, "-c", code, name]
    done = subprocess.run(words, env=os.environ | here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_weights_are_fetched_and_serve_again_without_network(hub, tmp_path) -> None:
    server, asked = hub
    folder = Path(fetch(server.server_port, "me/small", tmp_path))
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    assert names == ["denoiser/weights.safetensors", "model_index.json"]  # neither code nor pickles
    assert json.loads((folder / "model_index.json").read_text()) == {"number": 0}
    assert not [path for path in asked if path.endswith((".py", ".bin"))]
    server.shutdown()
    server.server_close()
    assert fetch(server.server_port, "me/small", tmp_path) == str(folder)
    assert "cannot be reached" in fetch(server.server_port, "me/other", tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("me/small@v2", "'me/small@v2' on the Hub is no pipeline: it has no model_index.json."),
        ("me/small@v3", "'me/small' on the Hub has no revision 'v3'."),
        ("me/small@broken", "The model 'me/small@broken' could not be fetched from the Hub: "),
        ("me/none", "There is neither a folder 'me/none' here nor a model 'me/none' on the Hub"),
    ],
)
def test_one_sentence_for_what_cannot_be_had(hub, tmp_path, name, sentence) -> None:
    assert fetch(hub[0].server_port, name, tmp_path).startswith(f"Error: {sentence}")


@pytest.mark.parametrize(("spec", "steps"), [("me/small@v1@steps=1,detail=0.5", 1), ("me/small@v1", 2)])
def test_a_revision_and_settings_to_evaluate(hub, tmp_path, tiny_pipe_dir, spec, steps) -> None:
    """The last @ belongs to the settings only where an = stands behind it; and the record has the weights' checksum."""
    shutil.copytree(tiny_pipe_dir, tmp_path / "hub" / COMMITS["v1"], dirs_exist_ok=True)
    (tmp_path / "hub" / COMMITS["v1"] / "denoiser/weights.safetensors").unlink()
    record = ast.literal_eval(fetch(hub[0].server_port, spec, tmp_path, EVALUATE))
    assert (record["model"], record["steps"]) == ("me/small@v1", steps)
    assert record["sha256"] == model(str(tiny_pipe_dir), "cpu").record["sha256"]


def test_a_path_is_never_asked_of_the_network(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert is_hub_name("me/small") and is_hub_name("me/small@v1.0")
    for name in ("default", "run/model", "./me/small", "/me/small", "a/b/c", "me/small.ckpt/", "../small", "me\\small"):
        assert not is_hub_name(name), name
