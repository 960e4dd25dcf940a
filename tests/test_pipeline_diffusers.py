"""The pipeline as a citizen of diffusers: offloading, callbacks, loading by the base class. On a CPU, as far as accelerate
allows: sequential offloading keeps weights nowhere between two uses, which shows every use that it does not know of."""

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import PipelineCallback
from diffusers.utils import dynamic_modules_utils

from samdiffsr import SamDiffSRError

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def result(pipe, **options):
    return pipe(IMAGE, generator=torch.Generator().manual_seed(0), output_type="np", **options).images


def test_model_cpu_offload(tiny_pipe):
    """Each network comes to the device before it is used, whichever of its methods is called first, and leaves it."""
    expected, moved = result(tiny_pipe), []
    tiny_pipe.enable_model_cpu_offload(device="cpu")
    for name in ("encoder", "denoiser"):
        hook = getattr(tiny_pipe, name)._hf_hook
        before = hook.pre_forward

        def pre_forward(module, *args, before=before, name=name, **kwargs):
            moved.append(name)
            return before(module, *args, **kwargs)

        hook.pre_forward = pre_forward
    np.testing.assert_array_equal(result(tiny_pipe), expected)
    assert moved[:2] == ["encoder", "denoiser"]  # encode() and condition(), before any forward()
    np.testing.assert_array_equal(result(tiny_pipe), expected)  # and again: the hooks were put back


def test_sequential_cpu_offload(tiny_pipe, monkeypatch):
    """diffusers numbers the device; a CPU with a number is another device than the CPU to accelerate."""
    plain = accelerate.cpu_offload
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, device, **more: plain(model, device.type, **more))
    expected = result(tiny_pipe)
    tiny_pipe.enable_sequential_cpu_offload(device="cpu")
    assert {parameter.device.type for parameter in tiny_pipe.denoiser.parameters()} == {"meta"}
    np.testing.assert_allclose(result(tiny_pipe), expected, atol=1e-6)


def test_a_callback_gets_what_it_asks_for(tiny_pipe):
    seen = []

    def keep(_pipe, _step, _timestep, values):
        seen.append(sorted(values))

    result(tiny_pipe, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=[])
    result(tiny_pipe, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["latents"])
    assert seen == [[], [], ["latents"], ["latents"]]
    with pytest.raises(
        SamDiffSRError, match="callback_on_step_end_tensor_inputs is 'masks', but must be one of 'latents'"
    ):
        result(tiny_pipe, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["masks"])


def test_a_callback_of_diffusers_brings_its_own_inputs(tiny_pipe):
    class Zero(PipelineCallback):
        tensor_inputs = ("latents",)

        def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):  # noqa: ARG002 - the names are diffusers'
            return {"latents": torch.zeros_like(callback_kwargs["latents"])}

    zeroed = result(tiny_pipe, callback_on_step_end=Zero(), callback_on_step_end_tensor_inputs=[])
    np.testing.assert_array_equal(zeroed, result(tiny_pipe, detail=0))


def test_the_base_class_loads_a_saved_folder(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    tiny_pipe.save_pretrained(tmp_path / "model")
    options = {"custom_pipeline": "pipeline", "trust_remote_code": True}
    loaded = DiffusionPipeline.from_pretrained(str(tmp_path / "model"), **options)
    assert type(loaded) is type(tiny_pipe)
    loaded.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(result(loaded), result(tiny_pipe))
