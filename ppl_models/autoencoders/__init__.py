"""Codes of rows, and variational autoencoders, whose codes are latents."""
