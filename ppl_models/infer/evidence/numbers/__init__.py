"""A log evidence as a number, and the difference of two of the same rows."""
