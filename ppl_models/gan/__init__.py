"""Rows out of a game of two networks."""
