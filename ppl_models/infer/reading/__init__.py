"""Rows that do not fit in memory: where they are read from, and what becomes of a batch."""
