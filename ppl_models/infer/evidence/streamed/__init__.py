"""Evidence of rows that are read a part at a time."""
