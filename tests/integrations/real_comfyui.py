"""Runs the nodes in a real ComfyUI on the CPU, as a user would: python tests/integrations/real_comfyui.py COMFYUI_FOLDER

ComfyUI starts with a folder of its own, which holds the nodes and one picture. The script asks for the description of a node,
sends a prompt over HTTP, waits for the result and compares it with samdiffsr's own. It exits 0 where both are equal.
"""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samdiffsr.images import Picture
from samdiffsr.load import load_model
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.settings import Settings

NODES = Path(__file__).parents[2] / "integrations/comfyui"
WAIT = 300  # seconds for the start, and for the work
PROMPT: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
    "2": {"class_type": "SamDiffSR_LoadModel", "inputs": {"model": "default"}},
    "3": {
        "class_type": "SamDiffSR_Upscale",
        "inputs": {"model": ["2", 0], "image": ["1", 0], "scale": 4.0, "detail": -1.0, "clean": -1.0, "steps": 0}
        | {"seed": 7, "tile": -1, "structure": "auto", "consistency": False, "precision": "auto"},
    },
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "large"}},
}


def ask(address: str, body: Any = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_for(question: Any) -> Any:
    """The first answer that is not empty."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        try:
            if found := question():
                return found
        except urllib.error.HTTPError as error:
            raise SystemExit(f"ComfyUI answered {error.code}: {error.read().decode()}") from error
        except OSError:
            pass  # it is still starting
        time.sleep(1)
    raise SystemExit(f"ComfyUI gave no answer in {WAIT} seconds.")


def check(address: str, base: Path, pixels: np.ndarray) -> None:
    described = wait_for(lambda: ask(f"{address}/object_info/SamDiffSR_Upscale"))
    assert described["SamDiffSR_Upscale"]["output"] == ["IMAGE", "FLOAT"], described
    number = ask(f"{address}/prompt", {"prompt": PROMPT})["prompt_id"]
    status = wait_for(lambda: ask(f"{address}/history/{number}"))[number]["status"]
    assert status["status_str"] == "success", status
    [file] = (base / "output").glob("large*.png")
    found = np.asarray(Image.open(file).convert("RGB")).astype(int)
    wanted = enlarge(load_model("default", "cpu"), Picture(pixels), Settings(seed=7)).rgb.astype(int)
    assert found.shape == wanted.shape
    off = np.abs(found - wanted).max()
    assert off <= 1, off  # SaveImage cuts off where ours rounds
    print(f"{file.name}: {found.shape[1]}x{found.shape[0]}, at most {off} of 255 off samdiffsr's own.")


def main(comfyui: Path) -> None:
    if not (comfyui / "main.py").is_file():
        raise SystemExit(f"{comfyui} is no folder of ComfyUI: it has no main.py.")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        base = Path(folder)
        for name in ("input", "output"):
            (base / name).mkdir()
        shutil.copytree(NODES, base / "custom_nodes/samdiffsr-upscale")
        Image.fromarray(pixels).save(base / "input/photo.png")
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        command = [sys.executable, "main.py", "--cpu", "--base-directory", folder, "--port", port]
        server = subprocess.Popen(command, cwd=comfyui)
        try:
            check(f"http://127.0.0.1:{port}", base, pixels)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("Usage: python tests/integrations/real_comfyui.py COMFYUI_FOLDER")
    main(Path(sys.argv[1]))
