"""Devices: which one is chosen, the sentence for one that does not work, and memory and processors within a container's limits.

torch and psutil are replaced here and there by what they would answer on other machines; our own code never is.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from samdiffsr.devices import (
    _free_memory_of_the_machine,
    available_processors,
    device_name,
    empty_cache,
    find_device,
    free_memory,
    limit_threads,
    threads_are_given,
    total_memory,
)
from samdiffsr.errors import ConfigError

GIB = 2**30


def pretend(monkeypatch: pytest.MonkeyPatch, kind: str, count: int = 1, **module: object) -> None:
    """Let torch say that it has accelerators of a kind, whose torch.<kind> is `module`."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(**module))


def compute_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors of any device lie on the CPU, so that kernels of accelerators that are not here work."""
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))


# --- choosing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["tpu", "cpu:x", "meta", "", "cuda:99", "cpu:1"])
def test_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{device}' is not available here; use 'auto' or .*cpu\."):
        find_device(device)


def test_devices_that_are() -> None:
    assert find_device("cpu") == torch.device("cpu")
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert found is not None and find_device("auto").type == found.type


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_auto_takes_the_accelerator(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    pretend(monkeypatch, kind, 2)
    compute_on_cpu(monkeypatch)
    assert find_device("auto") == torch.device(kind)
    assert find_device("cpu") == torch.device("cpu")
    assert find_device(f"{kind}:1") == torch.device(kind, 1)
    with pytest.raises(ConfigError, match=rf"'{kind}:2' is not available here; use 'auto' or {kind}, cpu\."):
        find_device(f"{kind}:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_an_accelerator_that_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """This torch cannot compute on CUDA, whatever it says of the devices."""
    pretend(monkeypatch, "cuda")
    with pytest.raises(ConfigError) as caught:
        find_device("auto")
    message = str(caught.value)
    assert message.startswith(f"The device 'cuda' is here, but PyTorch {torch.__version__} cannot compute on it (")
    assert message.endswith("; install a PyTorch that is built for it, or use the device 'cpu'.")
    assert "\n" not in message


def test_a_kernel_that_fails_later_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU older than the build of torch holds tensors, but runs no convolution."""

    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    pretend(monkeypatch, "cuda")
    compute_on_cpu(monkeypatch)
    monkeypatch.setattr(torch.nn.functional, "conv2d", refuse)
    with pytest.raises(ConfigError, match=r"\(CUDA error: no kernel image is available .* device\); install a PyTorch"):
        find_device("auto")


# --- memory -----------------------------------------------------------------------------------------------------------


def pretend_memory(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))


def test_memory_that_is_free_here() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What the driver has left, and what torch holds without using it."""
    numbers = {"mem_get_info": (3 * GIB, 8 * GIB), "memory_reserved": 2 * GIB, "memory_allocated": GIB}
    pretend(monkeypatch, kind, **{name: lambda device, value=value: value for name, value in numbers.items()})
    assert free_memory(torch.device(kind)) == 4 * GIB


def test_an_xpu_whose_driver_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> None:
        raise RuntimeError("The device does not support querying the available free memory.")

    pretend(monkeypatch, "xpu", mem_get_info=refuse, memory_reserved=lambda _: 0, memory_allocated=lambda _: 0)
    assert free_memory(torch.device("xpu")) is None


@pytest.mark.parametrize(("available", "expected"), [(32 * GIB, 9 * GIB), (2 * GIB, 3 * GIB)])
def test_free_memory_of_mps(monkeypatch: pytest.MonkeyPatch, available: int, expected: int) -> None:
    """Its share of the common memory, as far as other programs have left that."""
    numbers = {"recommended_max_memory": 12, "driver_allocated_memory": 4, "current_allocated_memory": 3}
    pretend(monkeypatch, "mps", **{name: lambda value=value: value * GIB for name, value in numbers.items()})
    pretend_memory(monkeypatch, available)
    assert free_memory(torch.device("mps")) == expected
    assert total_memory(torch.device("mps")) == 12 * GIB


def test_words_about_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []
    properties = SimpleNamespace(total_memory=8 * GIB)
    pretend(
        monkeypatch,
        "cuda",
        get_device_name=lambda device: "Accelerator 3000",
        get_device_properties=lambda device: properties,
        empty_cache=lambda: emptied.append(True),
    )
    device = torch.device("cuda")
    empty_cache(device)
    assert emptied == [True]
    assert (device_name(device), total_memory(device)) == ("Accelerator 3000", 8 * GIB)
    pretend(monkeypatch, "mps")
    empty_cache(torch.device("mps"))
    assert (device_name(torch.device("mps")), total_memory(torch.device("mps"))) == ("mps", None)


# --- containers -------------------------------------------------------------------------------------------------------


def machine(root: Path, group: str, **files: str) -> Path:
    """A root folder with /proc/self/cgroup and control files; "__" in a name stands for "/"."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


@pytest.fixture
def _many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


V1 = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/\n"


@pytest.mark.usefixtures("_many_processors")
@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),  # a container of version 2 sees its own group as the root
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "5000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/\n", {}, 64),  # no limit at the true root
        ("0::/a/b\n", {"a__cpu.max": "300000 100000", "a__b__cpu.max": "max 100000"}, 3),  # that of the group around
        (V1, {"cpu__cpu.cfs_quota_us": "250000", "cpu__cpu.cfs_period_us": "50000"}, 5),  # a container: the mount is its own
        (V1, {"cpu,cpuacct__docker__abc__cpu.cfs_quota_us": "100000",
              "cpu,cpuacct__docker__abc__cpu.cfs_period_us": "100000"}, 1),
        (V1, {"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"}, 64),
        ("", {}, 64),
    ],
)  # fmt: skip
def test_processors_of_a_container(tmp_path: Path, group: str, files: dict[str, str], expected: int) -> None:
    assert available_processors(machine(tmp_path, group, **files)) == expected


@pytest.mark.usefixtures("_many_processors")
def test_without_control_groups_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_processors(tmp_path / "macOS") == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert available_processors(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_processors(tmp_path) == 64


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/\n", {"memory.max": str(4 * GIB), "memory.current": str(3 * GIB)}, GIB),
        ("0::/\n", {"memory.max": str(4 * GIB), "memory.current": str(3 * GIB),
                    "memory.stat": f"anon 5\ninactive_file {2 * GIB}\nactive_file 7"}, 3 * GIB),  # files that were read
        ("0::/\n", {"memory.max": str(4 * GIB), "memory.current": str(5 * GIB)}, 0),
        ("0::/\n", {"memory.max": "max", "memory.current": str(3 * GIB)}, 6 * GIB),
        ("0::/\n", {"memory.max": str(90 * GIB), "memory.current": "0"}, 6 * GIB),
        ("0::/a/b\n", {"a__memory.max": str(2 * GIB), "a__memory.current": "0",
                       "a__b__memory.max": "max", "a__b__memory.current": "0"}, 2 * GIB),
        (V1, {"memory__memory.limit_in_bytes": str(5 * GIB), "memory__memory.usage_in_bytes": str(3 * GIB),
              "memory__memory.stat": f"total_inactive_file {GIB}"}, 3 * GIB),
        (V1, {"memory__memory.limit_in_bytes": "9223372036854771712", "memory__memory.usage_in_bytes": "7"}, 6 * GIB),
        ("", {}, 6 * GIB),
    ],
)  # fmt: skip
def test_memory_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, files: dict[str, str], expected: int
) -> None:
    pretend_memory(monkeypatch, 6 * GIB)
    assert _free_memory_of_the_machine(machine(tmp_path, group, **files)) == expected


def test_threads_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    here = available_processors()
    monkeypatch.setattr(os, "cpu_count", lambda: here + 62)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == str(here)
    assert not threads_are_given()  # so several processes still share the processors
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the user knows better
    limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert threads_are_given()


def test_without_a_limit_torch_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", available_processors)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    assert not threads_are_given()


def test_processes_share_the_processors_of_a_script_that_imports_torch_first(tmp_path: Path) -> None:
    """A spawned process runs the script's imports before anything else; two processes of all threads stop each other."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from samdiffsr.workers import in_processes\n"
        "def threads(_):\n"
        "    return torch.get_num_threads()\n"
        "if __name__ == '__main__':\n"
        "    print(*in_processes(threads, range(2), workers=2))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for given, expected in (
        ({}, max(1, available_processors() // 2)),
        ({"OMP_NUM_THREADS": "2"}, 2),
    ):
        done = subprocess.run(
            [sys.executable, script], env=environment | given, capture_output=True, text=True, check=True, timeout=100
        )
        assert done.stdout.split() == [str(expected)] * 2
