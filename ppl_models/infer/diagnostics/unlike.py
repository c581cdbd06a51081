r"""Rows unlike anything that a model would draw: how small their evidence is among rows it drew.

.. math::
    p_n = \frac{1 + \#\{s : \log p(\tilde{x}_s) \le \log p(x_n)\}}{S + 1},
    \qquad \tilde{x}_s \sim p(x)

Of rows that the model drew, :math:`p_n` is uniform (or larger, by ties), whatever the guide, whose
bound is taken of both alike. Where the model has inputs each row is compared with what it draws at
the inputs of that row.

What it catches: rows that no part of the model is about, and, by all rows together, a model that
is not that of the data. What it cannot: rows whose evidence is as that of others for another
reason. One that is too simple (a blank image) has more than any that the model draws, p near 1.

Shapes: `N` rows, `S` that the model drew.

References:
    | Bayesian Data Analysis, chapter 6.3 (Gelman et al., 2013)
    | Bishop: Novelty detection and neural network validation, 1994
    | https://doi.org/10.1049/ip-vis:19941330
    | Testing for outliers with conformal p-values (Bates et al., 2023)
    | https://arxiv.org/abs/2104.08279
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.effect import AutoMessenger
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.infer.diagnostics.calibration.simulations import has_own_rows
from ppl_models.infer.diagnostics.calibration.simulator import Simulator
from ppl_models.infer.evidence.evidence import log_evidence
from ppl_models.infer.evidence.joint import sampling
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.infer.programs.program import Program, modules_of_programs
from ppl_models.infer.programs.tables import as_rows
from ppl_models.infer.trials.same import check_same
from ppl_models.prompt.lines import in_words
from ppl_models.prompt.tables import table
from ppl_models.scoped import modes, own_rng, seed_of

SHOWN = 10  # rows that are named
FALSE = 0.05  # the share of false discoveries among rows that are called unlike
FEWEST = 1000  # rows that are drawn by default
OF_A_ROW = 200  # ... at the inputs of each row
NEAR = 1e-5  # relative, within which evidences of rows alike may be rounded


@dataclass(frozen=True)
class PredictivePvalues:
    """How small the evidence of rows is among that of rows that the model drew.

    Attributes:
        value: The p-value of each row, `(N,)`.
        evidence: The log evidence of the rows.
        simulated: That of rows which the model drew, `(S, 1)`, or of each row, `(S, N)`, where the
            model has inputs.

    Example:
        >>> from ppl_models import FactorAnalysis, predictive_pvalues
        >>> model = FactorAnalysis(num_features=5, num_factors=2).double()
        >>> found = predictive_pvalues(model, None, model(size=50).detach(), seed=0)
        >>> found.value.shape, found.evidence.kind
        (torch.Size([50]), 'exact')
    """

    value: Tensor
    evidence: Evidence
    simulated: Tensor

    __repr__ = in_words

    @property
    def unlike(self) -> Tensor:
        """The rows that the model would not draw, the worst first.

        By Benjamini and Hochberg: of such rows a twentieth on average are like others. No p-value
        is below 1 / (S + 1), so that a single row among N is found where S is 20 N or more.
        """
        from scipy.stats import false_discovery_control  # slow to import

        adjusted = torch.from_numpy(false_discovery_control(self.value.numpy()))
        order = self.value.argsort(stable=True)
        return order[adjusted[order] <= FALSE]

    @property
    def p_value(self) -> float:
        """Of all rows together: whether their evidences are those of rows that the model draws.

        By the test of Kolmogorov and Smirnov, of either side.
        """
        from scipy.stats import ks_2samp, kstest

        value, drawn = self.evidence.value, self.simulated
        if drawn.shape[1] == 1:
            near = NEAR * (1 + value.abs().max())
            both = [(x / near).round().numpy() for x in (value, drawn[:, 0])]
            return float(ks_2samp(*both).pvalue)
        below, same = _places(value, drawn)
        chance = torch.rand(
            len(value), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        return float(kstest((below + chance * (1 + same)) / (1 + len(drawn)), "uniform").pvalue)

    def _repr_html_(self) -> str:
        worst = self.value.argsort(stable=True)[:SHOWN]
        unlike = set(self.unlike.tolist())
        lines = [
            [
                row,
                f"{self.value[row]:.2g}",
                f"{self.evidence.value[row]:.3f}",
                "yes" if row in unlike else "no",
            ]
            for row in worst.tolist()
        ]
        return table(["row", "p-value", "log evidence (nats)", "unlike"], lines, above=str(self))

    def __str__(self) -> str:
        number, found = len(self.value), self.unlike
        text = f"{len(found)} of {number} rows are unlike the {len(self.simulated)} that the model "
        text += "drew" if self.simulated.shape[1] == 1 else "drew at the inputs of each"
        if len(found):
            text += f": rows {', '.join(map(str, found[:SHOWN].tolist()))}"
            text += ", ..." if len(found) > SHOWN else ""
        return f"{text}; all rows together: p = {self.p_value:.2g}"


def predictive_pvalues(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *data: Tensor,
    num_simulations: int | None = None,
    num_samples: int = 100,
    batch_size: int = 4096,
    seed: int | None = None,
) -> PredictivePvalues:
    r"""Returns the predictive p-value of the evidence of each row.

    Processes share the draws, as in `log_evidence`.

    Arguments:
        model: A Pyro program whose rows are independent, which draws `size` of them without data.
        guide: Its guide, which infers the latents of any rows; None as in `log_evidence`.
        data: The rows, as the model takes them, inputs too.
        num_simulations: How many rows the model draws; by default 20 for each row, 1000 at least.
            Where it has inputs: for each row, by default 200.
        num_samples: The number of draws from the guide for each evidence that is not exact.
        batch_size: How many draws are evaluated at once, as in `log_evidence`.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Raises:
        ValueError: If rows have no evidence of their own, or miss values, the model cannot draw
            them, or the guide has parameters of the rows that it was fitted to.

    Example:
        >>> from ppl_models import FactorAnalysis
        >>> model = FactorAnalysis(num_features=5, num_factors=2).double()
        >>> x = torch.cat([model(size=99).detach(), 20 * torch.ones(1, 5).double()])
        >>> predictive_pvalues(model, None, x, seed=0).unlike.tolist()
        [99]
    """
    check_count(num_samples=num_samples, batch_size=batch_size)
    check_same(
        "predictive_pvalues",
        (model, guide),
        data,
        num_simulations=num_simulations,
        num_samples=num_samples,
        batch_size=batch_size,
        seed=seed,
    )
    seed = seed_of(seed)
    data = as_rows(data, modules_of_programs(model, guide))
    draws = partial(log_evidence, model, guide, num_samples=num_samples, batch_size=batch_size)
    with warnings.catch_warnings():  # whether few draws carry a row: p-values hold if they do
        warnings.filterwarnings("ignore", rf"log_evidence: {num_samples} draws")
        found = draws(*data, seed=seed)
        _check_of_rows(found, data)
        sets = _simulated(model, guide, data, num_simulations, seed)
        drawn = [draws(*rows, seed=seed + 1 + n).value for n, rows in enumerate(sets)]
    simulated = drawn[0][:, None] if len(drawn) == 1 else torch.stack(drawn)
    below, same = _places(found.value, simulated)
    return PredictivePvalues((1 + below + same) / (1.0 + len(simulated)), found, simulated)


def _places(value: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """How many drawn rows have less evidence than each row, and how many as much."""
    near = NEAR * (1 + value.abs())
    below = (drawn < value - near).sum(0).double()
    return below, (drawn <= value + near).sum(0) - below


def _check_of_rows(found: Evidence, data: tuple[Tensor, ...]) -> None:
    """Raises where rows have no evidence of their own, or not one that is like that of others."""
    if len(found.value) != found.num_rows:
        raise ValueError(
            "predictive_pvalues: expected rows that are independent, got latents that rows share, "
            "with one evidence for all of them. Try loo(model, guide, x), the density of each row "
            "given all others."
        )
    if found.kind == "pseudo-likelihood":
        raise ValueError(
            "predictive_pvalues: expected a density of rows, got a pseudo-likelihood, which no "
            "rows are drawn from."
        )
    if any(x.is_floating_point() and bool(x.isnan().any()) for x in data):
        raise ValueError(
            "predictive_pvalues: expected rows without missing values, as those that the model "
            "draws have none, got NaN. Try the rows that are complete, or impute(model, guide, x)."
        )


def _check_amortised(guide: Any, simulator: Simulator) -> None:
    """Raises where a guide does not look at rows, but has parameters of those it was fitted to."""
    if guide is None:
        return
    kinds = AutoGuide, AutoMessenger
    if isinstance(Program(guide, "guide").inner, kinds) or has_own_rows(guide, simulator):
        raise ValueError(
            f"guide: {type(guide).__name__} has parameters of the rows that it was fitted to, and "
            f"says nothing of others, such as the model draws. Expected a guide that is amortised. "
            f"Try AmortizedNormal(num_features, num_latents)."
        )


def _simulated(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    data: tuple[Tensor, ...],
    number: int | None,
    seed: int,
) -> Iterator[tuple[Any, ...]]:
    """Rows that the model draws: all at once, or as many as there are inputs, again and again."""
    program, modules = Program(model, "model"), modules_of_programs(model, guide)
    program.is_evaluated = True
    with sampling(model, guide, data, seed) as joint:
        observed = [site["value"] for site in joint.observed.values()]
        inputs = tuple(
            None if any(x.shape == y.shape and torch.equal(x, y) for y in observed) else x
            for x in joint.first.batch
        )
    inputs = tuple(None if few is None else x for few, x in zip(inputs, data, strict=True))
    alone = all(x is None for x in inputs)
    if number is None:
        number = max(FEWEST, 20 * len(data[0])) if alone else OF_A_ROW
    check_count(num_simulations=number)
    device = data[0].device
    with torch.no_grad(), modes(modules, training=False), own_rng("simulations", seed, device):
        simulator = Simulator(program, inputs, number if alone else len(data[0]))
        _check_amortised(guide, simulator)
        sets = [one.data for one in simulator.sets(1 if alone else number)]
    yield from sets
