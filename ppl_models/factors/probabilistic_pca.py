r"""Probabilistic PCA: factor analysis whose noise is the same for every feature.

.. math::
    z_n &\sim \mathcal{N}(0, I) \\
    x_n \mid z_n &\sim \mathcal{N}(\mu + W z_n, \sigma^2 I)

Shapes: `B` rows, `D` features, `K` factors.

References:
    | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
    | https://doi.org/10.1111/1467-9868.00196
"""

import torch
from torch import Tensor, nn

from ppl_models.factors.analysis import FactorAnalysis
from ppl_models.factors.moments import Moments


class ProbabilisticPCA(FactorAnalysis):
    r"""Factor analysis whose noise is the same for every feature, with latent site `z`.

    Its maximum likelihood has a closed form. With the eigenvalues :math:`\lambda_d` and
    eigenvectors :math:`u_d` of the covariance of the rows (over `N`, not `N - 1`), largest first:

    .. math::
        \mu = \bar{x}, \qquad \sigma^2 = \frac{1}{D - K} \sum_{d > K} \lambda_d, \qquad
        w_k = \sqrt{\lambda_k - \sigma^2} \, u_k

    Arguments:
        num_features: The length of a row, `D`.
        num_factors: The length of its latent vector, `K`, less than `D`.
        missing: What NaN in a row means: `"error"`, or `"marginalise"`.

    Example:
        >>> x = torch.randn(50, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        >>> model = ProbabilisticPCA(num_features=6, num_factors=2).maximum_likelihood(x)
        >>> model.evidence().log_prob(x).mean() > -12
        tensor(True)
    """

    def __init__(self, num_features: int, num_factors: int, missing: str = "error") -> None:
        if num_factors >= num_features:
            raise ValueError(
                f"ProbabilisticPCA: expected fewer factors than features, "
                f"got {num_factors} of {num_features}. Try PCA, which has no noise"
                + (f", or num_factors={num_features - 1}." if num_features > 1 else ".")
            )
        super().__init__(num_features, num_factors, missing)
        self.log_scale = nn.Parameter(torch.zeros(()))  # log sigma

    @property
    def noise_floor(self) -> float:
        """The least noise of a fit, as a part of the variance of the features."""
        return 1e-12  # the likelihood keeps shared noise from zero

    def _best_noise(self, found: Moments, restarts: int) -> Tensor:
        rest = found.values[: len(self.loc) - self.loadings.shape[1]]
        return rest.mean().expand_as(self.loc)
