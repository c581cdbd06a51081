"""Draws of the latents, and both densities there: evidence, predictions, the bridge to ArviZ."""
