r"""Bijections of real numbers to the supports of latents, those of torch and two that it lacks.

.. math::
    L = \mathrm{tril}(u), \quad L_{ii} = e^{u_{ii}}, \qquad
    \log \left| \det \frac{\partial L}{\partial u} \right| = \sum_i u_{ii}

for factors of Cholesky, and for positive definite matrices :math:`S = L L^\top`, too, with
:math:`D \log 2 + \sum_{i=1}^D (D - i + 1) \log L_{ii}` more.

Shapes: `D` rows of a matrix, `D (D + 1) / 2` real numbers.

References:
    | Stan Reference Manual, Constraint Transforms
    | https://mc-stan.org/docs/reference-manual/transforms.html
"""

import math

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import ComposeTransform, IndependentTransform

from ppl_models.infer.compiled.waits import from_triangle, to_triangle


def bijection(support: constraints.Constraint) -> Transform:
    """Returns the bijection to a support.

    Raises:
        NotImplementedError: If there is none.

    Example:
        >>> matrix = bijection(constraints.positive_definite)(torch.zeros(3))
        >>> matrix
        tensor([[1., 0.],
                [0., 1.]])
    """
    if isinstance(support, constraints.independent):
        inner = bijection(support.base_constraint)
        return IndependentTransform(inner, support.reinterpreted_batch_ndims)
    if support is constraints.lower_cholesky:
        return Factor()
    if support is constraints.positive_definite:
        return ComposeTransform([Factor(), Square()])
    return biject_to(support)


class Factor(Transform):
    """Real numbers to lower triangular matrices with a positive diagonal."""

    domain = constraints.real_vector
    codomain = constraints.lower_cholesky
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        matrix = to_triangle(x)
        return matrix.tril(-1) + matrix.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def _inverse(self, y: Tensor) -> Tensor:
        logs = y.diagonal(dim1=-2, dim2=-1).log()
        return from_triangle(y.tril(-1) + logs.diag_embed())

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return y.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size([*shape[:-1], *[(math.isqrt(8 * shape[-1] + 1) - 1) // 2] * 2])

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size([*shape[:-2], shape[-1] * (shape[-1] + 1) // 2])


class Square(Transform):
    """Factors to the matrices of which they are the factors."""

    domain = constraints.lower_cholesky
    codomain = constraints.positive_definite
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return x @ x.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.linalg.cholesky(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        size = x.shape[-1]
        powers = torch.arange(size, 0, -1, dtype=x.dtype, device=x.device)
        logs = x.diagonal(dim1=-2, dim2=-1).log()
        return size * math.log(2) + (powers * logs).sum(-1)
