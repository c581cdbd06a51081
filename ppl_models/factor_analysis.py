r"""Factor analysis and probabilistic PCA: linear Gaussian models.

.. math::
    z_n &\sim \mathcal{N}(0, I) \\
    x_n \mid z_n &\sim \mathcal{N}(\mu + W z_n, \Psi)

with :math:`\Psi = \mathrm{diag}(\sigma^2)` in factor analysis, where each feature has noise of
its own, and :math:`\Psi = \sigma^2 I` in probabilistic PCA.

Shapes: `B` rows, `D` features, `K` factors.

References:
    | EM Algorithms for ML Factor Analysis (Rubin & Thayer, 1982)
    | https://doi.org/10.1007/BF02293851
    | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
    | https://doi.org/10.1111/1467-9868.00196
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.plates import check_rows, data_plate


class FactorAnalysis(nn.Module):
    r"""Factor analysis, with latent site `z`.

    Its evidence and its posterior are both Gaussian, which makes it the model to check a
    new guide against.

    Arguments:
        num_features: The length of a row, `D`.
        num_factors: The length of its latent vector, `K`.

    Example:
        >>> model = FactorAnalysis(num_features=5, num_factors=2)
        >>> x = model(size=7)
        >>> model.evidence().log_prob(x).shape, model.posterior(x).mean.shape
        (torch.Size([7]), torch.Size([7, 2]))
    """

    def __init__(self, num_features: int, num_factors: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(num_features))  # mu, (D,)
        self.loadings = nn.Parameter(torch.randn(num_features, num_factors))  # W, (D, K)
        self.log_scale = nn.Parameter(torch.zeros(num_features))  # log sigma, (D,)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        check_rows(x, len(self.loc), type(self).__name__)
        prior = dist.Normal(self.loadings.new_zeros(self.loadings.shape[1]), 1.0)

        with data_plate(x, size):
            z = pyro.sample("z", prior.to_event(1))  # (B, K)
            mean = self.loc + z @ self.loadings.T  # (B, D)
            return pyro.sample("x", dist.Normal(mean, self.log_scale.exp()).to_event(1), obs=x)

    def evidence(self) -> dist.LowRankMultivariateNormal:
        r"""Returns :math:`p(x) = \mathcal{N}(\mu, W W^\top + \Psi)`, over rows of shape `(D,)`."""
        variance = (2 * self.log_scale).exp().expand_as(self.loc)  # (D,)
        return dist.LowRankMultivariateNormal(self.loc, self.loadings, variance)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        r"""Returns :math:`p(z \mid x) = \mathcal{N}(M^{-1} W^\top \Psi^{-1} (x - \mu), M^{-1})`.

        :math:`M = I + W^\top \Psi^{-1} W` is the precision, the same for every row. For `x` of
        shape `(B, D)` the distribution has batch shape `(B,)` and event shape `(K,)`.
        """
        check_rows(x, len(self.loc), type(self).__name__)
        scale = self.log_scale.exp().expand_as(self.loc)  # (D,)
        whitened = self.loadings / scale[:, None]  # Psi^(-1/2) W, (D, K)
        identity = torch.eye(whitened.shape[1], dtype=x.dtype, device=x.device)
        precision = identity + whitened.T @ whitened  # M, (K, K)
        moment = ((x - self.loc) / scale) @ whitened  # (B, K)
        mean = torch.linalg.solve(precision, moment.T).T  # (B, K)
        return dist.MultivariateNormal(mean, precision_matrix=precision)


class ProbabilisticPCA(FactorAnalysis):
    r"""Factor analysis whose noise is the same for every feature, with latent site `z`.

    Its maximum-likelihood loadings span the principal subspace and have a closed form.

    Arguments:
        num_features: The length of a row, `D`.
        num_factors: The length of its latent vector, `K`, less than `D`.

    Example:
        >>> x = torch.randn(50, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        >>> model = ProbabilisticPCA(num_features=6, num_factors=2).maximum_likelihood(x)
        >>> model.evidence().log_prob(x).mean() > -12
        tensor(True)
    """

    def __init__(self, num_features: int, num_factors: int) -> None:
        if num_factors >= num_features:
            raise ValueError(
                f"ProbabilisticPCA: expected fewer factors than features, "
                f"got {num_factors} of {num_features}."
            )
        super().__init__(num_features, num_factors)
        self.log_scale = nn.Parameter(torch.zeros(()))  # log sigma

    @torch.no_grad()
    def maximum_likelihood(self, x: Tensor) -> "ProbabilisticPCA":
        r"""Sets the parameters to the maximum of the likelihood of `x`, and returns the model.

        With the eigenvalues :math:`\lambda_d` and eigenvectors :math:`u_d` of the covariance of
        `x`, largest first:

        .. math::
            \mu = \bar{x}, \qquad \sigma^2 = \frac{1}{D - K} \sum_{d > K} \lambda_d, \qquad
            w_k = \sqrt{\lambda_k - \sigma^2} \, u_k

        Raises:
            ValueError: If `x` is not finite, has fewer than two rows, or lies in a subspace of
                `K` dimensions: the likelihood then grows without bound.
        """
        check_rows(x, len(self.loc), "ProbabilisticPCA")
        if len(x) < 2 or not x.isfinite().all():
            raise ValueError(
                f"ProbabilisticPCA: expected at least two rows of finite numbers, got {len(x)} "
                f"rows, {int((~x.isfinite()).any(1).sum())} of them not finite."
            )
        num_factors = self.loadings.shape[1]
        data = x.double()
        covariance = torch.cov(data.T, correction=0)  # (D, D)
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        noise = values[num_factors:].mean()  # sigma^2
        if noise <= 1e-12 * values[0] or values[0] == 0:
            raise ValueError(
                f"ProbabilisticPCA: the rows lie in a subspace of {num_factors} dimensions, "
                f"where the likelihood has no maximum. Try fewer factors than {num_factors}, "
                f"or more rows than {len(x)}."
            )
        self.loc.copy_(data.mean(0))
        scale = (values[:num_factors] - noise).sqrt()
        self.loadings.copy_(vectors[:, :num_factors] * scale)
        self.log_scale.copy_(noise.log() / 2)
        return self
