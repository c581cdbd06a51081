"""Draws from the posterior itself."""
