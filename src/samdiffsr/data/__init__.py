"""Training examples: prepared folders, and aligned random crops of them."""

SCHEMA = 1  # version of a prepared folder
SCALE = 4  # HR pixels per LR pixel
