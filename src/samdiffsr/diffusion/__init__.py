"""The modulated diffusion process: pure mathematics over tensors and a frozen schedule; it knows no network."""
