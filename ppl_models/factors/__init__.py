"""Linear Gaussian models of a few factors: factor analysis, principal components, rotations."""
