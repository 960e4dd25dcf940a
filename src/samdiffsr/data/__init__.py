"""Training examples: photographs to shards, and aligned random crops of them."""

SCHEMA = 2  # version of a prepared folder
MAX_SHIFT = 0.25  # LR pixels, between a photograph and its own LR image: who learns from more learns to blur
