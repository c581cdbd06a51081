r"""What is summed over the weights of draws as they come: no draw is kept but those of the tail.

.. math::
    \log \frac{1}{S} \sum_s w_s, \qquad
    \operatorname{var} \left( \log \frac{1}{S} \sum_s w_s \right) \approx
    \frac{1}{S - 1} \left( \frac{\frac{1}{S} \sum_s w_s^2}{(\frac{1}{S} \sum_s w_s)^2} - 1 \right)

Shapes: `S` draws of `R` rows.
"""

import math

import torch
from torch import Tensor

from ppl_models.infer.evidence.pareto import FEWEST_DRAWS, Tails


class WeightSums:
    """Sums of the weights of rows, and the largest of them.

    Arguments:
        num_samples: The number of draws that will come, `S`.
        rows: The number of rows, `R`.
    """

    def __init__(self, num_samples: int, rows: int) -> None:
        self.num_samples = num_samples
        self.first = torch.full((rows,), -math.inf, dtype=torch.float64)
        self.second = self.first.clone()  # log sums of the weights, and of their squares
        self.tails = Tails.of(num_samples, rows) if num_samples >= FEWEST_DRAWS else None

    def add(self, rows: slice, log_weight: Tensor, rounding: Tensor) -> Tensor | None:
        """Takes the weights of draws of some rows, `(K, R)`; returns which are now the largest."""
        self.first[rows] = torch.logaddexp(self.first[rows], log_weight.logsumexp(0))
        self.second[rows] = torch.logaddexp(self.second[rows], (2 * log_weight).logsumexp(0))
        return None if self.tails is None else self.tails.add(rows, log_weight, rounding)

    @property
    def log_mean(self) -> Tensor:
        """The logarithm of the mean weight, `(R,)`."""
        return self.first - math.log(self.num_samples)

    @property
    def variance(self) -> Tensor:
        """That of `log_mean` by the delta method: unknown, 0 / 0, after a single draw."""
        spread = (self.second - 2 * self.first).exp() * self.num_samples - 1
        return spread.clamp(min=0) / (self.num_samples - 1)
