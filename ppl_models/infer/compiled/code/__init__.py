"""A graph of operations as machine code, and what is done to the graph before."""
