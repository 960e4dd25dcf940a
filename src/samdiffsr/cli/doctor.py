"""`samdiffsr doctor`: what is installed here, and whether it works. Its output belongs into a bug report."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from samdiffsr.cli.options import Device
from samdiffsr.cli.start import load_quickly

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("samdiffsr", "torch", "diffusers", "safetensors", "numpy", "pillow", "psutil", "typer", "rich")
EXTRAS = (
    "accelerate",
    "pydantic",
    "pycocotools",
    "transformers",
    "scikit-image",
    "onnxruntime",
    "ray",
    "pytorch-optimizer",
)
TOLERANCE = 1.0
"""Grey levels of the self-test's mean difference. Another seed makes 0.4, bicubic 7, swapped channels 57 (measured)."""
SPEED_SECONDS, SPEED_SIDE = 2.0, 128
"""For how long the speed is measured, and the side of the picture that is enlarged meanwhile, in pixels."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("doctor")(doctor)


def doctor(device: Device = "auto", as_json: Json = False) -> None:
    """Check this installation.

    Prints versions, devices and memory, checks the embedded model, upscales a small picture and measures the speed.
    Exit code 1 if something is wrong.
    """
    import json

    found = {"versions": versions(), "formats": formats(), "machine": machine()}
    problems = check_weights()
    test: dict[str, Any] = {}
    speed: dict[str, Any] = {}
    if not problems:
        try:
            test = self_test(device)
            speed = measure_speed(device)
        except RuntimeError as error:  # a device that is there and does not work
            problems.append(f"the self-test failed: {' '.join(str(error).split())}")
        else:
            if not test["difference"] <= TOLERANCE:
                problems.append(f"the self-test differs by {test['difference']} grey levels on {test['device']}")
    found |= {"self_test": test, "speed": speed, "problems": problems}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for section in ("versions", "formats", "machine", "self_test", "speed"):
            for name, value in found[section].items():
                typer.echo(f"{name:20} {value}")
        for problem in problems:
            typer.echo(f"Error: {problem}.", err=True)
        if not problems:
            typer.echo("All is well.")
    if problems:
        raise typer.Exit(1)


def versions() -> dict[str, str]:
    """Python and the packages we use; extras only where they are installed."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *EXTRAS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if name in PACKAGES:
                found[name] = "not installed as a package"
    return found


def formats() -> dict[str, str]:
    """Whether this Pillow has the formats that are optional in it."""
    from PIL import features

    names = {"webp": "webp", "avif": "avif", "jpg": "jpeg", "libtiff": "tiff", "littlecms2": "colour profiles"}
    return {said: "yes" if features.check(name) else "no" for name, said in names.items()}


def machine() -> dict[str, Any]:
    """Processor, memory, threads, devices."""
    import os
    import platform

    import torch

    from samdiffsr.devices import available_processors, device_count, device_name, free_memory, total_memory

    found: dict[str, Any] = {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "usable cores": available_processors(),
        "threads": torch.get_num_threads(),
    }
    devices = [torch.device("cpu")]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type  # pyright: ignore[reportOptionalMemberAccess]
        devices += [torch.device(kind, number) for number in range(device_count(kind))]
    for device in devices:
        name = "memory" if device.type == "cpu" else str(device)
        free, total = free_memory(device), None if device.type == "cpu" else total_memory(device)
        words = [] if device.type == "cpu" else [device_name(device)]
        words += (
            [f"{free / 2**30:.1f}{f' of {total / 2**30:.1f}' if total else ''} GiB free"] if free is not None else []
        )
        found[name] = ", ".join(words)
    return found


def check_weights() -> list[str]:
    """Faults in the files of the embedded model; SHA256SUMS is as sha256sum writes it."""
    import hashlib

    from samdiffsr.models.weights import DEFAULT_MODEL

    problems = []
    for line in (DEFAULT_MODEL / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        expected, name = line.split(maxsplit=1)
        file = DEFAULT_MODEL / name
        if not file.is_file():
            problems.append(f"'{file}' is missing; install samdiffsr again")
        elif hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            problems.append(f"'{file}' is not the file that was released; install samdiffsr again")
    return problems


def self_test(device: str) -> dict[str, Any]:
    """Upscale a small picture with the embedded model and compare with what it gave when it was released.

    Returns:
        The device, seconds (loading included), and the mean absolute difference in grey levels, computed in float32.
    """
    import time

    import numpy as np

    from samdiffsr.images import Picture, read_image
    from samdiffsr.models.weights import DEFAULT_MODEL
    from samdiffsr.upscale.enlarge import enlarge
    from samdiffsr.upscale.settings import Settings

    started = time.monotonic()
    pipe = load_quickly("default", device)
    settings = Settings(precision="float32")  # the sealed picture was made in it; others differ by machine
    result = enlarge(pipe, Picture(synthetic_picture()), settings).rgb.astype(np.float64)
    seconds = time.monotonic() - started
    difference = float(np.abs(result - read_image(DEFAULT_MODEL / "selftest.png").rgb).mean())
    return {
        "device": str(pipe.device),
        "seconds": round(seconds, 2),
        "difference": round(difference, 4),
    }


def measure_speed(device: str) -> dict[str, Any]:
    """Enlarge a picture again and again, with the embedded model and its own settings.

    Returns:
        The engine, the precision that "auto" takes here, and megapixels of output a second (the median).
    """
    import time
    from statistics import median

    import numpy as np

    from samdiffsr.images import Picture
    from samdiffsr.sampling.precision import type_name
    from samdiffsr.upscale.enlarge import enlarge

    pipe = load_quickly("default", device)
    picture = Picture(np.random.default_rng(0).integers(0, 256, (SPEED_SIDE, SPEED_SIDE, 3), dtype=np.uint8))
    seconds = []
    enlarge(pipe, picture)  # the first one is slower
    while not seconds or sum(seconds) < SPEED_SECONDS:
        started = time.monotonic()
        made = enlarge(pipe, picture)
        seconds.append(time.monotonic() - started)
    megapixels = made.rgb.shape[0] * made.rgb.shape[1] / 1e6
    return {
        "engine": engine(pipe.device.type),
        "auto precision": type_name(pipe.computed_in("auto")),
        "megapixels a second": round(megapixels / median(seconds), 2),
    }


def engine(kind: str) -> str:
    """The libraries that compute the convolutions on a kind of device."""
    import torch

    behind = {
        "cpu": torch.backends.mkldnn.is_available() and "oneDNN",
        "cuda": "cuDNN",
        "mps": "Metal",
        "xpu": "oneDNN",
    }
    return "torch" + (f" with {behind[kind]}" if behind.get(kind) else "")


def synthetic_picture() -> "np.ndarray":
    """A disc, a slope and a checkerboard in colour: uint8 (24, 24, 3)."""
    import numpy as np

    y, x = np.mgrid[:24, :24]
    disc = np.hypot(y - 9.0, x - 14.0) < 7
    board = (y // 3 + x // 3) % 2
    return np.stack([np.where(disc, 220, 60), 40 + 7 * y, np.where(disc, 90, 60 + 120 * board)], axis=2).astype(
        np.uint8
    )
