"""What can be descended: the evidence lower bound, the importance-weighted one, their sums."""
