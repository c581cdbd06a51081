r"""Whether ranks are uniform: their distribution beside bands that it stays in as a whole.

.. math::
    K_i = \#\{s : r_s < i\} \sim \mathrm{Bin}(S, z_i), \quad z_i = \frac{i}{L + 1}, \qquad
    \gamma = 2 \min_i \min\{P(K \leq K_i), P(K \geq K_i)\}

is the least probability of a point of the empirical distribution of `S` ranks among `L` draws. The
p-value is the probability that uniform ranks have one as small: exact, by recursion over the
points, where other ways simulate it. Counts are those of a Poisson process given their total. Of
tiny ones there is a bound, the sum over all points.

Shapes: `S` ranks, each of 0, ..., L.

References:
    | Graphical test for discrete uniformity (Säilynoja, Bürkner & Vehtari, 2022)
    | https://doi.org/10.1007/s11222-022-10090-6
"""

from typing import Any, NamedTuple

import numpy as np

LAST = 1 - 1e-9  # a probability that is equal but for its last digits
DIGITS, SMALLEST = 1e-9, 1e-300


class Band(NamedTuple):
    """The counts between which those of ranks stay, at each of the `L` points."""

    lower: np.ndarray
    upper: np.ndarray


def counts_below(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """How many ranks are below 1, ..., L, of each column, `(L, *)`."""
    flat = ranks.reshape(len(ranks), -1)
    bins = np.stack([np.bincount(column, minlength=num_draws + 1) for column in flat.T], 1)
    return bins[:-1].cumsum(0).reshape(num_draws, *ranks.shape[1:])


def points(num_draws: int) -> np.ndarray:
    """Where the distribution is looked at, `(L,)`."""
    return np.arange(1, num_draws + 1) / (num_draws + 1)


def p_values(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """Returns the probability that uniform ranks look less so, of each column.

    Arguments:
        ranks: Whole numbers, `(S, *)`.
        num_draws: The largest that they may be, `L`.

    Example:
        >>> p_values(np.arange(100), 99).item(), p_values(np.zeros(100, int), 99).item() < 1e-100
        (1.0, True)
    """
    from scipy.stats import binom

    total, counts = len(ranks), counts_below(ranks, num_draws)
    at = points(num_draws).reshape(-1, *[1] * (counts.ndim - 1))
    tails = np.minimum(binom.cdf(counts, total, at), binom.sf(counts - 1, total, at)).min(0)
    return np.reshape([_p_value(tail, total, num_draws) for tail in np.ravel(tails)], tails.shape)


def _p_value(tail: float, total: int, num_draws: int) -> float:
    """The probability that a point has a tail as improbable."""
    most = min(1.0, max(2 * num_draws * tail, SMALLEST))  # of all points, as if they were apart
    if most < DIGITS:  # of which a difference from one has none
        return most
    return min(most, 1 - probability_inside(_beyond(tail, total, num_draws), total))


def band(num_simulations: int, num_draws: int, level: float) -> Band:
    """The narrowest band of equal probabilities in which uniform ranks stay with this one."""
    low, high = 0.0, 1 - level  # of a point: never more than that of all
    for _ in range(40):
        middle = (low + high) / 2
        found = _beyond(middle, num_simulations, num_draws)
        inside = probability_inside(found, num_simulations) >= level
        low, high = (middle, high) if inside else (low, middle)
    return _beyond(low, num_simulations, num_draws)


def _beyond(tail: float, total: int, num_draws: int) -> Band:
    """The counts whose tails are more probable than this."""
    from scipy.stats import binom

    at, least = points(num_draws), tail / LAST
    lower = np.maximum(binom.ppf(min(least, 1.0), total, at), 0)
    lower += binom.cdf(lower, total, at) <= least
    return Band(lower.astype(int), total - lower[::-1].astype(int))


def probability_inside(band: Band, total: int) -> float:
    """The probability that the counts of uniform ranks are in a band at all points."""
    from scipy.stats import poisson

    rate = total / (len(band.lower) + 1)
    steps = poisson.pmf(np.arange(total + 1), rate)
    weights, start = np.ones(1), 0
    for low, high in zip(*band, strict=True):
        low = max(low, start)
        if high < low:
            return 0.0
        weights = _convolved(weights, steps[: high - start + 1])[low - start : high - start + 1]
        start = low
    last: Any = weights @ steps[total - start - np.arange(len(weights))]
    return float(last / poisson.pmf(total, total))


def _convolved(weights: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Their convolution, as far as there are steps."""
    return np.convolve(weights, steps)[: len(steps)]
