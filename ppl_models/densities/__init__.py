"""Densities from counts."""
