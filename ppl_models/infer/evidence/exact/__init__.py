"""What a model knows exactly, and whether that is what its program says."""
