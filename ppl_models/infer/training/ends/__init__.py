"""How a run ends: it no longer improves, or a number of it is not finite."""
