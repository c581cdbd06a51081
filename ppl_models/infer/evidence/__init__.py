"""Draws of the latents, and both densities there: evidence, imputation, the bridge to ArviZ."""
