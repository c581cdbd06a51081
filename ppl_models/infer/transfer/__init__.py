"""What was learned before, taken along: parameters by their names, and beliefs as priors."""
