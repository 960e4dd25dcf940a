"""The sampler of a pipeline as the arithmetic that goes into ONNX files and their runner."""

from samdiffsr.errors import ConfigError, choose
from samdiffsr.export.run_onnx import Sampler
from samdiffsr.models.structure_head import takes_structure
from samdiffsr.pipeline import SamDiffSRPipeline

SAMPLERS = {"LCMScheduler": "lcm", "DDIMScheduler": "ddim", "DDPMScheduler": "ddpm"}
VARIANCES = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"}


def sampler_of(pipe: SamDiffSRPipeline) -> Sampler:
    """The pipeline's scheduler in our own arithmetic.

    Raises:
        ConfigError: the scheduler does not fit the model, there is none like it here, or the model estimates a structure map.
    """
    if pipe.denoiser.structure_head is not None or takes_structure(pipe.denoiser):
        raise ConfigError(
            "this model samples with a structure map of the whole picture, which an ONNX file does not estimate: train it with "
            "diffusion.structure_weight=0, and without diffusion.network.structure_input, to export it."
        )
    name = type(pipe.scheduler).__name__
    if name not in SAMPLERS:
        raise ConfigError(
            f"an ONNX file samples with lcm, ddim or ddpm, but the model has {name}: choose a --scheduler."
        )
    scheduler, target = pipe.scheduler.config, pipe.config["target"]
    if scheduler.get("thresholding"):
        raise ConfigError(f"an ONNX file knows no dynamic thresholding, but this {name} uses it; switch it off.")
    pipe.check(pipe.config["steps"])
    sampler = Sampler(
        name=SAMPLERS[name],
        alpha_bars=pipe.scheduler.alphas_cumprod.tolist(),
        last_alpha_bar=float(pipe.scheduler.final_alpha_cumprod) if name == "DDIMScheduler" else 1.0,
        predicts="v_prediction" if target == "velocity" else scheduler.prediction_type,
        clip=scheduler.clip_sample_range if scheduler.clip_sample else None,
        spacing=scheduler.timestep_spacing,
        offset=scheduler.steps_offset,
        variance=choose(scheduler.get("variance_type", "fixed_small"), VARIANCES, "variance_type"),
        original_steps=scheduler.get("original_inference_steps", scheduler.num_train_timesteps),
        time_scale=scheduler.get("timestep_scaling", 10.0),
        all_steps=target == "posterior_noise",
    )
    try:
        sampler.plan(pipe.config["steps"])
    except ValueError as error:
        raise ConfigError(f"{name} does not suit the model's own settings: {error}.") from error
    return sampler
