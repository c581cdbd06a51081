"""Differences of the evidences of the same rows, row by row."""
