r"""A table of candidates: what `compare` returns, as columns, as text, and for ArviZ.

Shapes: `C` candidates, `N` rows.

References:
    | Estimating the Dimension of a Model (Schwarz, 1978)
    | https://doi.org/10.1214/aos/1176344136
    | Using Stacking to Average Bayesian Predictive Distributions (Yao et al., 2018)
    | https://doi.org/10.1214/17-BA1091
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_models.prompt.tables import table

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Comparison:
    """A table of candidates. Evidences are exact, in nats; columns have the shape `(C,)`.

    Attributes:
        names: The candidates, in the order they were given.
        num_parameters: Their free parameters.
        fitted_rows: The log evidence of each row under the fit to all of them, `(C, N)`.
        held_out_rows: The log evidence of each row under a fit without its fold, `(C, N)`.
        folds: The number of folds.
        weight: Of the mixture of candidates that predicts the held-out rows best: `az.compare`.
        warnings: What was warned of in the fits of a candidate, and in which: a component at its
            floor makes the evidence of all rows, and so the BIC, depend on that floor.

    Example:
        >>> from ppl_models import GaussianMixture, compare
        >>> x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 9])
        >>> candidates = {k: GaussianMixture(2, k) for k in (1, 2)}
        >>> table = compare(candidates, x, folds=2, restarts=1, seed=0)
        >>> table.best(), table.num_parameters.tolist()
        (2, [5, 11])
    """

    names: list[Hashable]
    num_parameters: Tensor
    fitted_rows: Tensor
    held_out_rows: Tensor
    folds: int
    weight: Tensor
    warnings: dict[Hashable, list[str]]

    def __repr__(self) -> str:
        return (
            f"Comparison({len(self.names)} candidates, best {self.best()!r} by held-out evidence)"
        )

    @property
    def evidence(self) -> Tensor:
        """The log evidence of the rows that a candidate was fitted to, in nats per row."""
        return self.fitted_rows.mean(1)

    @property
    def bic(self) -> Tensor:
        r"""The Bayesian information criterion, in which less is better.

        .. math:: -2 \sum_n \log p(x_n \mid \hat\theta) + P \log N
        """
        rows = self.fitted_rows.shape[1]
        return -2 * self.fitted_rows.sum(1) + self.num_parameters * math.log(rows)

    @property
    def held_out(self) -> Tensor:
        """The log evidence of the rows when they are left out, in nats per row."""
        return self.held_out_rows.mean(1)

    @property
    def standard_error(self) -> Tensor:
        """The error of `held_out`, as one over other rows like these."""
        return _error(self.held_out_rows)

    @property
    def difference(self) -> Tensor:
        """`held_out`, less that of the best."""
        return self.held_out - self.held_out.max()

    @property
    def difference_error(self) -> Tensor:
        """The error of `difference`; the candidates are paired, row by row."""
        return _error(self.held_out_rows - self.held_out_rows[self.held_out.argmax()])

    def best(self, by: str = "held-out") -> Hashable:
        """Returns the name of the best candidate, by `"held-out"` evidence or by `"bic"`."""
        if by not in ("held-out", "bic"):
            raise ValueError(f"by: expected 'held-out' or 'bic', got {by!r}.")
        return self.names[int(self.held_out.argmax() if by == "held-out" else self.bic.argmin())]

    def dataframe(self) -> "DataFrame":
        """Returns the table as a `pandas.DataFrame`, with a line for each candidate.

        Columns: `parameters`, `evidence`, `bic`, `held_out` with its `standard_error`, the
        `difference` from the best with its `difference_error`, `weight`; and `warned`, whether
        `warnings` has something.
        """
        import pandas  # slow to import

        columns = {
            "parameters": self.num_parameters,
            "evidence": self.evidence,
            "bic": self.bic,
            "held_out": self.held_out,
            "standard_error": self.standard_error,
            "difference": self.difference,
            "difference_error": self.difference_error,
            "weight": self.weight,
        }
        index = pandas.Index(self.names, name="candidate")
        table = pandas.DataFrame({n: x.numpy() for n, x in columns.items()}, index=index)
        return table.assign(warned=[name in self.warnings for name in self.names])

    def elpd_data(self) -> dict[str, Any]:
        """Returns the held-out evidence as ArviZ holds it, for `az.compare` and its plots."""
        rows = zip(self.names, self.held_out_rows, self.fitted_rows, strict=True)
        return {str(name): elpd_data(out, fitted, self.folds) for name, out, fitted in rows}

    def __str__(self) -> str:
        labels = [f"{name}{'*' if name in self.warnings else ''}" for name in self.names]
        width = max(9, *map(len, labels))
        lines = [
            f"{'candidate':{width}}  parameters  evidence        BIC"
            f"            held-out       minus the best  weight"
        ]
        for c, label in enumerate(labels):
            lines.append(
                f"{label:{width}}{int(self.num_parameters[c]):12d}{self.evidence[c]:10.3f}"
                f"{self.bic[c]:11.1f}{self.held_out[c]:12.3f} ± {self.standard_error[c]:.3f}"
                f"{self.difference[c]:13.3f} ± {self.difference_error[c]:.3f}{self.weight[c]:8.2f}"
            )
        return "\n".join([*lines, *self._notes(labels)])

    def _repr_html_(self) -> str:
        labels = [f"{name}{'*' if name in self.warnings else ''}" for name in self.names]
        lines = [
            [
                label,
                int(self.num_parameters[c]),
                f"{self.evidence[c]:.3f}",
                f"{self.bic[c]:.1f}",
                f"{self.held_out[c]:.3f} ± {self.standard_error[c]:.3f}",
                f"{self.difference[c]:.3f} ± {self.difference_error[c]:.3f}",
                f"{self.weight[c]:.2f}",
            ]
            for c, label in enumerate(labels)
        ]
        head = [
            "candidate",
            "parameters",
            "evidence",
            "BIC",
            "held-out",
            "minus the best",
            "weight",
        ]
        return table(head, lines, below="\n".join(self._notes(labels)))

    def _notes(self, labels: list[str]) -> list[str]:
        """What is to be read below the table."""
        best = [labels[self.names.index(self.best(by))] for by in ("held-out", "bic")]
        lines = [
            f"Evidence and held-out evidence ({self.folds} folds of {self.fitted_rows.shape[1]} "
            f"rows; ± standard error): nats per row, exact.",
            f"Best: {best[0]} by held-out evidence, {best[1]} by BIC (the least).",
        ]
        for name, said in self.warnings.items():
            more = f" And {len(said) - 1} more, in .warnings." if len(said) > 1 else ""
            lines.append(f"* {name}: {said[0].partition('. Try')[0].rstrip('.')}.{more}")
        return lines


def _error(rows: Tensor) -> Tensor:
    return rows.std(1) / math.sqrt(rows.shape[1])


def stacking(held_out: Tensor, fitted: Tensor, folds: int) -> Tensor:
    """Returns the weights that ArviZ gives candidates, `(C,)`, for evidences `(C, N)`."""
    import arviz  # here, because it is slow to import

    # What is the same for all candidates changes no weight; ArviZ takes exponentials of the rest.
    shifted = held_out - held_out.amax(0)
    data = {str(c): elpd_data(shifted[c], fitted[c], folds) for c in range(len(held_out))}
    exactly = {} if "InferenceData" in vars(arviz) else {"round_to": "none"}  # ArviZ 0.x, 1.x
    weights = arviz.compare(data, method="stacking", **exactly)["weight"]
    return torch.tensor([weights[name] for name in data], dtype=torch.float64)


def elpd_data(held_out: Tensor, fitted: Tensor, folds: int) -> Any:
    """Returns the held-out evidence of a candidate, `(N,)`, as the installed ArviZ holds it."""
    import arviz
    import xarray

    total = held_out.sum().item()
    known = {
        "se": held_out.std(correction=0).item() * math.sqrt(len(held_out)),
        "n_samples": 1,  # one fit, not draws
        "n_data_points": len(held_out),
        "scale": "log",
        "warning": False,
    }
    rows = xarray.DataArray(held_out.numpy(), dims=["data"])
    parameters = fitted.sum().item() - total  # effective ones
    if "InferenceData" in vars(arviz):  # ArviZ 0.x, which has no other name for it than loo
        # In the order it prints.
        first = {"elpd_loo": total, "se": known["se"], "p_loo": parameters}
        return arviz.ELPDData(first | known | {"loo_i": rows})
    return arviz.ELPDDataLOOKFold(
        elpd=total, p=parameters, elpd_i=rows, good_k=None, n_folds=folds, **known
    )
