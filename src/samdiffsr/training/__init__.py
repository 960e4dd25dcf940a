"""Two-stage training: the LR encoder, then the denoiser under the modulated process."""
