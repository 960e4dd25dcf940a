"""Measuring results: pixel and perceptual distances under stated protocols."""
