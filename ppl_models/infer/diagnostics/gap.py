r"""What a guide costs: of its family, and of one network for all rows.

.. math::
    \log p(x) - \mathcal{L}(q_\phi) =
    \underbrace{\log p(x) - \max_\eta \mathcal{L}(q_\eta)}_{\text{approximation}} +
    \underbrace{\max_\eta \mathcal{L}(q_\eta) - \mathcal{L}(q_\phi)}_{\text{amortisation}}

for each row, where :math:`\eta` are numbers of that row alone, in the place of what the encoder
makes of it, :math:`\eta = \phi(x)`. A richer family closes the first gap, a larger encoder or more
of training the second.

What it catches: every guide that is not the posterior, in nats. What it cannot: more than the
evidence is known. Where that is a bound from below, a mode that the guide leaves out is missing on
both sides.

Shapes: `N` rows, `E` outputs of an encoder for each, `S` draws.

References:
    | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
    | https://arxiv.org/abs/1801.03558
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppl_models.checks import check_count, check_positive
from ppl_models.infer.diagnostics.family import best_of_rows
from ppl_models.infer.evidence.evidence import check_weights, log_evidence
from ppl_models.infer.evidence.exact.closed_forms import HasEvidence
from ppl_models.infer.evidence.joint import sampling
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.infer.evidence.weights import Draws
from ppl_models.infer.programs import checks
from ppl_models.infer.programs.program import modules_of_programs
from ppl_models.infer.programs.tables import as_rows
from ppl_models.infer.trials.same import check_same
from ppl_models.processes import apart
from ppl_models.prompt.tables import table
from ppl_models.scoped import seed_of


class Bounds(NamedTuple):
    """Evidence lower bounds of rows.

    Attributes:
        value: The bound of each row, `(N,)`; of the whole data, `(1,)`, where latents are shared.
        variance: The Monte Carlo variance of each.
    """

    value: Tensor
    variance: Tensor


@dataclass(frozen=True)
class InferenceGap:
    """The gaps between the log evidence of rows and the bounds of a guide, in nats.

    Attributes:
        evidence: The log evidence. Where it is a lower bound, so are `total` and `approximation`.
        elbo: The bounds of the guide.
        best: Those of the best member of its family for each row, as far as it was found: what is
            left to find would move from `approximation` to `amortisation`. None where no encoder is
            known.
        num_rows: The number of rows, `N`.
        num_samples: The number of draws of each bound.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import FactorAnalysis, inference_gap
        >>> model = FactorAnalysis(num_features=5, num_factors=2).double()
        >>> x = torch.zeros(3, 5, dtype=torch.float64)
        >>> found = inference_gap(model, ExactPosterior(model), x)
        >>> found.evidence.kind, found.total.shape
        ('exact', torch.Size([3]))
    """

    evidence: Evidence
    elbo: Bounds
    best: Bounds | None
    num_rows: int
    num_samples: int

    @property
    def kind(self) -> str:
        """Of `total` and `approximation`: `"estimate"` beside an exact evidence, else its kind."""
        return "estimate" if self.evidence.kind == "exact" else self.evidence.kind

    @property
    def total(self) -> Tensor:
        """The evidence of each row, less the bound of the guide."""
        return self.evidence.value - self.elbo.value

    @property
    def approximation(self) -> Tensor | None:
        """The evidence of each row, less the best bound of the family."""
        return None if self.best is None else self.evidence.value - self.best.value

    @property
    def amortisation(self) -> Tensor | None:
        """The best bound of each row, less that of the guide."""
        return None if self.best is None else self.best.value - self.elbo.value

    @property
    def monte_carlo_error(self) -> float:
        """The standard deviation of the mean gap over other draws, in nats per row."""
        of_evidence = self.evidence.row_variance.nan_to_num(0.0)
        return (of_evidence + self.elbo.variance).sum().sqrt().item() / self.num_rows

    def __repr__(self) -> str:
        return f"InferenceGap({str(self).partition(' (')[0]})"

    def _repr_html_(self) -> str:
        gaps = {"approximation": self.approximation, "amortisation": self.amortisation}
        known = {name: gap for name, gap in gaps.items() if gap is not None}
        lines = [
            [name, f"{gap.sum().item() / self.num_rows:.3f}"]
            for name, gap in {"gap": self.total, **known}.items()
        ]
        return table(["", "nats per row"], lines, below=str(self))

    def __str__(self) -> str:
        mean = self.total.sum().item() / self.num_rows
        text = f"gap {mean:.3f} nats per row"
        if self.approximation is not None and self.amortisation is not None:
            parts = [
                x.sum().item() / self.num_rows for x in (self.approximation, self.amortisation)
            ]
            text += " = approximation {:.3f} + amortisation {:.3f}".format(*parts)
        text += f", {self.kind} (evidence: {self.evidence.kind}; {self.num_samples} draws, "
        text += f"Monte Carlo error {self.monte_carlo_error:.3f})"
        if self.best is None:
            text += "; not split, as the guide has no encoder"
        return text


def inference_gap(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *data: Tensor,
    evidence: Evidence | None = None,
    num_samples: int = 1000,
    steps: int = 500,
    lr: float = 0.1,
    batch_size: int = 4096,
    seed: int | None = None,
) -> InferenceGap:
    r"""Returns the gap between evidence and bound of each row, and what it is made of.

    The family of a guide is what its `encoder` can be replaced in: a module that it calls once with
    something of each row. The best member is found by descent of numbers for each row, in the place
    of the outputs, from what the encoder gives on; all other parameters of model and guide stay as
    they are. A guide without such a module has a total gap alone. Processes share the draws, as in
    `log_evidence`, and each finds the best members by itself.

    Arguments:
        model: A Pyro program.
        guide: Its guide.
        data: The rows, as the model takes them.
        evidence: Their log evidence, where a better one is known than `log_evidence` finds: such as
            the lower bound of `sandwich`. Default: the exact one of the model, where it has one,
            else the importance-weighted bound, from draws of the best members.
        num_samples: The number of draws for each bound.
        steps: The number of steps that look for the best members.
        lr: The learning rate of the first of them; it falls to zero.
        batch_size: How many draws are evaluated at once, as in `log_evidence`.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Raises:
        ValueError: If there are no latents to draw, or an argument or the data do not fit.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import FactorAnalysis
        >>> model = FactorAnalysis(num_features=5, num_factors=2).double()
        >>> x = torch.zeros(3, 5, dtype=torch.float64)
        >>> gap = inference_gap(model, ExactPosterior(model), x)
        >>> gap.total.abs().max().item() < 1e-8
        True
    """
    check_count(num_samples=num_samples, steps=steps, batch_size=batch_size)
    check_positive(lr=lr)
    check_same(
        "inference_gap",
        (model, guide),
        data,
        num_samples=num_samples,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
    )
    data = as_rows(data, modules_of_programs(model, guide))
    seed = seed_of(seed)
    elbo = _bounds(model, guide, data, num_samples, batch_size, seed)
    better = None
    if isinstance(getattr(guide, "encoder", None), nn.Module) and len(elbo.value) > 1:
        with apart():  # numbers of all rows, that move together: the same on each process
            better = best_of_rows(model, guide, data, steps, lr, seed)
    best = better and _bounds(*better, num_samples, batch_size, seed)
    if evidence is None:
        evidence = _evidence(model, guide, data, better, num_samples, batch_size, seed)
    _check_evidence(evidence, elbo)
    return InferenceGap(evidence, elbo, best, len(data[0]), num_samples)


def _check_evidence(evidence: Evidence, elbo: Bounds) -> None:
    if evidence.value.shape != elbo.value.shape:
        raise ValueError(
            f"evidence: expected one value for each of the {len(elbo.value)} bounds, got "
            f"{len(evidence.value)}. Try the log_evidence of the same rows."
        )


def _evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: tuple[Tensor, ...],
    better: Any,
    num_samples: int,
    batch_size: int,
    seed: int,
) -> Evidence:
    """The exact log evidence where the model knows it, else the bound of the nearest guide."""
    if isinstance(model, HasEvidence) or better is None:
        programs, rows = (model, guide), data
    else:
        programs, rows = better[:2], better[2]
    return log_evidence(
        *programs, *rows, num_samples=num_samples, batch_size=batch_size, seed=seed + 1
    )


def _bounds(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: tuple[Tensor, ...],
    num_samples: int,
    batch_size: int,
    seed: int,
) -> Bounds:
    """The mean log weight of each row, or of the whole data."""
    with sampling(model, guide, data, seed) as joint:
        checks.check_observed(joint.first.model)
        if set(joint.latent) == joint.enumeration.names:
            raise ValueError(
                "inference_gap: expected latents that a guide draws, got a model without any: its "
                "evidence is exact, and there is no gap."
            )
        check_weights(joint)
        number = joint.num_rows if joint.by_row else 1
        sums = torch.zeros(2, number, dtype=torch.float64)
        for rows, results in joint.evaluate(_log_weight, num_samples, batch_size):
            weight = results["log_weight"].cpu()  # (K, R)
            where = rows if joint.by_row else slice(None)
            sums[:, where] += torch.stack([weight.sum(0), weight.square().sum(0)])
    first, second = sums / num_samples
    variance = (second - first.square()).clamp(min=0) / max(num_samples - 1, 1)
    return Bounds(first, variance if num_samples > 1 else variance + math.nan)


def _log_weight(draws: Draws) -> dict[Any, Tensor]:
    return {"log_weight": draws.log_weight}
