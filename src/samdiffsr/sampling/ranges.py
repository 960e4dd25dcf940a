"""The ranges of what a model samples with. Pipeline, settings and evaluation check them here; no torch is needed."""

from typing import Literal, get_args

from samdiffsr.errors import Range

CLEAN = Range("clean", 0, 1)
DETAIL = Range("detail", 0, 2)
SEED = Range("seed", 0, 2**63 - 1, whole=True)
STEPS = Range("steps", 1, whole=True)
TILE = Range("tile", 0, whole=True)
Precision = Literal["auto", "float32", "bfloat16", "float16"]
PRECISIONS = get_args(Precision)
