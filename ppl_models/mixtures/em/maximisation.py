r"""The maximisation step of Gaussian mixtures, with a floor under the covariances.

With the sums :math:`N_k = \sum_n r_{nk}` over the responsibilities,

.. math::
    \pi_k = \frac{N_k}{N}, \qquad \mu_k = \frac{1}{N_k} \sum_n r_{nk} x_n, \qquad
    S_k = \frac{1}{N_k} \sum_n r_{nk} (x_n - \mu_k)(x_n - \mu_k)^\top

and :math:`\Sigma_k` is :math:`S_k` with the eigenvalues below the floor raised to it: the best of
all covariances without a smaller eigenvalue. So the step is exact under that constraint. Where
features have floors of their own, :math:`f_d`, the eigenvalues are those of
:math:`S_k / (f f^\top)`, and none is below 1: the units of a feature change nothing.

Shapes: `R` restarts, `K` components, `D` features, `F` floors: `D` or, for all alike, 1.

References:
    | Constrained Monotone EM Algorithms for Finite Mixture of Multivariate Gaussians
    | (Ingrassia & Rocci, 2007) https://doi.org/10.1016/j.csda.2006.10.011
"""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.mixtures.em.expectation import Statistics
from ppl_models.processes import ALONE, Processes
from ppl_models.row_weights import weight_of

CHUNK = 16_384  # rows that are in float64 at once
WHERE = "GaussianMixture"


class Maximum(NamedTuple):
    """The parameters that are best for some sums."""

    log_weights: Tensor  # (R, K)
    locs: Tensor  # (R, K, D)
    scale: Tensor  # Cholesky factors: full (R, K, D, D), tied (R, D, D); else (R, K, D or 1)


def maximisation(sums: Statistics, covariance: str, floor: Tensor) -> Maximum:
    """Returns the maximum-likelihood parameters for expected sums.

    Arguments:
        sums: What the expectation step gives.
        covariance: `"full"`, `"tied"`, `"diag"` or `"spherical"`.
        floor: The smallest standard deviation, `(R or 1, 1, F)`.

    Raises:
        ValueError: If a covariance is singular to rounding, the floor notwithstanding.
    """
    tiny = 10 * torch.finfo(sums.counts.dtype).tiny
    counts = sums.counts[..., None].clamp(min=tiny)  # (R, K, 1)
    mean = sums.first / counts  # from the center, (R, K, D)
    log_weights = (sums.counts + 1e-15).log().log_softmax(1)
    if covariance == "full":
        outer = mean[..., None] * mean[..., None, :]
        scale = floored_factor(sums.second / counts[..., None] - outer, floor)
    elif covariance == "tied":
        between = (sums.counts[..., None] * mean).mT @ mean
        scale = floored_factor((sums.second - between) / sums.rows, floor[:, 0])
    elif covariance == "diag":
        scale = (sums.second / counts - mean**2).maximum(floor**2).sqrt()
    else:
        total = sums.second[..., None] / counts - (mean**2).sum(2, keepdim=True)
        scale = (total / mean.shape[2]).maximum(floor**2).sqrt()
    return Maximum(log_weights, mean + sums.center, scale)


def floored_factor(covariance: Tensor, floor: Tensor) -> Tensor:
    """Returns the Cholesky factor of the best covariance, (*, D, D), above a floor (*, F)."""
    units = floor[..., None]
    return units * factor(covariance / (units * units.mT), 1.0)


def factor(covariance: Tensor, floor: float) -> Tensor:
    """Returns the Cholesky factor of a covariance whose eigenvalues are raised to the floor."""
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    if not torch.linalg.cholesky_ex(covariance - floor * identity).info.any():
        return torch.linalg.cholesky_ex(covariance).L
    values, vectors = torch.linalg.eigh(covariance)
    raised = (vectors * values.clamp(min=floor)[..., None, :]) @ vectors.mT
    needed = (values[..., :1] < floor)[..., None]
    result, info = torch.linalg.cholesky_ex(torch.where(needed, raised, covariance))
    if info.any():
        raise ValueError(
            "GaussianMixture: a covariance is singular to rounding. Try standardised data, "
            "(x - x.mean(0)) / x.std(0), or a larger min_scale."
        )
    return result


def moments(
    batches: Iterable[tuple[Tensor, Tensor | None]], here: Processes = ALONE
) -> tuple[Tensor, Tensor]:
    """Returns means and standard deviations of the features over all rows, `(D,)`, in float64.

    Entries that are NaN count nothing. A constant feature is given the root mean square of all.

    Arguments:
        batches: Rows, each with how many times they count, or None where all count alike.
        here: The processes that have the other rows.

    Example:
        >>> loc, scale = moments([(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), None)])
        >>> loc.tolist(), [round(s, 3) for s in scale.tolist()]
        ([2.0, 5.0], [1.0, 0.707])
    """
    full = (batch for batch in batches if len(batch[0]))
    with here.all_or_none(WHERE):
        some = list(itertools.islice(full, 1))
        center = _middle(some[0][0][:CHUNK].double()) if some else torch.zeros(0)
    center = next((c for c in here.gather(center) if len(c)), center)
    with here.all_or_none(WHERE):
        sums = _about(center, itertools.chain(some, full))
    counts, first, second = here.totals(*sums)
    mean = first / counts
    variance = (second / counts - mean**2).nan_to_num()
    return center + mean, variance.where(variance > 0, variance.mean()).sqrt()


def _about(
    center: Tensor, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> tuple[Tensor, Tensor, Tensor]:
    """How many entries each feature has, their sum and that of their squares, from a center."""
    counts, first, second = (torch.zeros_like(center) for _ in range(3))
    for batch, weight in batches:
        parts = [None] * -(-len(batch) // CHUNK) if weight is None else weight.split(CHUNK)
        for chunk, share in zip(batch.split(CHUNK), parts, strict=True):
            x = chunk.double()
            y = x - center
            total = _weighted(y, share)
            if total.isnan().any():  # entries are missing
                counts += _weighted((~x.isnan()).double(), share)
                y = y.nan_to_num()
                total = _weighted(y, share)
            else:
                counts += weight_of(y, share)
            first += total
            second += _weighted(y.square(), share)
    return counts, first, second


def _weighted(numbers: Tensor, weight: Tensor | None) -> Tensor:
    """The sum over rows, (D,)."""
    return numbers.sum(0) if weight is None else weight.double() @ numbers


def _middle(x: Tensor) -> Tensor:
    """Something like the mean of rows, (D,): of a constant column its entry, to the last digit."""
    mean = x[0] + (x - x[0]).mean(0)
    return x.nanmedian(0).values.nan_to_num() if mean.isnan().any() else mean
