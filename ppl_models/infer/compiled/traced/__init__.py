"""A program as a graph of tensor operations: its trace, and whether both give the same numbers."""
