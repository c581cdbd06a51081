r"""The likelihood of factor analysis as a function of the noise alone, and its maximum.

Given the noise :math:`\Psi`, the best loadings have a closed form. With the eigenvalues
:math:`\lambda_m` (largest first) and eigenvectors :math:`v_m` of
:math:`\Psi^{-1/2} S \Psi^{-1/2}`, where :math:`S` is the covariance of the rows,

.. math::
    W &= \Psi^{1/2} \, [\sqrt{\lambda_k - 1} \, v_k]_{k \le K} \\
    -\frac{1}{N} \log p(x \mid \Psi) &= \frac{1}{2} \Big[ D \log 2 \pi + \sum_d \log \psi_d
    + \sum_{k \le K} (\log \lambda_k + 1) + \sum_{m > K} \lambda_m \Big]

where only factors with :math:`\lambda_k > 1` count. What is left has the gradient
:math:`\frac{1}{2} \sum_{m > K} (1 - \lambda_m) \, v_{dm}^2` over :math:`\log \psi_d`, and a Hessian
in closed form too, so that Newton's method needs about ten steps.

The covariance enters as a root :math:`S = R^\top R`: where some noise is near zero, the singular
values of :math:`R \Psi^{-1/2}` keep digits that the eigenvalues lose. The matrices are small, and
NumPy takes two thirds of torch's time for such.

Shapes: `B` rows, `D` features, `K` factors, `M = D - K` other directions.

References:
    | Some Contributions to Maximum Likelihood Factor Analysis (Jöreskog, 1967)
    | https://doi.org/10.1007/BF02289658
    | A Rapidly Convergent Method for Maximum-Likelihood Factor Analysis (Clarke, 1970)
    | https://doi.org/10.1111/j.2044-8317.1970.tb00437.x
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from ppl_models.missing import MAX_NUMBERS, condition
from ppl_models.user_line import warn

RIDGE = 1e-3  # on correlations, for a start where they are singular
SMALL = 1e-4  # noise with which eigenvalues lose digits that singular values keep
LENGTHS = [3.0**-n for n in range(10)]  # of steps that are tried


def mean_log_evidence(root: Tensor, offset: Tensor, loadings: Tensor, noise: Tensor) -> Tensor:
    r"""Returns the mean log evidence of rows, in nats, at any parameters.

    Arguments:
        root: The root of their covariance, `(D, D)`.
        offset: Their mean, less that of the model, `(D,)`.
        loadings: `(D, K)`.
        noise: The variance of the noise, `(D,)`.
    """
    # The mean of a square is a sum over the rows of the root, and one for the offset.
    rows = torch.cat([root, offset[None]])
    nothing = torch.zeros_like(offset)
    none = condition(nothing[None], nothing, loadings, noise).log_prob
    return (condition(rows, nothing, loadings, noise).log_prob - none).sum() + none[0]


class Spectrum(NamedTuple):
    """The directions of whitened rows."""

    strong: ndarray  # lambda > 1 of the factors, (K,) or fewer
    factors: ndarray  # v, (D, K)
    weak: ndarray  # the other lambda, (M,)
    others: ndarray  # their v, (D, M)


def spectrum(root: ndarray, noise: ndarray, num_factors: int) -> Spectrum:
    """Returns the directions of rows over the noise, `(D,)`, strongest first."""
    whitened = root / np.sqrt(noise)
    if noise.min() < SMALL:
        _, scale, rows = np.linalg.svd(whitened)
        values, vectors = scale**2, rows.T
    else:  # in half the time
        values, vectors = np.linalg.eigh(whitened.T @ whitened)
        values, vectors = values[::-1], vectors[:, ::-1]
    kept = min(num_factors, np.count_nonzero(values > 1))
    return Spectrum(values[:kept], vectors[:, :kept], values[kept:], vectors[:, kept:])


def best_loadings(root: Tensor, noise: Tensor, num_factors: int) -> Tensor:
    """Returns the loadings of the largest evidence given the noise, `(D, K)`, strongest first."""
    found = spectrum(root.numpy(), noise.numpy(), num_factors)
    loadings = root.new_zeros(len(noise), num_factors)
    loadings[:, : len(found.strong)] = torch.from_numpy(found.factors * np.sqrt(found.strong - 1))
    return noise.sqrt()[:, None] * loadings


def with_signs(columns: Tensor) -> Tensor:
    """Returns columns with signs such that the largest entry of each, absolutely, is positive."""
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -columns, columns)


def _loss(log_noise: ndarray, found: Spectrum) -> float:
    """Minus the mean log evidence with the best loadings."""
    constant = len(log_noise) * math.log(2 * math.pi) + len(found.strong)
    return (constant + log_noise.sum() + np.log(found.strong).sum() + found.weak.sum()) / 2


def _hessian(found: Spectrum) -> ndarray:
    r"""The second derivatives of the loss over :math:`\log \psi`, (D, D).

    .. math::
        \frac{1}{2} \Big[ \sum_{m m'} \lambda_m \, (v_m v_m^\top) \circ (v_{m'} v_{m'}^\top)
        + \sum_{k m} \frac{(\lambda_k + \lambda_m)(1 - \lambda_m)}{\lambda_k - \lambda_m}
        (v_k v_k^\top) \circ (v_m v_m^\top) \Big]
    """
    strong, factors, weak, others = found
    total = ((others * weak) @ others.T) * (others @ others.T)
    at_once = max(1, MAX_NUMBERS // max(1, others.size))
    for start in range(0, len(strong), at_once):
        value, vectors = strong[start : start + at_once], factors[:, start : start + at_once]
        gap = np.maximum(value[:, None] - weak, 1e-9)  # zero where two directions are as strong
        weights = (value[:, None] + weak) * (1 - weak) / gap  # (K, M)
        pairs = (vectors[:, :, None] * others[:, None]).reshape(len(total), -1)  # (D, K M)
        total += (pairs * weights.ravel()) @ pairs.T
    return total / 2


def _solve(hessian: ndarray, slope: ndarray) -> ndarray:
    """Newton's step, or, where the loss is not convex, one with curvatures made positive."""
    from scipy.linalg import lapack

    _, newton, failed = lapack.dposv(hessian, slope)
    if not failed:
        return newton
    curvature, axes = np.linalg.eigh(hessian)
    along = (axes.T @ slope) / np.maximum(np.abs(curvature), 1e-10)
    return axes @ np.clip(along, -4, 4)


def start_noise(
    values: Tensor, vectors: Tensor, num_factors: int, num_starts: int = 1
) -> list[Tensor]:
    """Returns noise to start from, `(D,)` each.

    The first is Jöreskog's: what no other feature explains of each. The second is what principal
    components leave, the others are random.

    Arguments:
        values: The eigenvalues of the correlations, `(D,)`, smallest first.
        vectors: Their eigenvectors, as columns, `(D, D)`.
        num_factors: The number of factors, `K`.
        num_starts: How many to return.
    """
    inverse = vectors.square() @ (1 / (values + RIDGE))  # the diagonal, (D,)
    starts = [(1 - num_factors / (2 * len(values))) / inverse]
    if num_starts > 1:
        starts.append(1 - vectors[:, -num_factors:].square() @ values[-num_factors:])
    return starts + [torch.rand_like(values) for _ in range(num_starts - 2)]


def best_noise(
    root: Tensor, num_factors: int, floor: float, starts: list[Tensor], max_steps: int = 500
) -> Tensor:
    """Returns the noise of the largest likelihood, `(D,)`, between `floor` and 1.

    Arguments:
        root: Of a covariance whose diagonal is 1.
        num_factors: The number of factors, `K`.
        floor: The smallest variance of noise.
        starts: Where to begin; the best end is returned.
        max_steps: The most steps from each.
    """
    ends = [
        _newton(root.numpy(), num_factors, floor, start.clamp(floor, 1.0).log().numpy(), max_steps)
        for start in starts
    ]
    best = min(ends, key=lambda end: end.loss)
    if best.gain > 1e-8:
        warn(
            f"FactorAnalysis: Newton's method stopped where the log evidence could rise by another "
            f"{best.gain:.0e} nats per row. Try fewer factors than {num_factors}."
        )
    return torch.from_numpy(np.exp(best.place)).clamp(min=floor)


class End(NamedTuple):
    """Where a search came to."""

    place: ndarray  # log psi, (D,)
    loss: float
    gain: float  # of another step, where the loss is quadratic


def _newton(root: ndarray, num_factors: int, floor: float, place: ndarray, max_steps: int) -> End:
    """Newton's method on the logarithm, with curvatures made positive.

    Steps are shorter where the loss does not fall; features whose noise is held by a bound stay
    there.
    """
    lowest = math.log(floor)

    def at(place: ndarray) -> tuple[Spectrum, float]:
        found = spectrum(root, np.exp(place), num_factors)
        return found, _loss(place, found)

    found, loss = at(place)
    gain = math.inf
    for _ in range(max_steps):
        slope = found.others**2 @ (1 - found.weak) / 2  # (D,)
        free = np.flatnonzero((place > lowest) | (slope < 0))
        step = np.zeros_like(place)
        step[free] = _solve(_hessian(found)[free][:, free], slope[free])
        gain = float(step @ slope) / 2
        if gain < 1e-12:
            break
        for length in LENGTHS:
            there = np.clip(place - length * step, lowest, 0.0)
            next_found, value = at(there)
            if value < loss and value <= loss + 1e-4 * slope @ (there - place):
                place, found, loss = there, next_found, value
                break
        else:
            break
        if gain < 1e-9:  # near a maximum what is left is about its square
            break
    return End(place, loss, gain)
