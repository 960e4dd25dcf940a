"""How the command line starts: without the slow imports that its verbs do not use."""

import gc
import subprocess
import sys

CODE = """
import sys
import torch
from samdiffsr.cli.start import load_quickly
upscaler = load_quickly("default", "cpu")
slow = {"torch._dynamo", "sympy", "scipy", "accelerate", "diffusers.pipelines"}
if torch.__version__.startswith("2.6."):
    slow.discard("sympy")  # it uses it itself
print(sorted(slow & sys.modules.keys()))
import torch._dynamo, accelerate
print(upscaler.device, torch._dynamo.__name__, accelerate.__name__)
"""


def test_a_model_is_loaded_without_a_compiler_and_without_a_pipeline():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "cpu torch._dynamo accelerate"]  # hidden only meanwhile


def test_the_garbage_collector_works_again_after_a_failure():
    from samdiffsr.cli.start import load_quickly
    from samdiffsr.errors import CheckpointError

    try:
        load_quickly("nowhere", "cpu")
    except CheckpointError:
        assert gc.isenabled()
    else:
        raise AssertionError("a model that does not exist was loaded")
