"""Training examples: photographs to shards, and aligned random crops of them."""

SCHEMA = 2  # version of a prepared folder
FORMULAS = "released"  # of every encoding but rope; folders that do not say so have maps by other formulas
MAX_SHIFT = 0.25  # LR pixels, between a photograph and its own LR image: who learns from more learns to blur
