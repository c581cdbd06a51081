r"""Expectation maximisation for factor analysis where entries are missing.

Given the observed entries :math:`o` of a row, its factors are Gaussian (`ppl_models.missing`).
Each feature is then regressed on the expected factors, over the rows that have it:

.. math::
    [w_d, \mu_d] = \Big( \sum_{n : d \in o_n} \mathbb{E}[\tilde z_n \tilde z_n^\top] \Big)^{-1}
    \sum_{n : d \in o_n} \mathbb{E}[\tilde z_n] \, x_{nd}, \qquad \tilde z = [z, 1]

and what is left is its noise. Rows with weights count as often in each sum. The parameters are
expanded by a mean and a covariance of the factors, which are estimated too and then moved into the
loadings: the same model, in fewer steps.

Shapes: `B` rows, `D` features, `K` factors, `J = K + 1`.

References:
    | EM Algorithms for ML Factor Analysis (Rubin & Thayer, 1982)
    | https://doi.org/10.1007/BF02293851
    | Parameter Expansion to Accelerate EM: The PX-EM Algorithm (Liu et al., 1998)
    | https://doi.org/10.1093/biomet/85.4.755
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.linalg import cholesky
from ppl_models.missing import MAX_NUMBERS, condition
from ppl_models.row_weights import weight_of


class Sums(NamedTuple):
    """Expected sums over rows, in float64; entries `x` are counted from the model's mean."""

    log_prob: Tensor  # of the observed entries, ()
    rows: float | Tensor  # by weight, as all that counts rows
    used: Tensor  # rows with an observed entry, ()
    factors: Tensor  # E[z~ z~^T], over the rows used, (J, J)
    products: Tensor  # E[z~ z~^T], over the rows that have d, (D, J, J)
    cross: Tensor  # E[z~] x_d, over the rows that have d, (D, J)
    squares: Tensor  # x_d^2, (D,)
    counts: Tensor  # rows that have d, (D,)

    def variance(self) -> Tensor:
        """That of each feature, over the rows that have it, (D,)."""
        return self.squares / self.counts - (self.cross[:, -1] / self.counts).square()


def expectation(
    batches: Iterable[tuple[Tensor, Tensor | None]], loc: Tensor, loadings: Tensor, noise: Tensor
) -> Sums:
    """Returns the expected sums of rows with NaN where entries are missing.

    Arguments:
        batches: Rows, with shape `(B, D)`, and their weights, `(B,)`, None for all alike.
        loc: The mean, `(D,)`.
        loadings: `(D, K)`.
        noise: The variance of the noise, `(D,)`.
    """
    features, factors = loadings.shape
    width = factors + 1
    log_prob = loc.new_zeros(())
    products = loc.new_zeros(features, width * width)
    cross, squares = loc.new_zeros(features, width), torch.zeros_like(loc)
    total, counts = loc.new_zeros(width, width), torch.zeros_like(loc)
    used = loc.new_zeros(())
    rows: float | Tensor = 0
    size = max(1, MAX_NUMBERS // max(features, width * width))
    for batch, weight in batches:
        rows += weight_of(batch, weight)
        every = loc.new_ones(len(batch)) if weight is None else weight.to(loc.dtype)
        for chunk, times in zip(batch.split(size), every.split(size), strict=True):
            x = chunk.to(loc.dtype)
            given = condition(x, loc, loadings, noise)
            mean = torch.nn.functional.pad(given.mean, (0, 1), value=1.0)  # E[z~], (B, J)
            second = mean[:, :, None] * mean[:, None]  # (B, J, J)
            second[:, :factors, :factors] += torch.cholesky_inverse(given.factor)
            observed = (~x.isnan()).to(loc.dtype) * times[:, None]
            seen = observed.amax(1)  # 0 for a row without any entry
            y = torch.where(x.isnan(), 0.0, x - loc)
            products.addmm_(observed.T, second.flatten(1))
            cross.addmm_((y * times[:, None]).T, mean)
            squares += times @ y.square()
            counts += observed.sum(0)
            total += torch.einsum("b,bij->ij", seen, second)
            log_prob += times @ given.log_prob
            used += seen.sum()
    shape = (features, width, width)
    return Sums(log_prob, rows, used, total, products.view(shape), cross, squares, counts)


def maximisation(sums: Sums, loc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean, the loadings, and what is left of the variance, (D,).

    Arguments:
        sums: The expected sums.
        loc: The mean that their entries are counted from.
    """
    weights = torch.linalg.solve(sums.products, sums.cross)  # (D, J)
    left = (sums.squares - (weights * sums.cross).sum(1)) / sums.counts
    loadings, shift = weights[:, :-1], weights[:, -1]
    # Factors with mean a and covariance R are standard ones, once W R^(1/2) takes the place of W.
    moments = sums.factors / sums.used
    center = moments[:-1, -1]
    spread = cholesky(moments[:-1, :-1] - center.outer(center))
    return loc + shift + loadings @ center, loadings @ spread, left
