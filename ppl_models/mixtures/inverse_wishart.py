r"""The inverse Wishart distribution over covariance matrices.

.. math::
    p(\Sigma) = \frac{|\Psi|^{\nu / 2}}{2^{\nu D / 2} \, \Gamma_D(\nu / 2)} \,
    |\Sigma|^{-(\nu + D + 1) / 2} \, e^{-\mathrm{tr}(\Psi \Sigma^{-1}) / 2}, \qquad
    \mathbb{E}[\Sigma] = \frac{\Psi}{\nu - D - 1}

Shapes: `D` features.

References:
    | Bayesian Data Analysis (Gelman et al., 2013), appendix A
    | http://www.stat.columbia.edu/~gelman/book/
"""

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Gamma, Transform, biject_to, constraints, transform_to

from ppl_models.linalg import cholesky


class InverseWishart(TorchDistribution):
    r"""The conjugate prior of the covariance matrix of a normal distribution.

    Arguments:
        df: The degrees of freedom, :math:`\nu > D - 1`.
        scale: The matrix :math:`\Psi`, with shape `(*, D, D)`.

    Example:
        >>> prior = InverseWishart(torch.tensor(4.0), torch.eye(2))
        >>> prior.sample((3,)).shape, prior.mean.diagonal()
        (torch.Size([3, 2, 2]), tensor([1., 1.]))
    """

    arg_constraints = {"df": constraints.positive, "scale": constraints.positive_definite}
    has_rsample = True

    def __init__(self, df: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(df.shape, scale.shape[:-2])
        self.df, self.scale = df.expand(shape), scale.expand(*shape, -1, -1)
        self.scale_tril = cholesky(self.scale)  # C, with C C^T = Psi
        super().__init__(shape, scale.shape[-2:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def support(self) -> constraints.Constraint:
        return covariance_matrix

    def expand(self, batch_shape: Any, _instance: Any = None) -> "InverseWishart":
        shape = torch.Size(batch_shape)
        return InverseWishart(
            self.df.expand(shape), self.scale.expand(shape + self.event_shape), validate_args=False
        )

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        r"""Returns :math:`C B^{-\top} B^{-1} C^\top`, with `B` as in Bartlett's decomposition.

        That is lower triangular, standard normal beneath the diagonal, and the squares on the
        diagonal are chi-squared with :math:`\nu - i + 1` degrees of freedom.
        """
        features = self.event_shape[0]
        shape = torch.Size(sample_shape)
        df = self.df[..., None] - torch.arange(features, dtype=self.df.dtype, device=self.df.device)
        halves = torch.full_like(df, 0.5)  # `Chi2` has this number on the host
        squares = Gamma(df / 2, halves, validate_args=False).rsample(shape)  # (*, D)
        below = torch.randn(*squares.shape, features, dtype=df.dtype, device=df.device).tril(-1)
        bartlett = below + squares.sqrt().diag_embed()  # B
        root = torch.linalg.solve_triangular(
            bartlett, self.scale_tril.mT.expand_as(bartlett), upper=False
        )
        return root.mT @ root

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        features = self.event_shape[0]
        chol = cholesky(value)
        root = torch.linalg.solve_triangular(
            chol, self.scale_tril.expand(*value.shape[:-2], -1, -1), upper=False
        )
        trace = root.square().sum((-2, -1))  # of Psi Sigma^-1
        return (
            -log_normaliser(self.df, self.scale_tril)
            - (self.df + features + 1) * log_diagonal(chol)
            - 0.5 * trace
        )

    @property
    def mean(self) -> Tensor:
        r"""The mean, which exists where :math:`\nu > D + 1`."""
        excess = (self.df - self.event_shape[0] - 1)[..., None, None]
        return torch.where(excess > 0, self.scale / excess, math.inf)


def log_normaliser(df: Tensor, scale_tril: Tensor) -> Tensor:
    r"""Returns the logarithm of what the density is divided by.

    .. math:: \frac{\nu D}{2} \log 2 + \log \Gamma_D(\nu / 2) - \frac{\nu}{2} \log |\Psi|
    """
    features = scale_tril.shape[-1]
    return (
        0.5 * df * features * math.log(2)
        + torch.special.multigammaln(df / 2, features)
        - df * log_diagonal(scale_tril)
    )


def log_diagonal(triangular: Tensor) -> Tensor:
    """The log-determinant of triangular matrices, half of that of their squares."""
    return triangular.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class _CovarianceMatrix(type(constraints.positive_definite)):  # type: ignore[misc]
    """Positive definite matrices, for which a bijection is registered here."""


covariance_matrix = _CovarianceMatrix()


class CovarianceTransform(Transform):
    r"""Maps a vector to :math:`L L^\top`, the diagonal of `L` on a logarithmic scale.

    With it autoguides and Hamiltonian Monte Carlo can move a covariance matrix; those of torch
    have no Jacobian.

    Example:
        >>> CovarianceTransform()(torch.zeros(3))
        tensor([[1., 0.],
                [0., 1.]])
    """

    domain = constraints.real_vector
    codomain = covariance_matrix
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CovarianceTransform)

    def _triangular(self, x: Tensor) -> Tensor:
        features = self.forward_shape(x.shape)[-1]
        i, j = torch.tril_indices(features, features, device=x.device)
        matrix = x.new_zeros(*x.shape[:-1], features, features)
        matrix[..., i, j] = torch.where(i == j, x.exp(), x)
        return matrix

    def _call(self, x: Tensor) -> Tensor:
        triangular = self._triangular(x)
        return triangular @ triangular.mT

    def _inverse(self, y: Tensor) -> Tensor:
        triangular = cholesky(y)
        i, j = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        x = triangular[..., i, j]
        return torch.where(i == j, x.abs().log(), x)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Returns :math:`D \log 2 + \sum_i (D - i + 2) \log L_{ii}`."""
        features = y.shape[-1]
        row = torch.arange(features, device=x.device)
        logs = x[..., row * (row + 3) // 2]  # the diagonal, where row n ends
        return features * math.log(2) + (logs * (features + 1 - row)).sum(-1)

    def forward_shape(self, shape: Any) -> torch.Size:
        features = (math.isqrt(8 * shape[-1] + 1) - 1) // 2
        return torch.Size([*shape[:-1], features, features])

    def inverse_shape(self, shape: Any) -> torch.Size:
        return torch.Size([*shape[:-2], shape[-1] * (shape[-1] + 1) // 2])


@transform_to.register(_CovarianceMatrix)
@biject_to.register(_CovarianceMatrix)
def _(constraint: constraints.Constraint) -> Transform:
    return CovarianceTransform()
