"""A quick start for the verbs that upscale: without what diffusers imports only because it is installed."""

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samdiffsr.sampling.upscaler import Upscaler

# torch's compiler takes a third of the start. diffusers marks its attention blocks for it, which our networks do not have.
UNUSED = ("torch._dynamo", "accelerate")


def load_quickly(model: str, device: str) -> "Upscaler":
    """As `load_upscaler`. For the command line alone: a program may want to compile models of diffusers later."""
    gc.disable()  # imports leave little garbage, and looking for it takes a sixth of them
    try:
        with absent(UNUSED):
            import samdiffsr.models.light
            import samdiffsr.sampling.upscaler  # noqa: F401 - all of diffusers that it and the networks use
        from samdiffsr.load import load_upscaler

        return load_upscaler(model, device)
    finally:
        gc.enable()


@contextlib.contextmanager
def absent(packages: Sequence[str]) -> Iterator[None]:
    """Let packages that nobody has imported yet look as if they were not installed; none once diffusers has looked for them."""
    too_late = "diffusers.utils.import_utils" in sys.modules
    hidden = [] if too_late else [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] - None, which stops an import
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)
