r"""Coordinate ascent for matrix factorisation with normal noise, in closed form.

Given what is believed of the items, a user's ratings are a linear regression whose rows are not
certain: with :math:`\tilde{v}_i = (1, v_i)`,

.. math::
    A_u = S^{-1} + \frac{1}{\sigma^2} \sum_i \mathbb{E}[\tilde{v}_i \tilde{v}_i^\top], \qquad
    A_u m_u = \frac{1}{\sigma^2} \sum_i \mathbb{E}[\tilde{v}_i (y_{ui} - \mu - b_i)]

and the best normal distribution of the user's vector is :math:`\mathcal{N}(m_u, A_u^{-1})`; among
those without correlations it has the same mean, and the variances :math:`1 / \mathrm{diag}(A_u)`.
Items likewise. Then the covariances `S` of the priors, the mean rating and the noise are set to
their best. No step lowers the bound.

Shapes: `N` ratings, `M` owners (users or items), `F = K + 1` numbers of each, the bias first.

References:
    | Variational Bayesian Approach to Movie Rating Prediction (Lim & Teh, 2007)
    | https://www.cs.uic.edu/~liub/KDD-cup-2007/proceedings/variational-Lim.pdf
    | Bayesian Probabilistic Matrix Factorization (Salakhutdinov & Mnih, 2008), whose priors have
    | full covariances too, https://doi.org/10.1145/1390156.1390267
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ppl_models.recommender.ratings import total

NEAR = 0.1  # the standard deviation of numbers that nothing is known of yet


class Gaussians(NamedTuple):
    """What is believed of the vectors of users, or of items."""

    loc: Tensor  # (M, F)
    covariance: Tensor  # (M, F, F)

    @property
    def second(self) -> Tensor:
        """E[v v'], (M, F, F)."""
        return self.loc[:, :, None] * self.loc[:, None] + self.covariance

    def scaled(self, unit: Tensor, size: int) -> "Gaussians":
        """The same where ratings have other units, with further numbers, that are near zero."""
        scales = unit.sqrt().expand(self.loc.shape[1]).clone()  # of two that are multiplied
        scales[0] = unit
        loc, further = self.loc * scales, size - len(scales)
        covariance = self.covariance * scales[:, None] * scales
        covariance = F.pad(covariance, (0, further, 0, further))
        covariance.diagonal(dim1=-2, dim2=-1)[:, len(scales) :] = NEAR**2
        return Gaussians(F.pad(loc, (0, further)), covariance)


class Regressions(NamedTuple):
    """Sums over the ratings of each owner, in expectation over the vectors of the other side."""

    gram: Tensor  # of x x', x = (1, v), (M, F, F)
    cross: Tensor  # of x r, r = y - mu - b, (M, F)
    square: Tensor  # of r^2, over all owners, ()

    def residual(self, own: Gaussians) -> Tensor:
        """The sum of E[(r - x' w)^2] over all ratings, where owners have vectors `w`."""
        explained = 2 * (self.cross * own.loc).sum() - (self.gram * own.second).sum()
        return self.square - explained

    def error(self, own: Gaussians) -> Tensor:
        """The sum of E[r - x' w] over all ratings: x is 1 for the bias."""
        return (self.cross[:, 0] - (self.gram[:, 0] * own.loc).sum(1)).sum()

    def posterior(self, prior: Tensor, noise: Tensor, diagonal: bool) -> Gaussians:
        """The best normal distributions, for a prior covariance (F, F) and a noise variance."""
        root = torch.linalg.cholesky(self.precision(prior, noise))
        loc = torch.cholesky_solve(self.cross[..., None] / noise, root)[..., 0]
        if diagonal:
            return Gaussians(loc, (1 / root.square().sum(-1)).diag_embed())
        return Gaussians(loc, torch.cholesky_inverse(root))

    def precision(self, prior: Tensor, noise: Tensor) -> Tensor:
        """A, (M, F, F)."""
        return torch.cholesky_inverse(torch.linalg.cholesky(prior)) + self.gram / noise


def regressions(
    owners: Tensor, others: Tensor, rest: Tensor, of: Gaussians, num: int
) -> Regressions:
    """The regressions of `num` owners on the vectors of the others.

    Arguments:
        owners: Whose rating it is, `(N,)`: the user's, say.
        others: Of what, `(N,)`: the item.
        rest: The ratings less their mean, `(N,)`.
        of: What is believed of the others.
        num: The number of owners, `M`.
    """
    bias, second = of.loc[:, 0], of.second
    x = torch.cat([torch.ones_like(bias)[:, None], of.loc[:, 1:]], 1)  # E[x]
    gram = second.clone()  # E[x x']
    gram[:, 0], gram[:, :, 0] = x, x
    with_bias = torch.cat([bias[:, None], second[:, 0, 1:]], 1)  # E[x b]
    cross = total(x, others, owners, num, rest) - total(with_bias, others, owners, num)
    square = (rest - bias[others]).square().sum() + of.covariance[:, 0, 0][others].sum()
    return Regressions(total(gram, others, owners, num), cross, square)


def divergence(own: Gaussians, prior: Tensor) -> Tensor:
    """The sum of KL(q(v) || N(0, S)) over all owners."""
    root = torch.linalg.cholesky(prior)
    spread = (torch.cholesky_inverse(root) * own.second.sum(0)).sum()
    logdet = torch.linalg.cholesky(own.covariance).diagonal(dim1=-2, dim2=-1).log().sum()
    half = len(own.loc) * root.diagonal().log().sum() - logdet
    return half + (spread - own.loc.numel()) / 2


def log_density(residual: Tensor, noise: Tensor, count: int) -> Tensor:
    """The expected log-density of all ratings, by the sum of their squared residuals."""
    return -(count * (math.log(2 * math.pi) + noise.log()) + residual / noise) / 2


def spectral(
    x: Tensor, rest: Tensor, counts: tuple[int, int], num_factors: int
) -> tuple[Gaussians, Gaussians]:
    """Users and items to start from, by the singular vectors of what biases leave of ratings.

    Factors that there are no singular vectors for are zero, and stay so.
    """
    biases, left = _biases(x, rest, counts)
    users, items = x.unbind(1)
    found = torch.randn(counts[1], min(num_factors + 8, *counts)).to(rest)
    for _ in range(6):
        basis = torch.linalg.qr(total(found, items, users, counts[0], left)).Q
        found = total(basis, users, items, counts[1], left)
    of_items, values, mixed = torch.linalg.svd(found, full_matrices=False)
    of_users = basis @ mixed.T * (values / values[0].clamp(min=1e-12))
    scale = 0.3 * left.std(correction=0).sqrt()  # of a factor: two multiply to some ratings
    return tuple(  # type: ignore[return-value]
        _around(bias, vectors[:, :num_factors] * len(bias) ** 0.5 * scale, num_factors, scale)
        for bias, vectors in zip(biases, (of_users, of_items), strict=True)
    )


def _around(bias: Tensor, factors: Tensor, num_factors: int, scale: Tensor) -> Gaussians:
    padded = F.pad(factors, (0, num_factors - factors.shape[1]))
    loc = torch.cat([bias[:, None], padded], 1)
    covariance = scale.square() * torch.eye(num_factors + 1).to(loc)
    return Gaussians(loc, covariance.expand(len(loc), -1, -1))


def _biases(x: Tensor, rest: Tensor, counts: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
    """Means of users and items, shrunk as by 4 ratings of zero more, and what they leave."""
    biases = [rest.new_zeros(count) for count in counts]
    for side in (1, 0) * 4:
        own, other = x[:, side], x[:, 1 - side]
        left = rest - biases[1 - side][other]
        summed = torch.zeros_like(biases[side]).index_add(0, own, left)
        biases[side] = summed / (4 + torch.bincount(own, minlength=counts[side]))
    return biases, rest - biases[0][x[:, 0]] - biases[1][x[:, 1]]
