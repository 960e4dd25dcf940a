"""The processor and the accelerators of this machine: which there are, whether they work, what a process can take of them.

torch and psutil are imported inside the functions.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samdiffsr.errors import ConfigError, first_line

if TYPE_CHECKING:
    import torch

_BYTES_OF_A_GROUP = (  # control groups, version 2 and version 1: folder, limit, use, and the key of what can be dropped
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def find_device(name: str) -> "torch.device":
    """The torch device of that name, tried out.

    Args:
        name: "auto" (the accelerator that torch finds: CUDA, XPU, MPS or another one; else the CPU) or any torch device.

    Raises:
        ConfigError: it is not here, or this torch cannot compute on it.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    there = ["cpu"] if accelerator is None else [accelerator.type, "cpu"]
    try:
        device = torch.device(there[0] if name == "auto" else name)
        here = device.type in there and (device.index or 0) < max(1, device_count(device.type))
    except RuntimeError:
        here = False
    if not here:
        raise ConfigError(f"The device {name!r} is not available here; use 'auto' or {', '.join(there)}.")
    try:  # a GPU that is too old for this torch gives memory, but runs no kernel
        ones = torch.ones(1, 1, 4, 4, device=device)
        torch.nn.functional.conv2d(ones, ones).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        others = "install a PyTorch that is built for it, or use the device 'cpu'"
        advice = "install PyTorch again" if device.type == "cpu" else others
        raise ConfigError(
            f"The device {str(device)!r} is here, but PyTorch {torch.__version__} cannot compute on it "
            f"({first_line(error).rstrip('.')}); {advice}."
        ) from error
    return device


def device_count(kind: str) -> int:
    """How many devices of a kind there are, as torch.accelerator counts them; one CPU."""
    import torch

    return 1 if kind == "cpu" else torch.accelerator.device_count()


def device_name(device: "torch.device") -> str:
    """The product name of an accelerator, or that of its kind."""
    import torch

    ask = getattr(torch.get_device_module(device), "get_device_name", None)  # MPS has none
    return device.type if ask is None else ask(device)


def free_memory(device: "torch.device") -> int | None:
    """Bytes that can still be had on a device, those that torch holds in reserve included; None where nobody knows.

    The CPU's are within the limit of this process's control group (a container's). MPS shares the memory of the CPU.
    """
    import torch

    if device.type == "cpu":
        return _free_memory_of_the_machine()
    module: Any = torch.get_device_module(device)
    if device.type == "mps":
        held = module.driver_allocated_memory() - module.current_allocated_memory()
        within_its_share = module.recommended_max_memory() - module.current_allocated_memory()
        return max(0, min(within_its_share, _free_memory_of_the_machine() + held))
    try:
        reserve = module.memory_reserved(device) - module.memory_allocated(device)
        return module.mem_get_info(device)[0] + reserve
    except (AttributeError, RuntimeError):  # no such query, or an XPU without a driver for it
        return None


def total_memory(device: "torch.device") -> int | None:
    """Bytes that an accelerator has; None where nobody knows."""
    import torch

    module: Any = torch.get_device_module(device)
    try:
        if device.type == "mps":
            return module.recommended_max_memory()
        return module.get_device_properties(device).total_memory
    except (AttributeError, RuntimeError):
        return None


def empty_cache(device: "torch.device") -> None:
    """Let torch give back what it holds in reserve on an accelerator."""
    import torch

    empty: Callable[[], None] | None = getattr(torch.get_device_module(device), "empty_cache", None)
    if empty is not None:
        empty()


def limit_threads() -> None:
    """Let torch, once it is imported, start no more threads than the container has processors.

    Without it, a container with 2 of 64 processors starts 64 threads, which wait for each other. A number of threads that the
    user set stays.
    """
    if (limit := _thread_limit()) is not None:
        os.environ.setdefault("OMP_NUM_THREADS", limit)


def threads_are_given() -> bool:
    """Whether the user, and not `limit_threads`, set the number of threads."""
    return os.environ.get("OMP_NUM_THREADS") not in (None, _thread_limit())


def _thread_limit() -> str | None:
    """The processors of a container that has fewer than the machine, else None."""
    processors = available_processors()
    return str(processors) if processors < (os.cpu_count() or 1) else None


def available_processors(root: Path = Path("/")) -> int:
    """Processors that this process can use at a time: of its affinity, and of its control group's quota, rounded up.

    Args:
        root: where /proc and /sys are.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    most = len(affinity(0)) if affinity else os.cpu_count() or 1
    for folder in _groups("", root):  # version 2
        if (text := _text(folder / "cpu.max")) is not None:
            quota, _, period = text.partition(" ")
            if quota != "max":
                most = min(most, math.ceil(int(quota) / int(period)))
    for folder in _groups("cpu", root):  # version 1
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and int(quota) > 0:
            most = min(most, math.ceil(int(quota) / int(period)))
    return max(1, most)


def _free_memory_of_the_machine(root: Path = Path("/")) -> int:
    import psutil

    free = psutil.virtual_memory().available
    for controller, limit, use, droppable in _BYTES_OF_A_GROUP:
        for folder in _groups(controller, root):
            most, used = _text(folder / limit), _text(folder / use)
            if most is None or used is None or most == "max":
                continue
            pairs = (line.split() for line in (_text(folder / "memory.stat") or "").splitlines())
            cache = next(
                (int(value) for key, value in pairs if key == droppable), 0
            )  # of files read: given up on demand
            free = min(free, int(most) - int(used) + cache)
    return max(0, free)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folder of this process's control group, and those of the groups around it, whose limits hold too.

    Args:
        controller: of version 1; "" is version 2.
    """
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        # A container sees its own group as the root of the mount, though version 1 still names it as the host does.
        mount = root / "sys/fs/cgroup" / controllers
        for top in {mount, root / "sys/fs/cgroup" / controller}:
            parts = [part for part in path.split("/") if part not in ("", "..")]
            yield from (top.joinpath(*parts[:length]) for length in range(len(parts) + 1))


def _text(file: Path) -> str | None:
    """Of a file of the system; None if there is none."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
