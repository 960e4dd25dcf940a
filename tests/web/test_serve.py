"""`samdiffsr serve` as a process: the address first, then requests, then a clean end."""

import functools
import signal
import subprocess
import sys

import httpx2
import pytest

from samdiffsr.cli import main
from samdiffsr.cli.serve import serve
from samdiffsr.web.limits import Limits
from support import noise_image, posix


@posix
def test_from_address_to_end(tiny_pipe_dir, tmp_path) -> None:
    command = [sys.executable, "-m", "samdiffsr", "serve", "--port", "0", "-m", str(tiny_pipe_dir), "--device", "cpu"]
    # A shell without job control starts what it puts in the background deaf to Ctrl-C, and that is inherited.
    hears = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hears)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        content = noise_image(tmp_path / "a.png").read_bytes()
        answer = httpx2.post(address + "/v1/upscale", files={"file": ("a.png", content)}, timeout=60)
        assert answer.status_code == 200 and answer.headers["x-model"] == "model"
        assert "server" not in answer.headers
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "no such host"], "--host"),
        (["--token-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (["-m", "nowhere"], "nowhere"),
        (["-m", "a/x", "-m", "b/x"], "'x'"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_what_cannot_start(capsys, arguments, words) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", "--port", "0", *arguments])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == "" and words in err and err.count("\n") == 1


def test_defaults_are_those_of_the_limits() -> None:
    defaults = serve.__kwdefaults__
    assert Limits() == Limits(*(defaults[name] for name in ("max_bytes", "max_pixels", "queue", "timeout")))
