"""From an objective and rows to a fit: the one loop, its batches, files and progress."""
