r"""The difference of two evidences of the same rows, row by row, and what kind of number it is.

.. math::
    \frac{1}{N} \sum_n \left[ \log p_1(x_n) - \log p_2(x_n) \right]

Rows that are hard for one model are hard for the other: the spread of the differences over rows is
far less than that of either evidence. What is known of a difference is what is known of both sides:

=========== =========== =============
first       second      difference
=========== =========== =============
exact       exact       exact
exact, low  exact, high lower bound
exact, high exact, low  upper bound
otherwise               estimate
=========== =========== =============

where "low" is a lower bound and "high" an upper one, and not both are exact. Two lower bounds give
no bound of their difference: it is right as far as the gaps of both are alike.

That a bound lies on its side is true on average over draws. Where it is the logarithm of a mean
weight, of each of `N` rows with draws of its own, it lies `c` nats in all on the other side with a
probability of at most :math:`e^{-c}`, however few draws carry the weight (Markov's inequality).
Draws of both sides with the same seed are not independent: their errors are added.

Shapes: `N` rows.

References:
    | Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse et al., 2015)
    | https://arxiv.org/abs/1511.02543
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_models.infer.evidence.numbers.comparable import PSEUDO, check_comparable, check_densities

if TYPE_CHECKING:
    from ppl_models.infer.evidence.numbers.evidence import Evidence

NOT_ABOVE = {"exact", "lower bound"}  # kinds that are, on average, not above the exact number
NOT_BELOW = {"exact", "upper bound"}
LUCK = 0.05  # how probable a difference as large may be by the draws alone
ROUNDING = 1e-6  # of a number in single precision, relative to its size


@dataclass(frozen=True, repr=False, eq=False)
class Difference:
    """An evidence less another of the same rows, in nats: `evidence - other`.

    Attributes:
        evidence: The first.
        other: The one that is subtracted.

    Raises:
        ValueError: If the two cannot be compared.

    Example:
        >>> import torch
        >>> from ppl_models import FactorAnalysis, ProbabilisticPCA, log_evidence
        >>> x = torch.randn(200, 5) * torch.tensor([1.0, 1.0, 1.0, 1.0, 5.0])
        >>> own = FactorAnalysis(5, 1).maximum_likelihood(x)
        >>> shared = ProbabilisticPCA(5, 1).maximum_likelihood(x)
        >>> difference = log_evidence(own, None, x) - log_evidence(shared, None, x)
        >>> difference.kind, difference.mean > 0
        ('exact', True)
    """

    evidence: "Evidence"
    other: "Evidence"

    def __post_init__(self) -> None:
        check_comparable({"evidence": self.evidence, "other": self.other}, "evidence - other")
        check_densities("evidence - other", "evidence", self.evidence, "other", self.other)

    @property
    def value(self) -> Tensor:
        """The difference of each row, `(N,)`; of the whole data, `(1,)`, with shared latents."""
        return self.evidence.value.double() - self.other.value.double()

    @property
    def num_rows(self) -> int:
        """The number of rows, `N`."""
        return self.evidence.num_rows

    @property
    def kind(self) -> str:
        """What is known of the difference, given what is known of each side.

        `"exact"`; `"lower bound"`, at least this much; `"upper bound"`, at most this much;
        `"estimate"`, neither; `"pseudo-likelihood"`, no difference of log densities.
        """
        first, second = self.evidence.kind, self.other.kind
        if first == second and first in ("exact", PSEUDO):
            return first
        if first in NOT_ABOVE and second in NOT_BELOW:
            return "lower bound"
        if first in NOT_BELOW and second in NOT_ABOVE:
            return "upper bound"
        return "estimate"

    @property
    def mean(self) -> float:
        """The difference in nats per row."""
        return self.value.sum().item() / self.num_rows

    @property
    def standard_error(self) -> float:
        """The error of the mean as one over other rows like these; NaN for shared latents.

        The evidences are paired, row by row.
        """
        if len(self.value) < 2:
            return math.nan
        return self.value.std().item() / math.sqrt(self.num_rows)

    @property
    def monte_carlo_error(self) -> float:
        """The standard deviation of the mean over other draws, at most: the sum of both sides'."""
        return self.evidence.monte_carlo_error + self.other.monte_carlo_error

    @property
    def doubt(self) -> str | None:
        """Why the sign of the mean is not proven, on these rows; None where it is.

        The kinds of both must prove it: a lower bound that is above an exact number does, one below
        it does not. And draws alone must be no cause of it, at 5 per cent. Of other rows
        `standard_error` tells.
        """
        kinds = {self.evidence.kind, self.other.kind}
        proves = "lower bound" if self.mean > 0 else "upper bound"
        if math.isnan(self.mean):
            return "each has rows that the other gives no density"
        if self.mean == 0:
            return "the numbers are equal"
        if abs(self.value.sum().item()) <= ROUNDING * self._size():
            return "the numbers are equal but for rounding"
        if self.kind == PSEUDO:
            return "pseudo-likelihoods are no densities"
        if self.kind == "estimate":
            return f"{'one is an' if len(kinds) > 1 else 'both are'} {_plural(kinds)}"
        if self.kind not in ("exact", proves):
            return "the bounds leave it open"
        if self.kind != "exact" and not abs(self.value.sum().item()) > self._chance():
            return "it may be by the draws alone"
        return None

    def _size(self) -> float:
        """Of the numbers on both sides that are finite, in all."""
        sides = torch.stack([self.evidence.value.double(), self.other.value.double()])
        return sides[sides.isfinite()].abs().sum().item()

    def _chance(self) -> float:
        """By how many nats in all both sides may be off by their draws, but for `LUCK`."""
        drawn = [each for each in (self.evidence, self.other) if each.kind != "exact"]
        luck = LUCK / len(drawn)
        return sum(
            -math.log(luck)
            if each.weighted
            else NormalDist().inv_cdf(1 - luck) * each.monte_carlo_error * each.num_rows
            for each in drawn
        )

    def __repr__(self) -> str:
        return f"Difference({self._number()}, {self.kind})"

    def __str__(self) -> str:
        reach = {"lower bound": ": at least this much", "upper bound": ": at most this much"}
        return (
            f"difference {self._number()}, {self.kind}{reach.get(self.kind, '')} ({self._sides()})"
        )

    def _number(self) -> str:
        if self.num_rows == 1:
            return f"{self.mean:.3f} nats of one row"
        if len(self.value) == 1:
            return (
                f"{self.value.item():.3f} nats of all {self.num_rows} rows "
                f"({self.mean:.3f} per row)"
            )
        error = self.standard_error
        spread = f" ± {error:.3f}" if math.isfinite(error) else ""
        return f"{self.mean:.3f}{spread} nats per row"

    def _sides(self) -> str:
        """What the number is made of."""
        text = f"{self.evidence.kind} less {self.other.kind}"
        if self.kind == "estimate" and self.evidence.kind == self.other.kind != "estimate":
            text += ", right as far as their gaps are alike"
        if self.kind == PSEUDO:
            text += ", of no log densities"
        if self.evidence.num_samples or self.other.num_samples:
            error = self.monte_carlo_error * self.num_rows / len(self.value)
            text += "; Monte Carlo error "
            text += "unknown" if math.isnan(error) else f"{error:.3f}"
            if self.evidence.is_unreliable or self.other.is_unreliable:
                text += " or more"
        return text + ("; ± is over rows" if " ± " in self._number() else "")


def _plural(kinds: set[str]) -> str:
    """Those of an estimate: of two bounds of one side, or with an estimate."""
    if len(kinds) > 1:
        return "estimate"
    return f"{next(iter(kinds))}s"
