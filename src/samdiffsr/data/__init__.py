"""Training examples: prepared folders, and aligned random crops of them."""

SCHEMA = 1  # version of a prepared folder
