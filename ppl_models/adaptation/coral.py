r"""Correlation alignment: the linear map that gives rows of the source the moments of the target.

.. math::
    T(x) = \mu_t + \Sigma_t^{1/2} \, \Sigma_s^{-1/2} \, (x - \mu_s)

Rows of the target are modelled as mapped rows of a Gaussian source,

.. math:: x_s \sim \mathcal{N}(\mu_s, \Sigma_s), \qquad x_t = b + A \, x_s

of which :math:`A = \Sigma_t^{1/2} \Sigma_s^{-1/2}` is one of many maximum likelihood estimates:
with any rotation of the whitened rows between them the moments are the same. So the evidence of
target rows rises by every such map, and says nothing of their labels: see `compare_labels`.

Shapes: `N` rows, `D` features.

References:
    | Return of Frustratingly Easy Domain Adaptation (Sun et al., 2016)
    | https://arxiv.org/abs/1511.05547
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_count, check_finite, check_float64, check_rows
from ppl_models.linalg import cholesky
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line

WHERE = "Coral"


class Coral(nn.Module):
    r"""Rows of the target as linearly mapped rows of a Gaussian source.

    `maximum_likelihood(source, target)` sets the map in closed form. Then `map(source)` are rows to
    train a classifier of the target on, with the labels of the source. A label is no argument of
    it: no target label is used, and none is taken.

    Arguments:
        num_features: The length of a row, `D`.
        ridge: What is added to the variances of both domains. Sun et al. add 1 to those of
            standardised features. Default: nothing, which needs covariances of full rank.

    Raises:
        ValueError: If a size is not positive, or the ridge is negative.

    Example:
        >>> source, target = torch.randn(500, 2), 3 * torch.randn(500, 2) + 1
        >>> coral = Coral(num_features=2).maximum_likelihood(source, target)
        >>> torch.allclose(coral.map(source).mean(0), target.mean(0), atol=1e-4)
        True
    """

    loc: Tensor
    covariance: Tensor

    __repr__ = in_a_line

    def __init__(self, num_features: int, ridge: float = 0.0) -> None:
        super().__init__()
        check_count(num_features=num_features)
        if not 0 <= ridge < float("inf"):
            raise ValueError(f"ridge: expected a number of 0 or more, got {ridge!r}. Try 0.1.")
        self.num_features, self.ridge = num_features, ridge
        self.weight = nn.Parameter(torch.eye(num_features))  # A, (D, D)
        self.bias = nn.Parameter(torch.zeros(num_features))  # b, (D,)
        self.register_buffer("loc", torch.zeros(num_features))  # mu_s, (D,)
        self.register_buffer("covariance", torch.eye(num_features))  # Sigma_s, (D, D)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, D)`, of `size` in all; without them draws `size` rows."""
        check_rows(x, self.num_features, WHERE, self)
        with data_plate(x, size):
            return pyro.sample("x", self.evidence(), obs=x)

    def evidence(self) -> dist.MultivariateNormal:
        r"""Returns :math:`p(x_t) = \mathcal{N}(b + A \mu_s, A \Sigma_s A^\top)`."""
        covariance = self.weight @ self.covariance @ self.weight.T
        return dist.MultivariateNormal(self.map(self.loc[None])[0], scale_tril=cholesky(covariance))

    def source(self) -> dist.MultivariateNormal:
        r"""Returns :math:`\mathcal{N}(\mu_s, \Sigma_s)`: the evidence without the map."""
        return dist.MultivariateNormal(self.loc, scale_tril=cholesky(self.covariance))

    def map(self, x: Tensor) -> Tensor:
        """Returns rows of the source as rows of the target, `(N, D)`."""
        check_rows(x, self.num_features, WHERE, self)
        return self.bias + x @ self.weight.T

    @torch.no_grad()
    def maximum_likelihood(self, source: Tensor, target: Tensor) -> "Coral":
        """Sets the map from rows of both domains, and returns the model.

        Arguments:
            source: Rows of the source, `(N, D)`.
            target: Rows of the target, `(M, D)`, without labels.

        Raises:
            TypeError: If they are no rows of floating-point numbers, or come with labels.
            ValueError: If they have other shapes, are not finite, or a covariance is singular.
        """
        moments = [
            self._moments(x, name) for x, name in ((source, "source"), (target, "target"))
        ]  # of both, in double precision
        (loc, covariance), (target_loc, target_covariance) = moments
        weight = _power(target_covariance, 0.5) @ _power(covariance, -0.5)
        self.loc.copy_(loc)
        self.covariance.copy_(covariance)
        self.weight.copy_(weight)
        self.bias.copy_(target_loc - weight @ loc)
        return self

    def _moments(self, x: Tensor, domain: str) -> tuple[Tensor, Tensor]:
        where = f"{WHERE}, {domain}"
        check_without_labels(x, where)
        check_rows(x, self.num_features, where)
        check_finite(x, where, minimum=2)
        check_float64(x, where)
        rows = x.double()
        covariance = torch.cov(rows.T, correction=0).view(self.num_features, -1)
        covariance = covariance + self.ridge * torch.eye(len(covariance)).to(covariance)
        values = torch.linalg.eigvalsh(covariance)
        rank = int((values > 1e-10 * values[-1]).sum())
        if rank < self.num_features:
            raise ValueError(
                f"{where}: expected a covariance of full rank to map by, got rank {rank} of "
                f"{self.num_features}: {len(x)} rows, in which features may be constant. Try "
                f"Coral({self.num_features}, ridge=0.1), or more rows."
            )
        return rows.mean(0), covariance


def check_without_labels(x: object, where: str) -> None:
    """Raises where labels are passed beside rows, to what would not look at them."""
    if isinstance(x, (tuple, list)):
        raise TypeError(
            f"{where}: expected rows alone, got {len(x)} things, such as labels beside them: no "
            f"label of the target is used here. Try x without y; where target labels are known, "
            f"DomainVAE learns from them."
        )


def _power(covariance: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric matrix, which is symmetric itself."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values**exponent) @ vectors.T
