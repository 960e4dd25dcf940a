"""Models of the Hub, from a server of our own that speaks its HTTP API: revisions, the cache without network, sentences."""

import ast
import base64
import functools
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from samdiffsr.cli import app
from samdiffsr.evaluation.methods import model
from samdiffsr.models.hub import is_hub_name

COMMITS = {"main": "1" * 40, "v2": "2" * 40, "broken": "3" * 40, "v1": "4" * 40, "next": "5" * 40}


class FakeHub(BaseHTTPRequestHandler):
    """What `snapshot_download` and `create_commit` ask of the Hub, for the model me/small; each revision has its own files."""

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
            if not (self.folder / commit / name).is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            content = (self.folder / commit / name).read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(200, content, {"ETag": etag, "X-Repo-Commit": commit})
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        path, sent = self.path.partition("?")[0].strip("/"), self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.asked.append(path)
        if self.headers["Authorization"] != "Bearer hf_may_write":
            return self.answer(401, b"{}", {})
        if path == "api/repos/create":
            said = {"url": f"http://{self.headers['Host']}/me/small", "error": "it exists"}
            return self.answer(409, json.dumps(said).encode(), {})
        if path == "api/validate-yaml":
            return self.answer(200, b"{}", {})
        kind, _, revision = path.removeprefix("api/models/me/small/").partition("/")
        if kind == "branch":
            return self.answer(409 if revision in COMMITS else 404, b"{}", {})
        if kind == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"]} | modes for file in json.loads(sent)["files"]]
            return self.answer(200, json.dumps({"files": files}).encode(), {})
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                file = self.folder / COMMITS[revision] / line["value"]["path"]
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        place = {
            "commitUrl": f"http://{self.headers['Host']}/me/small/commit/{revision}",
            "commitOid": COMMITS[revision],
        }
        return self.answer(200, json.dumps(place).encode(), {})

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


ASK = """
import contextlib, io, json, os, sys, time
from samdiffsr.errors import SamDiffSRError
wait = time.sleep
time.sleep = lambda seconds: wait(min(seconds, 0.01))  # else the Hub's library tries again after 1, 2, 4, 8 and 8 s
for line in sys.stdin:
    script, given, os.environ["HF_TOKEN"] = json.loads(line)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            exec(script, {"given": given})
        except SamDiffSRError as error:
            print("Error:", error)
    print(json.dumps(said.getvalue().strip()), flush=True)
"""
FETCH = "from samdiffsr.models.hub import fetch\nprint(fetch(given))"
EVALUATE = "from samdiffsr.evaluation.methods import model\nprint(model(given, 'cpu').record)"
PUSH = """from samdiffsr.errors import SamDiffSRError
from samdiffsr.evaluation.card import push_to_hub
for one in given:
    try:
        print(push_to_hub(**one))
    except SamDiffSRError as error:
        print('Error:', error)"""


class User:
    """A process that asks the Hub on `port`: one of its own, because the Hub's library reads its address when imported."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = found.getsockname()[1]
        here = {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        words = [sys.executable, "-c", ASK]
        self.process = subprocess.Popen(
            words, env=os.environ | here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def says(self, script: str, given: object, token: str = "") -> str:
        """What `script` prints of `given`, or the sentence."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps([script, given, token]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def fetch(self, name: str) -> str:
        """The folder or the sentence."""
        return self.says(FETCH, name)

    def push(self, *calls: dict, token: str = "hf_may_write") -> list[str]:
        """The address or the sentence of each call."""
        return self.says(PUSH, [{"repo": "me/small"} | call for call in calls], token).splitlines()


@pytest.fixture(scope="module")
def the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    user = User(tmp_path_factory.mktemp("home"))
    yield user
    user.process.communicate()


@pytest.fixture
def user(the_user: User) -> User:
    """With an empty cache."""
    shutil.rmtree(the_user.home)
    the_user.home.mkdir()
    return the_user


@pytest.fixture
def hub(user: User, tmp_path: Path) -> Iterator[tuple[ThreadingHTTPServer, list[str]]]:
    for number, commit in enumerate(COMMITS.values()):
        folder = tmp_path / "hub" / commit
        (folder / "denoiser").mkdir(parents=True)
        (folder / "model_index.json").write_text(json.dumps({"number": number}))
        (folder / "denoiser/weights.safetensors").write_bytes(bytes([number]))
        (folder / "denoiser/weights.bin").write_bytes(b"a pickle")
        (folder / "code.py").write_text("raise SystemExit")
    (tmp_path / "hub" / COMMITS["v2"] / "model_index.json").unlink()
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", user.port), functools.partial(FakeHub, tmp_path / "hub", asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, asked
    server.shutdown()
    server.server_close()


def test_weights_are_fetched_and_serve_again_without_network(hub, user) -> None:
    server, asked = hub
    folder = Path(user.fetch("me/small"))
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    assert names == ["denoiser/weights.safetensors", "model_index.json"]  # neither code nor pickles
    assert json.loads((folder / "model_index.json").read_text()) == {"number": 0}
    assert not [path for path in asked if path.endswith((".py", ".bin"))]
    server.shutdown()
    server.server_close()
    assert user.fetch("me/small") == str(folder)
    assert "cannot be reached" in user.fetch("me/other")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("me/small@v2", "'me/small@v2' on the Hub is no pipeline: it has no model_index.json."),
        ("me/small@v3", "'me/small' on the Hub has no revision 'v3'."),
        ("me/small@broken", "The model 'me/small@broken' could not be fetched from the Hub: "),
        ("me/none", "There is neither a folder 'me/none' here nor a model 'me/none' on the Hub"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_one_sentence_for_what_cannot_be_had(user, name, sentence) -> None:
    assert user.fetch(name).startswith(f"Error: {sentence}")


@pytest.mark.parametrize(("spec", "steps"), [("me/small@v1@steps=1,detail=0.5", 1), ("me/small@v1", 2)])
@pytest.mark.usefixtures("hub")
def test_a_revision_and_settings_to_evaluate(user, tmp_path, tiny_pipe_dir, spec, steps) -> None:
    """The last @ belongs to the settings only where an = stands behind it; and the record has the weights' checksum."""
    shutil.copytree(tiny_pipe_dir, tmp_path / "hub" / COMMITS["v1"], dirs_exist_ok=True)
    (tmp_path / "hub" / COMMITS["v1"] / "denoiser/weights.safetensors").unlink()
    record = ast.literal_eval(user.says(EVALUATE, spec))
    assert (record["model"], record["steps"]) == ("me/small@v1", steps)
    assert record["sha256"] == model(str(tiny_pipe_dir), "cpu").record["sha256"]


def report_about(folder: Path, path: Path) -> Path:
    """Of `samdiffsr evaluate`, on one small image, with two settings of the model."""
    hr = path / "Set1" / "HR"
    hr.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(hr / "a.png")
    words = ["evaluate", "--hr", str(hr), "-m", str(folder), "-m", f"{folder}@steps=1", "-o", str(path / "report")]
    done = CliRunner().invoke(app, [*words, "--baseline", "bicubic", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    return path / "report" / "report.json"


@pytest.mark.usefixtures("hub")
def test_a_pushed_model_has_a_card_with_its_figures_and_comes_back(user, tmp_path, tiny_pipe_dir) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_pipe_dir, folder)
    (folder / "state.pt").write_bytes(b"of the training")
    report = report_about(folder, tmp_path)
    given = {"folder": str(folder), "reports": [str(report)], "licence": "mit", "revision": "next"}
    assert user.push(given)[0].endswith("/me/small/commit/next")
    there = tmp_path / "hub" / COMMITS["next"]
    assert not (there / "state.pt").exists() and (there / "pipeline.py").is_file()
    card: Any = ModelCard.load(there / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("mit", "diffusers", "image-to-image")
    assert "samdiffsr" in card.data.tags and "-m me/small" in card.text
    figures = json.loads(report.read_text())["figures"]
    means = {method["method"]: method["mean"] for method in figures["methods"]}
    found = {result.metric_name: result for result in card.data.eval_results}
    assert found["psnr-y"].metric_value == pytest.approx(means[str(folder)]["psnr-y"])
    assert found["psnr-y (steps=1)"].metric_value == pytest.approx(means[f"{folder}@steps=1"]["psnr-y"])
    assert found["psnr-y"].metric_value != pytest.approx(means["bicubic"]["psnr-y"])
    assert found["psnr-y"].dataset_name == "Set1" and "BT.601" in found["psnr-y"].metric_args["protocol"]
    again = Path(user.fetch("me/small@next"))
    weights = "denoiser/diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (folder / weights).read_bytes()


@pytest.mark.usefixtures("hub")
def test_a_card_that_the_repository_has_keeps_its_words(user, tmp_path, tiny_pipe_dir) -> None:
    there = tmp_path / "hub" / COMMITS["main"] / "README.md"
    there.write_text("---\nlicense: cc0-1.0\ntags: [mine]\n---\n\n# By hand\n")
    assert user.push({"folder": str(tiny_pipe_dir)})[0].endswith("/me/small/commit/main")
    card: Any = ModelCard.load(there)
    assert card.text.strip() == "# By hand"
    assert card.data.license == "cc0-1.0" and card.data.tags[:2] == ["mine", "super-resolution"]
    assert card.data.eval_results is None


def test_one_sentence_for_what_cannot_be_pushed(hub, user, tmp_path, tiny_pipe_dir) -> None:
    (tmp_path / "no.json").write_text("[]")
    other = tmp_path / "other"
    shutil.copytree(tiny_pipe_dir, other)
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"detail": 0.5}))
    given = {"folder": str(tiny_pipe_dir)}
    said = user.push(
        {"folder": str(tmp_path / "no")},
        given | {"repo": "small"},
        given | {"reports": [str(tmp_path / "no.json")]},
        given | {"reports": [str(report_about(other, tmp_path))]},
    )
    assert said[0] == f"Error: '{tmp_path}/no' is no pipeline: it has no model_index.json."
    assert said[1] == "Error: 'small' is no name of a repository on the Hub; write user/repo."
    assert said[2].startswith(f"Error: '{tmp_path}/no.json' is no report.json of samdiffsr evaluate")
    assert f"has no figures of the weights in '{tiny_pipe_dir}'" in said[3]
    assert hub[1] == []  # nothing was asked
    refused = user.push(given, token="hf_may_read")
    assert refused[0].startswith("Error: The Hub does not let you write to 'me/small': log in")
    hub[0].shutdown()
    hub[0].server_close()
    assert user.push(given) == ["Error: The Hub cannot be reached to write to 'me/small'."]


def test_a_path_is_never_asked_of_the_network(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert is_hub_name("me/small") and is_hub_name("me/small@v1.0")
    for name in ("default", "run/model", "./me/small", "/me/small", "a/b/c", "me/small.ckpt/", "../small", "me\\small"):
        assert not is_hub_name(name), name
