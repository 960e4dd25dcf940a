"""The number type of the networks' convolutions while sampling. Noise, scheduler, base and sum stay as the weights are."""

import contextlib
from collections.abc import Iterator

import torch


def autocast_type(precision: str, device: torch.device, *, repeats_released: bool = False) -> torch.dtype | None:
    """The type that a precision of `samdiffsr.sampling.ranges.PRECISIONS` means on a device; None for that of the weights.

    "auto" asks what the processor is, never how fast it is today: the same machine always takes the same type.

    Args:
        repeats_released: the pipeline repeats the released code to the digit, so "auto" changes nothing.
    """
    if precision == "auto":
        return None if repeats_released else _native(device)
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def is_emulated(precision: str, device: torch.device) -> bool:
    """Whether a CPU has no instructions for the type, so that convolutions in it take about ten times as long (docs/log.md)."""
    kind = autocast_type(precision, device)
    return device.type == "cpu" and kind is not None and kind != _native(device)


def type_name(found: torch.dtype | None) -> str:
    """As users know it."""
    return "float32" if found is None else str(found).removeprefix("torch.")


def _native(device: torch.device) -> torch.dtype | None:
    """The short type that a device computes faster than float32; None for one of which nobody has measured it."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else None
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    # These queries are private in torch; one without them computes in float32.
    queries = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return torch.bfloat16 if any(query is not None and query() for query in queries) else None


@contextlib.contextmanager
def whole_picture(device: torch.device) -> Iterator[None]:
    """Around one picture: torch keeps the converted weights until the outermost autocast, here this one, ends."""
    can = torch.amp.is_autocast_available(device.type)
    with torch.autocast(device.type, enabled=False) if can else contextlib.nullcontext():
        yield


def networks_in(kind: torch.dtype | None, device: torch.device) -> contextlib.AbstractContextManager:
    """Around the networks alone."""
    return contextlib.nullcontext() if kind is None else torch.autocast(device.type, kind)
