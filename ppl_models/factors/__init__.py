"""Linear Gaussian models of a few factors.

Files:
    analysis: factor analysis, with noise of its own for each feature
    probabilistic_pca: with the same noise for all features
    pca: without noise, and without a density
    bayesian: priors, and the number of factors found
    moments: what a fit needs to know of complete rows
    likelihood: the noise that is best for them, by Newton's method
    em: steps where entries are missing
    rotation: loadings to read: varimax, and draws that are aligned
    checks: the numbers of factors, and the rows, that are refused
"""
