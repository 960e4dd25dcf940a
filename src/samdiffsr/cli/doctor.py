"""`samdiffsr doctor`: what is installed here, and whether it works. Its output belongs into a bug report."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from samdiffsr.cli.options import Device

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("samdiffsr", "torch", "diffusers", "safetensors", "numpy", "pillow", "typer", "rich")
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

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("doctor")(doctor)


def doctor(device: Device = "auto", as_json: Json = False) -> None:
    """Check this installation.

    Prints versions, devices and memory, checks the embedded model and upscales a small picture. Exit code 1 if
    something is wrong.
    """
    import json

    found = {"versions": versions(), "formats": formats(), "machine": machine()}
    problems = check_weights()
    test: dict[str, Any] = {}
    if not problems:
        try:
            test = self_test(device)
        except RuntimeError as error:  # a device that is there and does not work
            problems.append(f"the self-test failed: {' '.join(str(error).split())}")
        else:
            if not test["difference"] <= TOLERANCE:
                problems.append(f"the self-test differs by {test['difference']} grey levels on {test['device']}")
    found |= {"self_test": test, "problems": problems}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for section in ("versions", "formats", "machine", "self_test"):
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

    from samdiffsr.sampling.tiles import free_memory

    found: dict[str, Any] = {"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if (free := free_memory(torch.device("cpu"))) is not None:
        found["free memory"] = f"{free / 2**30:.1f} GiB"
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        found[f"cuda:{number}"] = (
            f"{torch.cuda.get_device_name(number)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        )
    found["mps"] = "yes" if torch.backends.mps.is_available() else "no"
    return found


def check_weights() -> list[str]:
    """Faults in the files of the embedded model; SHA256SUMS is as sha256sum writes it."""
    import hashlib

    from samdiffsr.pipeline import DEFAULT_MODEL

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
        The device, seconds (loading included), the mean absolute difference in grey levels, computed in float32, and the
        precision that "auto" takes here.
    """
    import time

    import numpy as np

    from samdiffsr.images import Picture, read_image
    from samdiffsr.load import load_model
    from samdiffsr.pipeline import DEFAULT_MODEL
    from samdiffsr.sampling.precision import type_name
    from samdiffsr.upscale.enlarge import enlarge
    from samdiffsr.upscale.settings import Settings

    started = time.monotonic()
    pipe = load_model("default", device)
    settings = Settings(precision="float32")  # the sealed picture was made in it; others differ by machine
    result = enlarge(pipe, Picture(synthetic_picture()), settings).rgb.astype(np.float64)
    seconds = time.monotonic() - started
    difference = float(np.abs(result - read_image(DEFAULT_MODEL / "selftest.png").rgb).mean())
    return {
        "device": str(pipe.device),
        "seconds": round(seconds, 2),
        "difference": round(difference, 4),
        "auto precision": type_name(pipe.computed_in("auto")),
    }


def synthetic_picture() -> "np.ndarray":
    """A disc, a slope and a checkerboard in colour: uint8 (24, 24, 3)."""
    import numpy as np

    y, x = np.mgrid[:24, :24]
    disc = np.hypot(y - 9.0, x - 14.0) < 7
    board = (y // 3 + x // 3) % 2
    return np.stack([np.where(disc, 220, 60), 40 + 7 * y, np.where(disc, 90, 60 + 120 * board)], axis=2).astype(
        np.uint8
    )
