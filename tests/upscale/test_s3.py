"""Pictures in an object store: real requests to an S3 server on localhost, which can be made to fail."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samdiffsr.errors import ConfigError
from samdiffsr.load import load_model
from samdiffsr.upscale import uris
from samdiffsr.upscale.batch import Report, upscale_files
from samdiffsr.upscale.cluster import upscale_on_cluster, upscale_work
from samdiffsr.upscale.plan import plan
from support import noise_image

pytest.importorskip("pyarrow")


class Store:
    """moto's S3 server; it answers the next `failures` requests with 503 Slow Down."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.failures = 0
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.options = f"?endpoint_override=127.0.0.1:{self._server.server_port}&scheme=http"

    def _answer(self, environment: dict[str, Any], start_response: Any) -> Any:
        if self.failures > 0:
            self.failures -= 1
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return self._application(environment, start_response)

    def client(self) -> Any:
        """A file system that, unlike ours, may make buckets."""
        from pyarrow.fs import FileSystem

        return FileSystem.from_uri(f"s3://photos/{self.options}&allow_bucket_creation=true")[0]

    def keys(self, bucket: str) -> dict[str, bytes]:
        from pyarrow.fs import FileSelector

        client = self.client()
        found = client.get_file_info(FileSelector(bucket, recursive=True))
        return {file.path: client.open_input_stream(file.path).read() for file in found if file.is_file}

    def stop(self) -> None:
        """Also forget the buckets, which moto keeps for the whole process."""
        from moto.moto_api._internal.models import moto_api_backend

        moto_api_backend.reset()
        self._server.shutdown()
        self._thread.join()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    store = Store()
    client = store.client()
    for bucket in ("photos", "large"):
        client.create_dir(bucket)
    for name in ("a b.png", "x/b.png"):
        with client.open_output_stream(f"photos/{name}") as file:
            file.write(noise_image(tmp_path / "in" / name).read_bytes())
    yield store
    store.stop()


def upscale(model: Path, inputs: list[str], output: str, **options: Any) -> Report:
    jobs = plan(inputs, output, recursive=True)
    return upscale_on_cluster(lambda works: (upscale_work(work) for work in works), jobs, model=str(model), **options)


def test_from_bucket_to_bucket_the_same_bytes(store: Store, tiny_pipe_dir: Path, tmp_path: Path) -> None:
    pipe = load_model(tiny_pipe_dir, "cpu")
    upscale_files(lambda: pipe, plan([tmp_path / "in"], tmp_path / "o", recursive=True))
    report = upscale(tiny_pipe_dir, [f"s3://photos/{store.options}"], f"s3://large/set{store.options}")
    assert not report.failed and len(report.done) == 2
    assert store.keys("large") == {
        f"large/set/{name}": (tmp_path / "o" / name).read_bytes() for name in ("a b_x4.png", "x/b_x4.png")
    }
    again = upscale(tiny_pipe_dir, [f"s3://photos/a%20b.png{store.options}"], f"s3://large/set{store.options}")
    assert "exists already; give --overwrite" in again.failed[0][1]


def test_transient_errors_are_tried_again(store: Store, tiny_pipe_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, write, failed = uris.fetch, uris.store, []

    def after_failures(work: Any) -> Any:
        def call(*arguments: Any) -> None:
            store.failures = 5
            work(*arguments)
            failed.append(store.failures)

        return call

    monkeypatch.setattr(uris, "fetch", after_failures(fetch))
    monkeypatch.setattr(uris, "store", after_failures(write))
    report = upscale(tiny_pipe_dir, [f"s3://photos/x/b.png{store.options}"], f"s3://large{store.options}")
    assert not report.failed and failed == [0, 0]
    large = Image.open(io.BytesIO(store.keys("large")["large/b_x4.png"]))
    assert np.asarray(large).shape == (20, 24, 3)


def test_a_wrong_key_is_one_sentence_and_the_others_are_done(store: Store, tiny_pipe_dir: Path) -> None:
    lost = f"s3://photos/lost.png{store.options}"
    report = upscale(tiny_pipe_dir, [lost, f"s3://photos/x/b.png{store.options}"], f"s3://large{store.options}")
    assert report.failed == [(lost, f"'{lost}' does not exist; check the name.")]
    assert len(report.done) == 1


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_wrong_bucket_is_one_sentence_before_any_work(store: Store, tmp_path: Path, side: str) -> None:
    nowhere, photo = f"s3://nowhere/a.png{store.options}", str(tmp_path / "in" / "a b.png")
    given = (nowhere, str(tmp_path / "o")) if side == "input" else (photo, nowhere)
    with pytest.raises(ConfigError) as caught:
        upscale(tmp_path / "no model", [given[0]], given[1])
    assert str(caught.value) == "There is no bucket 'nowhere'; check its name and the endpoint."


def test_a_server_that_refuses_and_an_unknown_option(store: Store, tmp_path: Path) -> None:
    store.failures = 1000
    with pytest.raises(ConfigError, match=r"^Cannot reach the bucket 'photos' \(.*503.*\); check the network"):
        uris.connect(f"s3://photos/a.png{store.options}")
    with pytest.raises(ConfigError, match=r"^Cannot use 's3://photos/.*nonsense"):
        uris.connect(f"s3://photos/a.png{store.options}&nonsense=1")
