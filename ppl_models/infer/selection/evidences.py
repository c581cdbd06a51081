"""A table of evidences of the same rows, of models of any kind, that says which order is known.

The numbers are of several kinds: exact, bounds, estimates. A lower bound that is above an exact
number shows that its model is better; one below it shows nothing. So each difference has a kind,
and the order of two models is proven or it is not: see `Difference`.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppl_models.infer.evidence.numbers.comparable import check_comparable, check_densities
from ppl_models.infer.evidence.numbers.difference import Difference
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.prompt.tables import table

if TYPE_CHECKING:
    from pandas import DataFrame

CLOSE = 2.0  # errors over rows, within which the order may be another on other rows


@dataclass(frozen=True, repr=False, eq=False)
class EvidenceComparison:
    """Evidences of the same rows beside the highest, in nats: what `compare` makes of them.

    Attributes:
        evidences: The evidences by name, in the order they were given.

    Raises:
        TypeError: If one is no `Evidence`.
        ValueError: If there are none, or two that cannot be compared.

    Example:
        >>> import torch
        >>> from ppl_models import GaussianMixture, compare, fit_em, log_evidence
        >>> x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 9])
        >>> models = {k: GaussianMixture(2, k) for k in (1, 2)}
        >>> runs = [fit_em(model, x, progress=False) for model in models.values()]
        >>> table = compare({k: log_evidence(model, None, x) for k, model in models.items()})
        >>> table.highest, table.best(), table.order
        (2, 2, {1: 'proven', 2: 'highest'})
    """

    evidences: Mapping[Hashable, Evidence]

    def __post_init__(self) -> None:
        if not self.evidences:
            raise ValueError("EvidenceComparison: expected evidences by name, got none.")
        for name, evidence in self.evidences.items():
            if not isinstance(evidence, Evidence):
                raise TypeError(
                    f"compare: expected an Evidence for each name, or a model and rows, got "
                    f"{type(evidence).__name__} for {name!r}. Try log_evidence(model, guide, x) of "
                    f"each, or compare(models, x) of models that fit_em fits."
                )
        check_comparable(self.evidences, "compare")
        highest = self.highest
        for name, evidence in self.evidences.items():
            if name != highest:
                check_densities("compare", highest, self.evidences[highest], name, evidence)

    @property
    def highest(self) -> Hashable:
        """The name of the highest number, be its model the best or not."""
        return max(self.evidences, key=lambda name: self.evidences[name].mean)

    @property
    def differences(self) -> dict[Hashable, Difference]:
        """Each evidence but the highest, less the highest."""
        highest = self.highest
        best = self.evidences[highest]
        return {name: e - best for name, e in self.evidences.items() if name != highest}

    @property
    def order(self) -> dict[Hashable, str]:
        """For each candidate `"highest"`, `"proven"` to be below that, or why it is not known."""
        doubts = {name: difference.doubt for name, difference in self.differences.items()}
        found = {name: f"not known: {why}" if why else "proven" for name, why in doubts.items()}
        return {name: found.get(name, "highest") for name in self.evidences}

    def best(self) -> Hashable:
        """Returns the name of the best candidate on these rows.

        Raises:
            ValueError: If the kinds of the numbers do not prove that it is.
        """
        doubts = {name: difference.doubt for name, difference in self.differences.items()}
        reasons = [f"{name!r} ({why})" for name, why in doubts.items() if why]
        if reasons:
            raise ValueError(
                f"best: {self.highest!r} has the highest number, but it is not known whether its "
                f"model is better than {', '.join(reasons)}. Expected exact evidences, or a lower "
                f"bound above others that are exact. Try .highest, where the number is meant, or "
                f"bounds from both sides (sandwich)."
            )
        return self.highest

    def dataframe(self) -> "DataFrame":
        """Returns the table as a `pandas.DataFrame`, a line for each candidate.

        In nats per row, or of all rows together, where these share latents.

        Columns: the `evidence`, its `standard_error` (over rows), `monte_carlo_error` and `kind`;
        the `difference` from the highest, its `difference_error`, `difference_monte_carlo_error`
        and `difference_kind`; the `order`; and `bits_per_dim`, NaN but for discrete data.
        """
        import pandas  # slow to import

        differences, order, scale = self.differences, self.order, self._scale
        lines = []
        for name, evidence in self.evidences.items():
            difference = differences.get(name)
            lines.append(
                {
                    "evidence": scale * evidence.mean,
                    "standard_error": scale * evidence.standard_error,
                    "monte_carlo_error": scale * evidence.monte_carlo_error,
                    "kind": evidence.kind,
                    "difference": scale * difference.mean if difference else 0.0,
                    "difference_error": scale * difference.standard_error if difference else 0.0,
                    "difference_monte_carlo_error": (
                        scale * difference.monte_carlo_error if difference else 0.0
                    ),
                    "difference_kind": difference.kind if difference else "exact",
                    "order": order[name],
                    "bits_per_dim": evidence.bits_per_dim if evidence.num_features else math.nan,
                }
            )
        return pandas.DataFrame(lines, index=pandas.Index(list(self.evidences), name="candidate"))

    def __repr__(self) -> str:
        return (
            f"EvidenceComparison({len(self.evidences)} evidences of {self._of()}, "
            f"highest: {self.highest!r})"
        )

    def __str__(self) -> str:
        return "\n".join([*_aligned(self._table()), *self._notes(self.differences, self.order)])

    def _repr_html_(self) -> str:
        head, *lines = self._table()
        notes = self._notes(self.differences, self.order)
        return table(head, lines, below="\n".join(notes))

    def _table(self) -> list[list[str]]:
        """What is said of each candidate, below the names of the columns."""
        differences, order, scale = self.differences, self.order, self._scale
        title = ["candidate", "log evidence", "Monte Carlo error", "kind", "less the highest"]
        found = [[*title, "order", "bits/dim"]]
        for name, evidence in self.evidences.items():
            less = differences.get(name)
            found.append(
                [
                    self._named(name),
                    _with_error(evidence, scale),
                    evidence.said_error(),
                    evidence.kind,
                    _with_error(less, scale) if less else "",
                    order[name],
                    f"{evidence.bits_per_dim:.4f}" if evidence.num_features else "",
                ]
            )
        return found

    @property
    def _scale(self) -> int:
        """How many rows a number is of: of each, or of all together, which share latents."""
        first = next(iter(self.evidences.values()))
        return first.num_rows // len(first.value)

    def _of(self) -> str:
        """What the evidences are of."""
        rows = next(iter(self.evidences.values())).num_rows
        if self._scale == 1:
            return f"{rows} row{'s' if rows > 1 else ''}"
        return f"all {rows} rows together"

    def _named(self, name: Hashable) -> str:
        """A candidate's name, as nothing else is written."""
        alike = sum(str(other) == str(name) for other in self.evidences)
        return str(name) if alike == 1 else repr(name)

    def _unit(self) -> str:
        """The line below the table that says what its numbers are."""
        if self._scale == 1:
            return f"Of {self._of()}, in nats per row; ± is over rows, paired in differences."
        return f"Of {self._of()}, in nats of all; a difference is a log Bayes factor."

    def _notes(
        self, differences: dict[Hashable, Difference], order: dict[Hashable, str]
    ) -> list[str]:
        """What is to be read below the table."""
        notes = [self._unit()]
        unknown = [self._named(name) for name in differences if order[name] != "proven"]
        if unknown:
            notes.append(
                f"Highest: {self._named(self.highest)}. Beside {', '.join(unknown)} it is not "
                f"known which model is better."
            )
        elif differences:
            notes.append(f"Highest: {self._named(self.highest)}, proven on these rows.")
        close = [
            self._named(name)
            for name, less in differences.items()
            if order[name] == "proven" and abs(less.mean) < CLOSE * less.standard_error
        ]
        if close:
            notes.append(
                f"Within two errors over rows: {', '.join(close)}. Other rows may have another "
                f"order."
            )
        return notes


def _with_error(number: Evidence | Difference, scale: int) -> str:
    """A mean, or `scale` times it, with its error over rows where there is one."""
    error = number.standard_error
    return f"{scale * number.mean:.3f}" + (f" ± {error:.3f}" if math.isfinite(error) else "")


def _aligned(found: list[list[str]]) -> list[str]:
    """Lines of a table, whose first column is aligned to the left; without empty columns."""
    columns = [column for column in zip(*found, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
