"""Training examples: photographs to shards, and aligned random crops of them."""

SCHEMA = 2  # version of a prepared folder
