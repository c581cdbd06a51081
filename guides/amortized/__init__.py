"""Amortised guides: one network gives the posterior of every row.

    outputs: what they share: a network whose outputs are read as a distribution of a row
    normal: diagonal Gaussian
    multivariate: Gaussian with a full covariance, or one of low rank
    mixture: mixture of diagonal Gaussians, with draws that have gradients
    flow: normalising flow

All take the number of features and of latents first, and serve any model with one latent vector a
row. From the first on each has the ones before it as special cases, or nearly so.
"""

from guides.amortized.flow import AmortizedFlow
from guides.amortized.mixture import AmortizedMixture
from guides.amortized.multivariate import AmortizedLowRankNormal, AmortizedMultivariateNormal
from guides.amortized.normal import AmortizedNormal

__all__ = [
    "AmortizedFlow",
    "AmortizedLowRankNormal",
    "AmortizedMixture",
    "AmortizedMultivariateNormal",
    "AmortizedNormal",
]
