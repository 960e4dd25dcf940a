"""Diffusion image super-resolution x4 with structure-modulated noise, after SAM-DiffSR (arXiv 2402.17133).

Public names are imported on first use: `import samdiffsr` alone loads neither torch nor diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "ConditionalUNet": "samdiffsr.models.unet",
    "LightDenoiser": "samdiffsr.models.light",
    "LightEncoder": "samdiffsr.models.light",
    "ModulatedProcess": "samdiffsr.diffusion.process",
    "NoiseSchedule": "samdiffsr.diffusion.schedule",
    "RRDBEncoder": "samdiffsr.models.encoder",
    "SamDiffSRError": "samdiffsr.errors",
    "SamDiffSRPipeline": "samdiffsr.pipeline",
    "imresize": "samdiffsr.resize",
    "imresize_tensor": "samdiffsr.resize",
    "load_released": "samdiffsr.released",
    "structure_map": "samdiffsr.structure",
}
# diffusers loads a component from the module that model_index.json names, and looks there for its base class too.
_BASE = {"ModelMixin": "diffusers"}
__all__ = [*sorted(_HOME), "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from samdiffsr.diffusion.process import ModulatedProcess as ModulatedProcess
    from samdiffsr.diffusion.schedule import NoiseSchedule as NoiseSchedule
    from samdiffsr.errors import SamDiffSRError as SamDiffSRError
    from samdiffsr.models.encoder import RRDBEncoder as RRDBEncoder
    from samdiffsr.models.light import LightDenoiser as LightDenoiser
    from samdiffsr.models.light import LightEncoder as LightEncoder
    from samdiffsr.models.unet import ConditionalUNet as ConditionalUNet
    from samdiffsr.pipeline import SamDiffSRPipeline as SamDiffSRPipeline
    from samdiffsr.released import load_released as load_released
    from samdiffsr.resize import imresize as imresize
    from samdiffsr.resize import imresize_tensor as imresize_tensor
    from samdiffsr.structure import structure_map as structure_map


def __getattr__(name: str) -> object:
    home = _HOME.get(name) or _BASE.get(name)
    if home is None:
        raise AttributeError(f"module 'samdiffsr' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
