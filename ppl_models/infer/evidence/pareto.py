r"""The tail of importance weights: Pareto's :math:`\hat{k}`, and the weights smoothed by it.

.. math::
    p(w - u \mid w > u) \approx \frac{1}{\sigma}
    \left( 1 + k \, \frac{w - u}{\sigma} \right)^{-1 / k - 1}

The largest `M` of `S` weights, those above `u`, follow a generalised Pareto distribution, whose
shape `k` says which moments the weights have: their variance where k < 0.5, their mean where k < 1.
Smoothed weights take the places of the expected order statistics of that fit. Both are ArviZ's, of
either generation, each of which takes another sign, and another `M`: here one,
:math:`M = \lceil \min(S / 5, 3 \sqrt{S}) \rceil`.

Of all weights the largest `M + 1` are kept, so that the memory does not grow with the draws.

References:
    | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
    | https://www.jmlr.org/papers/v25/19-556.html
"""

import math
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FEWEST = 5  # draws in a tail to which a shape can be fitted
FEWEST_DRAWS = 5 * FEWEST
LEAST = -700.0  # of the logarithm of a weight over the largest, whose `exp` is a number


def tail_length(num_samples: int) -> int:
    """How many of the draws are in the tail, `M`."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def threshold(num_samples: int) -> float:
    r"""Above which `k` so many draws are too few: :math:`\min(1 - 1 / \log_{10} S, 0.7)`."""
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


def check_enough(num_samples: int) -> None:
    """Raises where there are fewer draws than a tail takes."""
    if num_samples < FEWEST_DRAWS:
        raise ValueError(
            f"num_samples: expected at least {FEWEST_DRAWS} draws, as the shape of a tail is told "
            f"from a fifth of them, got {num_samples}. Try num_samples=1000."
        )


class Smoothed(NamedTuple):
    """The tails of rows after a fit.

    Attributes:
        k: The shape of each row, `(R,)`: 0 where weights are constant or the largest was drawn
            often, infinity where so few draws are above all others that there is nothing to fit.
        log_weights: The logarithms of the smoothed weights in falling order, `(M, R)`.
    """

    k: Tensor
    log_weights: Tensor


@dataclass(eq=False)
class Tails:
    """The largest weights of rows, of as many draws as come.

    Attributes:
        num_samples: The number of draws that will come, `S`.
        largest: The logarithms of the largest weights in falling order, `(M + 1, R)`.
        rounding: How far logarithms of equal weights may be apart, `(R,)`.
    """

    num_samples: int
    largest: Tensor
    rounding: Tensor

    @classmethod
    def of(cls, num_samples: int, rows: int) -> "Tails":
        """Those of no draws yet."""
        room = tail_length(num_samples) + 1
        largest = torch.full((room, rows), -math.inf, dtype=torch.float64)
        return cls(num_samples, largest, torch.zeros(rows, dtype=torch.float64))

    def add(self, rows: slice, log_weight: Tensor, rounding: Tensor) -> Tensor:
        """Takes the weights of some draws of some rows, `(K, R)`, and what their digits are.

        Returns:
            Which are now the largest, `(M + 1, R)`: of those that were, and then of the new ones.
        """
        together = torch.cat([self.largest[:, rows], log_weight])
        self.largest[:, rows], which = together.topk(len(self.largest), dim=0)
        self.rounding[rows] = torch.maximum(self.rounding[rows], rounding.amax(0))
        return which

    def of_rows(self, rows: slice) -> "Tails":
        """Those of some rows."""
        return Tails(self.num_samples, self.largest[:, rows], self.rounding[rows])

    def smoothed(self) -> Smoothed:
        """Fits the tails."""
        return _smoothed(self.largest, self.rounding)


def _smoothed(largest: Tensor, rounding: Tensor) -> Smoothed:
    """The fits of tails, `(M + 1, R)`, in falling order."""
    first = largest[0]
    relative = (largest - first).clamp(min=LEAST)
    above = (relative > relative[-1]).sum(0)  # fewer than `M` where several are equal
    varies = first.isfinite() & (relative[-1] < -rounding)
    # Where the largest was drawn often weights end there, as with latents of finitely many values.
    varies &= (relative >= -rounding).sum(0) < FEWEST
    k = torch.where(varies, math.inf, 0.0).double()
    log_weights = largest[:-1].clone()
    for count in above[varies].unique().tolist():
        rows = (varies & (above == count)).nonzero().squeeze(1)
        tails = relative[: count + 1, rows].flip(0)  # in rising order, after the cutoff
        # Without a density at its beginning it is no tail: ArviZ's generations differ on it.
        fits = tails[int(count / 4 + 0.5)] > tails[1]
        rows, tails = rows[fits], tails[:, fits]
        if count < FEWEST or not len(rows):
            continue
        shape, smoothed = _by_arviz(tails.T.numpy())
        good = torch.from_numpy(np.isfinite(shape))
        k[rows[good]] = torch.from_numpy(shape)[good]
        smooth = torch.from_numpy(smoothed).T.flip(0) + first[rows]
        log_weights[:count, rows[good]] = smooth[:, good]
    return Smoothed(k, log_weights)


def _by_arviz(tails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shapes, `(R,)`, and smoothed logarithms, `(R, M)`, of tails `(R, 1 + M)` after their cutoff.

    A tail stands in an array five times as long, of which both generations take one fifth.
    """
    count = tails.shape[1] - 1
    padded = np.full((len(tails), 5 * count), 2 * LEAST)
    padded[:, -count - 1 :] = tails
    smoothed, k = _psislw(padded)
    return k, smoothed[:, -count:] - smoothed[:, [-count - 1]] + tails[:, :1]


def _psislw(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ArviZ's smoothing, where no efficiency of draws makes a tail other than a fifth."""
    fifth = 1 / log_weights.shape[1]
    try:
        base = import_module("arviz_stats.base")
    except ImportError:  # ArviZ 0.x
        smoothed, k = import_module("arviz").psislw(log_weights, reff=fifth)
    else:
        smoothed, k = base.array_stats.psislw(-log_weights, r_eff=fifth)
    return np.asarray(smoothed), np.asarray(k)


def smoothed_mean(log_mean: Tensor, tails: Tails, smoothed: Smoothed) -> Tensor:
    """The logarithm of the mean weight, `(R,)`, with the smoothed weights in place of the tail."""
    total = log_mean + math.log(tails.num_samples)
    tail = (tails.largest[:-1].logsumexp(0) - total).clamp(max=0)
    body = total + torch.log1p(-tail.exp())
    mean = torch.logaddexp(body, smoothed.log_weights.logsumexp(0)) - math.log(tails.num_samples)
    return torch.where(log_mean.isfinite(), mean, log_mean)
