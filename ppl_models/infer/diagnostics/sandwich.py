r"""The log evidence between two bounds: one from below, and one from above.

.. math::
    \mathbb{E} \left[ \log \tfrac{1}{K} \sum_k w_k \right] \le \log p(x) \le
    \mathbb{E} \left[ -\log \tfrac{1}{K} \sum_k \tfrac{1}{w'_k} \right]

where :math:`w` are the weights of annealed importance sampling from the guide to the posterior, and
:math:`w'` those of the same path the other way, from an exact draw of the posterior. That there is
for rows which the model has drawn, together with their latents; for others there is the lower bound
alone. How far the two are apart on rows of the model says how good the lower one is on rows like
them.

Shapes: `N` rows, `K` chains of each, `T` temperatures.

References:
    | Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse et al., 2015)
    | https://arxiv.org/abs/1511.02543
    | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
    | https://arxiv.org/abs/1611.04273
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_models.checks import check_at_least, check_count
from ppl_models.infer.compiled.side_by_side import Results
from ppl_models.infer.evidence.evidence import check_weights, log_evidence, num_discrete, row_size
from ppl_models.infer.evidence.joint import Joint, Unobserved, sampling
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.infer.evidence.sums import WeightSums
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.program import Program, modules_of_programs
from ppl_models.infer.programs.rows import Rows
from ppl_models.infer.programs.tables import as_rows
from ppl_models.infer.sampling.annealed import Weights, backward, forward, prepare
from ppl_models.infer.sampling.of_rows import OfRows
from ppl_models.infer.sampling.slopes import AnotherProgramError, Slopes
from ppl_models.infer.trials.same import check_same
from ppl_models.prompt.lines import in_words
from ppl_models.scoped import modes, own_rng, seed_of

NOT_SIMULATED = (
    "these rows are no draws of the model, so that no exact draw of their posterior is known; "
    "try simulate=True, for rows that it draws"
)


@dataclass(frozen=True)
class Sandwich:
    """Bounds of the log evidence from both sides, in nats.

    Attributes:
        lower: Of each row, of the kind `"lower bound"`.
        upper: Of each row, of the kind `"upper bound"`: above the exact value on average. None
            where there is none.
        no_upper: Why there is none.
        rows: What the bounds are of: the data, or what the model has drawn in their place.
        accepted: The share of transitions that were accepted; NaN without any.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import FactorAnalysis, sandwich
        >>> model = FactorAnalysis(num_features=5, num_factors=2).double()
        >>> x = torch.zeros(3, 5, dtype=torch.float64)
        >>> found = sandwich(model, ExactPosterior(model), x, num_steps=5, seed=0)
        >>> found.lower.kind, found.upper  # the model did not draw these rows: no bound from above
        ('lower bound', None)
    """

    lower: Evidence
    upper: Evidence | None
    no_upper: str | None
    rows: tuple[Tensor, ...]
    accepted: float

    __repr__ = in_words

    @property
    def gap(self) -> float:
        """How far the bounds are apart, in nats per row; NaN where there is no upper one."""
        return math.nan if self.upper is None else self.upper.mean - self.lower.mean

    @property
    def gap_error(self) -> float:
        """Its standard error, over rows, whose exact draws it holds, and chains."""
        if self.upper is None or self.lower.num_rows < 2:
            return math.nan
        apart = self.upper.value - self.lower.value
        return apart.std().item() / math.sqrt(self.lower.num_rows)

    def __str__(self) -> str:
        of = f"of {self.lower.num_rows} rows in nats per row"
        if self.upper is None:
            return (
                f"log evidence {of}: above {self.lower.mean:.3f} (lower bound, Monte Carlo error "
                f"{self.lower.monte_carlo_error:.3f}); no upper bound: {self.no_upper}"
            )
        return (
            f"log evidence {of}: {self.lower.mean:.3f} (lower bound) to {self.upper.mean:.3f} "
            f"(upper bound), each on average; apart by {self.gap:.3f} ± {self.gap_error:.3f}; "
            f"{self.lower.num_samples} chains, {100 * self.accepted:.0f} % of their moves accepted"
        )


def sandwich(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *data: Tensor,
    simulate: bool = False,
    num_steps: int = 200,
    num_chains: int = 16,
    batch_size: int = 4096,
    seed: int | None = None,
) -> Sandwich:
    r"""Returns bounds of the log evidence of rows from both sides.

    The lower one is of annealed importance sampling: it is above that of `log_evidence` where the
    guide is far from the posterior, and costs `5 * num_steps` runs of the model and the guide, of
    all chains at once. Discrete latents that the model enumerates are summed out. Where the guide
    draws discrete latents, or ones that rows share, or keeps parameters for each row, the lower
    bound is that of `log_evidence`, and the result says so.

    Processes that compute together share the rows, `batch_size` chains at a time.

    Arguments:
        model: A Pyro program.
        guide: Its guide, which takes any rows (an amortised one); None where the model knows its
            posterior.
        data: The rows, as the model takes them.
        simulate: Whether the model draws rows in their place, as many, with the same inputs: only
            then is there an upper bound.
        num_steps: The number of temperatures, `T`.
        num_chains: The number of chains of each row, `K`, 2 or more.
        batch_size: How many chains of rows run at once.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Raises:
        ValueError: If there are no latents to draw, or an argument or the data do not fit.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import FactorAnalysis
        >>> model = FactorAnalysis(num_features=5, num_factors=2).double()
        >>> x = torch.zeros(3, 5, dtype=torch.float64)
        >>> found = sandwich(model, ExactPosterior(model), x, simulate=True, num_steps=5, seed=0)
        >>> found.lower.kind, found.upper.kind, round(abs(found.gap), 6)
        ('lower bound', 'upper bound', 0.0)
    """
    check_count(num_steps=num_steps, batch_size=batch_size)
    check_at_least(2, num_chains=num_chains)
    check_same(
        "sandwich",
        (model, guide),
        data,
        simulate=simulate,
        num_steps=num_steps,
        num_chains=num_chains,
        batch_size=batch_size,
        seed=seed,
    )
    data = as_rows(data, modules_of_programs(model, guide))
    seed = seed_of(seed)
    latents: dict[str, Tensor] = {}
    if simulate:
        data, latents = _simulated(model, data, seed)
    with sampling(model, guide, data, seed + 1) as joint:
        checks.check_observed(joint.first.model)
        if set(joint.latent) == joint.enumeration.names:
            raise ValueError(
                "sandwich: expected latents that a guide draws, got a model without any: its "
                "evidence is exact. Try log_evidence(model, None, *data)."
            )
        check_weights(joint)
        reason = _why_not_annealed(joint)
        if reason is None:
            run = _Run(joint, num_steps, num_chains, latents)
            run(max(1, batch_size // num_chains))
            return run.result(data)
    lower = log_evidence(
        model, guide, *data, num_samples=num_chains * num_steps, method="importance", seed=seed + 2
    )
    return Sandwich(lower, None, reason, data, math.nan)


def _why_not_annealed(joint: Joint) -> str | None:
    """Why chains cannot move, so that only importance weights are left, or None."""
    moved = {n: s for n, s in joint.latent.items() if n not in joint.enumeration.names}
    weighted = "; the lower one is importance-weighted, not annealed"
    if discrete := [name for name, site in moved.items() if sites.is_discrete(site)]:
        return f"the latent {discrete[0]!r} is discrete, and is not summed out{weighted}"
    if not joint.tiled:
        return f"the rows share latents, or the guide has parameters for each of them{weighted}"
    if joint.masked:
        return f"the latent {joint.masked[0]!r} is masked{weighted}"
    if more := sites.latent_sites(joint.first.guide).keys() - moved.keys():
        return f"the guide has an auxiliary site {min(more)!r}{weighted}"
    return None


class _Run:
    """Chains of all rows, some rows after the other.

    Arguments:
        joint: The programs.
        num_steps: The number of temperatures.
        num_chains: The number of chains of each row.
        latents: Exact draws of the posterior, by their sites; none where there are none.
    """

    def __init__(
        self, joint: Joint, num_steps: int, num_chains: int, latents: dict[str, Tensor]
    ) -> None:
        self.joint, self.latents = joint, latents
        self.num_steps, self.num_chains = num_steps, num_chains
        self.below = WeightSums(num_chains, joint.num_rows)
        self.above = WeightSums(num_chains, joint.num_rows)  # of the weights' inverses
        self.accepted: list[float] = []
        self.features, self.row_size = num_discrete(joint), row_size(joint)

    def __call__(self, width: int) -> None:
        """Runs them, of so many rows at once."""
        joint = self.joint
        joint._look_once(self.num_chains)
        starts = range(0, joint.num_rows, width)
        parts = [slice(start, min(start + width, joint.num_rows)) for start in starts]
        for rows, found in joint.in_turn(*joint.begin(lambda: None), parts, self._of):
            self._add(self.below, rows, found["below"], 1.0)
            if self.latents:
                self._add(self.above, rows, found["above"], -1.0)
            self.accepted += found["accepted"].tolist()

    def _of(self, rows: slice) -> Results:
        """What chains of some rows weigh, and how many of their transitions were accepted."""
        densities = OfRows(self.joint, rows, self.num_chains)
        chains = Slopes(densities, densities.draw())
        try:
            found = self._both(chains, rows)
        except AnotherProgramError as error:
            chains.give_up(str(error))
            found = self._both(chains, rows)
        accepted = torch.tensor([each.accepted for each in found], dtype=torch.float64)
        weights = {n: x.log_weight for n, x in zip(("below", "above"), found, strict=False)}
        return {**weights, "accepted": accepted}

    def _both(self, chains: Slopes, rows: slice) -> list[Weights]:
        """The weights of chains that go forward and, from exact draws, backward."""
        draw, number = chains.rows.draw, rows.stop - rows.start
        how = prepare(chains, draw(), number, self.num_steps)
        found = [forward(chains, how, draw())]
        if self.latents:
            exact = {
                name: _tiled(self.latents[name], self.joint.latent[name], rows, self.num_chains)
                for name in chains.rows.names
            }
            found.append(backward(chains, how, chains.rows.of(exact)))
        return found

    def _add(self, sums: WeightSums, rows: slice, found: Tensor, sign: float) -> None:
        log_weight = sign * found.unflatten(0, (self.num_chains, -1)).cpu()
        sums.add(rows, log_weight, torch.zeros_like(log_weight))

    def result(self, data: tuple[Tensor, ...]) -> Sandwich:
        """The bounds."""
        lower = self._evidence(self.below, "lower bound", self.below.log_mean)
        upper = self._evidence(self.above, "upper bound", -self.above.log_mean)
        known = bool(self.latents)
        accepted = sum(self.accepted) / len(self.accepted)
        reason = None if known else NOT_SIMULATED
        return Sandwich(lower, upper if known else None, reason, data, accepted)

    def _evidence(self, sums: WeightSums, kind: str, value: Tensor) -> Evidence:
        return Evidence(
            value,
            kind=kind,
            num_rows=self.joint.num_rows,
            num_samples=self.num_chains,
            num_features=self.features,
            row_variance=sums.variance,
            row_size=self.row_size,
        )


def _tiled(value: Tensor, site: dict, rows: slice, count: int) -> Tensor:
    """The values of a latent at some rows, each of them several times."""
    dim = next(f.dim for f in site["cond_indep_stack"] if f.name == "data")
    axis = value.dim() - site["fn"].event_dim + dim
    some = value.movedim(axis, 0)[rows]
    return some.repeat(count, *[1] * (some.dim() - 1)).movedim(0, axis)


def _simulated(
    model: Callable[..., Any], data: tuple[Tensor, ...], seed: int
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Rows that the model draws in the place of the data, and their latents."""
    program = Program(model, "model")
    program.is_evaluated = True
    number = len(data[0]) if data else 0
    if not number:
        raise ValueError("data: expected at least one tensor of rows, got none.")
    if any(x.is_floating_point() and bool(x.isnan().any()) for x in data):
        raise ValueError(
            "simulate: expected rows without missing entries, whose places would be drawn, too. "
            "Try rows that are whole, or simulate=False."
        )
    rows = torch.arange(number, device=data[0].device)
    with (
        torch.no_grad(),
        modes(modules_of_programs(model), training=False),
        own_rng("simulations", seed, data[0].device),
        Rows(rows, number, number),
    ):
        given = poutine.trace(program).get_trace(*data, size=number)
        drawn = poutine.trace(Unobserved()(program)).get_trace(*data, size=number)
    batch = list(data)
    for name, site in sites.observed_sites(given).items():
        place = _place(site["value"], data)
        if place is None:
            raise ValueError(
                f"simulate: expected the observed site {name!r} to be one of the tensors that the "
                f"model is given, so that a drawn one can take its place, got another function of "
                f"them. Try obs=x, or simulate=False."
            )
        batch[place] = drawn.nodes[name]["value"].to(data[place].dtype)
    latents = {name: site["value"] for name, site in sites.latent_sites(drawn).items()}
    return tuple(batch), {n: z for n, z in latents.items() if n not in sites.observed_sites(given)}


def _place(value: Tensor, data: tuple[Tensor, ...]) -> int | None:
    """Which of the data a value is, or None."""
    return next(
        (n for n, x in enumerate(data) if x.shape == value.shape and bool((x == value).all())), None
    )
