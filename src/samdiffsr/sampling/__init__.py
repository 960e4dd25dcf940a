"""The reverse process: from noise to a picture, in tiles, with a stock diffusers scheduler."""
