"""A log evidence as a number: of which kind it is, with which error, and how it is said."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ppl_models.infer.evidence.numbers.difference import Difference
from ppl_models.infer.evidence.pareto import Tails, threshold
from ppl_models.pictures.drawing import drawing, figure_of
from ppl_models.pictures.rows import one_number, sorted_rows
from ppl_models.prompt.tables import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_VARIANCE = 0.5  # of weights with such a shape
MANY = 1000  # rows, whose tails are looked at after each evidence
CARRYING = 50  # draws that must carry the weight of a row, for its Monte Carlo error to hold


@dataclass(frozen=True, eq=False)
class Evidence:
    """Log evidences, in nats.

    Attributes:
        value: The log evidence of each row, with shape `(N,)`, or, where latents are shared by
            all rows, the one of the whole data, with shape `(1,)`.
        kind: `"exact"`; `"lower bound"`, below the exact value on average; `"upper bound"`, above
            it on average, see `sandwich`; `"estimate"`, neither; `"pseudo-likelihood"`, no log
            evidence but the sum of those of each feature given all others.
        num_rows: The number of rows, `N`.
        num_samples: The number of draws from the guide for each row; 0 where exact.
        num_features: The number of discrete features of a row, `D`; None where some are not
            discrete, or missing or masked, or a `pyro.factor` counts beside them.
        row_variance: The Monte Carlo variance of each value.
        weighted: Whether the draws are importance-weighted.
        tails: The largest weights of each value, if there are any.
        row_size: How many numbers of a row are observed, missing ones included, if that is known.

    Example:
        >>> import torch
        >>> from ppl_models import FactorAnalysis, log_evidence
        >>> model = FactorAnalysis(num_features=5, num_factors=2)
        >>> evidence = log_evidence(model, None, torch.randn(10, 5))
        >>> evidence.kind, evidence.value.shape, evidence.monte_carlo_error
        ('exact', torch.Size([10]), 0.0)
    """

    value: Tensor
    kind: str
    num_rows: int
    num_samples: int
    num_features: int | None
    row_variance: Tensor
    weighted: bool = True
    tails: Tails | None = None
    row_size: int | None = None

    _name: ClassVar[str] = "log evidence"

    @property
    def mean(self) -> float:
        """The log evidence in nats per row."""
        return self.value.sum().item() / self.num_rows

    @property
    def standard_error(self) -> float:
        """The error of the mean as one over other rows like these; NaN for shared latents."""
        if len(self.value) < 2:
            return math.nan
        return self.value.std().item() / math.sqrt(self.num_rows)

    @property
    def monte_carlo_error(self) -> float:
        """The standard deviation of the mean over other draws, as far as these draws tell.

        By the delta method. Where a few draws carry most of the weight of a row, or weights have
        no variance, these draws do not show the ones that are missing, and it is understated.
        """
        return self.row_variance.sum().sqrt().item() / self.num_rows

    @property
    def effective_draws(self) -> Tensor:
        r"""How many draws carry each value: :math:`(\sum_s w_s)^2 / \sum_s w_s^2`, of 1 to `S`."""
        if not self.weighted or self.num_samples < 2:
            return torch.full_like(self.row_variance, self.num_samples)
        return self.num_samples / (1 + self.row_variance * (self.num_samples - 1))

    @cached_property
    def pareto_k(self) -> Tensor | None:
        r"""The shape of the tail of the weights of each value, :math:`\hat{k}`.

        Their variance, and the Monte Carlo error by it, exist where k < 0.5; above
        `pareto.threshold(num_samples)` so many draws are too few even for their mean. None where
        draws have no weights, or are fewer than 25.
        """
        return None if self.tails is None else self.tails.smoothed().k

    @property
    def is_unreliable(self) -> bool:
        """Whether the draws that carry a value are too few for `monte_carlo_error` to hold.

        Fewer than `CARRYING`, or than a fifth of those drawn, where these are few; in the harmonic
        mean over rows, since what few draws leave out of the logarithm of a mean weight is about
        one over twice their number, and is the mean of this over rows in their evidence. Or their
        weights have no variance, k > 0.5 in the mean over rows.
        """
        return self._are_few() or self._typical_k() > NO_VARIANCE

    def _are_few(self) -> bool:
        return self._carrying() < min(CARRYING, self.num_samples / 5)

    def _typical_k(self) -> float:
        """The mean of k, of as many rows as are soon looked at."""
        if self.tails is None:
            return -math.inf
        some = slice(None, None, max(1, len(self.value) // MANY))
        return self.tails.of_rows(some).smoothed().k.mean().item()

    def _carrying(self) -> float:
        return 1 / (1 / self.effective_draws).mean().item()

    @property
    def bits_per_dim(self) -> float:
        """Minus the mean in bits per feature, for discrete data."""
        if self.num_features is None:
            raise ValueError(
                "bits_per_dim: the model gives a density, whose value depends on the units of "
                "the data, or some features are missing or masked, or a pyro.factor (such as that "
                "of known labels) counts beside them. Expected discrete features, all observed: "
                "try Bernoulli() or Categorical(levels), or rows without their labels."
            )
        return -self.mean / (self.num_features * math.log(2))

    def __sub__(self, other: "Evidence") -> Difference:
        """The difference of two evidences of the same rows, paired row by row, with its kind."""
        if not isinstance(other, Evidence):
            return NotImplemented
        return Difference(self, other)

    def plot(self, axes: "Axes | None" = None) -> "Figure":
        """Draws the log evidence of each row, sorted, and names the worst rows by their index.

        Crosses are rows whose weights are too heavy in their tail for so many draws, by
        `pareto_k`. Where latents are shared by all rows there is one number, with its Monte Carlo
        error.

        Arguments:
            axes: Where to draw. By default in a figure of its own, which pyplot does not hold.

        Example:
            >>> from ppl_models import FactorAnalysis, log_evidence
            >>> model = FactorAnalysis(num_features=5, num_factors=2)
            >>> figure = log_evidence(model, None, torch.randn(100, 5)).plot()
            >>> figure.axes[0].get_ylabel()
            'log evidence (nats)'
        """
        with drawing(axes, height=4.0 if len(self.value) > 1 else 1.6) as axes:
            if len(self.value) > 1:
                self._draw_rows(axes)
            else:
                error = self.row_variance.sum().sqrt().item()
                one_number(axes, self.value.item(), error)
                beside = ", ± Monte Carlo error" if error else ""
                rows = f"all {self.num_rows} rows" if self.num_rows > 1 else "one row"
                axes.set_xlabel(f"{self._name} of {rows} (nats{beside})")
            axes.set_title(f"{self._number()}, {self.kind}")
        return figure_of(axes)

    def _draw_rows(self, axes: "Axes") -> None:
        k, limit = self.pareto_k, threshold(self.num_samples)

        def named(row: int) -> str:
            of_tail = "" if k is None else f", k {k[row]:.2f}"
            return f"{self.value[row]:.2f}{of_tail}"

        heavy = None if k is None else (f"k above {limit:.2f}: too few draws", k > limit)
        sorted_rows(axes, self.value, named, marked=heavy)
        axes.set_ylabel(f"{self._name} (nats)")

    def __str__(self) -> str:
        text = f"{self._name} {self._number()}, {self.kind}"
        if self.kind == "pseudo-likelihood":
            text += " (of each feature given all others: no density of rows)"
        if self.kind != "exact" and self.num_samples:
            text += f" ({self._of_the_draws()}"
            text += "; ± is over rows)" if " ± " in text else ")"
        if self.num_features is not None:
            text += f", {self.bits_per_dim:.4f} bits/dim"
        return text

    def _repr_html_(self) -> str:
        facts = {self._name: self._number(), "kind": self.kind, "rows": f"{self.num_rows}"}
        if self.num_samples:
            facts["draws"] = f"{self.num_samples}{self._of_the_tails()}"
            error, unit = self._error(), "nats per row" if self._has_rows() else "nats"
            facts["Monte Carlo error"] = f"{error} {unit}{self._understated()}"
        if self.num_features is not None:
            facts["bits/dim"] = f"{self.bits_per_dim:.4f}"
        return table(["", ""], list(facts.items()))

    def __repr__(self) -> str:
        said = [self._number(), self.kind]
        said += [f"{self.num_rows} rows"] if self._has_rows() else []
        said += [f"{self.num_samples} draws"] if self.num_samples else []
        said += ["unreliable"] if self.num_samples and self.is_unreliable else []
        return f"{type(self).__name__}({', '.join(said)})"

    def _has_rows(self) -> bool:
        return len(self.value) == self.num_rows > 1

    def _number(self) -> str:
        """The number, its error over rows, and its units."""
        if self._has_rows():
            error = self.standard_error
            spread = "" if math.isnan(error) else f" ± {error:.3f}"
            return f"{self.mean:.3f}{spread} nats per row"
        if self.num_rows == 1:
            return f"{self.mean:.3f} nats of one row"
        whole = f"{self.value.item():.3f} nats of all {self.num_rows} rows"
        return f"{whole} ({self.mean:.3f} per row)"

    def _of_the_draws(self) -> str:
        draws = "importance samples" if self.weighted else "draws"
        draws = f"{self.num_samples} {draws}" if self.num_samples > 1 else "1 draw"
        text = f"{draws}{self._of_the_tails()}, Monte Carlo error {self._error()}"
        return text + self._understated()

    def said_error(self) -> str:
        """The Monte Carlo error as it is said, in the unit of the number; nothing where exact."""
        if not self.num_samples:
            return ""
        return self._error() + (" or more" if self.is_unreliable else "")

    def _error(self) -> str:
        error = self.monte_carlo_error * self.num_rows / len(self.value)
        return "unknown" if math.isnan(error) else f"{error:.3f}"

    def _understated(self) -> str:
        """What is to be said of the Monte Carlo error, if anything."""
        if self._are_few():
            return f", unreliable: as good as {self._carrying():.1f} draws"
        return ", understated: weights of infinite variance" if self.is_unreliable else ""

    def _of_the_tails(self) -> str:
        if self.pareto_k is None:
            return ""
        most, limit = self.pareto_k.max().item(), threshold(self.num_samples)
        above = int((self.pareto_k > limit).sum())
        if len(self.pareto_k) == 1:
            return f", Pareto k {most:.2f}"
        if above:
            return f", Pareto k above {limit:.2f} in {above} of {len(self.pareto_k)} rows"
        return f", Pareto k up to {most:.2f}"
