"""Mixtures of Gaussians, by maximum likelihood and with priors, and of Poissons.

Files:
    gaussian: the model, fitted by EM
    em/: the steps of EM, and where they begin
    imputation: what rows lack, given the rest of them
    kmeans: clusters, where a fit starts from
    poisson: mixtures of counts, in one file: what a new model adds
    bayesian: priors over weights, centers and covariances
    conjugate: what is known of these in closed form
    inverse_wishart: the distribution of a covariance matrix
    mean_field: the approximate posterior, by coordinate ascent
    relabel: labels that mean the same in every draw
    components: which components the rows use, by draws
"""
