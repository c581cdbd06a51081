r"""Draws of the latents of some rows, and the weight of each.

.. math::
    w = \frac{p(x, z)}{q(z \mid x)}, \qquad \log p(x, z) = \log \sum_k p(x, z, k)

where `z` are the latents that the guide drew, and `k` those that the model enumerates, summed out.
Rows that are independent have weights of their own; no scale of a plate is in them.

Shapes: `K` draws of `R` rows, or of the whole data, which count as one then.

References:
    | Importance Weighted Autoencoders (Burda et al., 2016)
    | https://arxiv.org/abs/1509.00519
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppl_models.infer.programs import sites
from ppl_models.infer.programs.checks import check_unscaled
from ppl_models.infer.programs.program import Program
from ppl_models.infer.programs.pyro_internals import model_factors, packed_dims
from ppl_models.infer.trials.auxiliary import each_value, is_summed

DIGITS = 16  # of the last ones of two log-densities, in the difference of which they are left

Call = Callable[[Callable[..., Any]], Any]  # runs a program on some rows


class Enumeration(NamedTuple):
    """What is summed out: the sites that the model enumerates, and from which dimension on."""

    names: set[str]
    first_dim: int

    @classmethod
    def of(cls, model: poutine.Trace, guide: poutine.Trace) -> "Enumeration":
        """That of a model and a guide, by their traces."""
        return cls(sites.summed_out_sites(model, guide), -1 - sites.plate_depth(model, guide))


class SummedOut(NamedTuple):
    """What is left of sites after the sum over enumerated ones."""

    names: set[str]
    terms: list[Tensor]  # with plates as dimensions


@dataclass(frozen=True, eq=False)
class Draws:
    """Some draws of some rows.

    Attributes:
        call: Runs a program on these rows.
        count: How many draws of each row, `K`.
        model: The trace of the model. Enumerated sites are summed over in `log_p`.
        guide: The trace of the guide.
        log_p: The joint log-density of the model, `(K, R)`, or `(K, 1)` of the whole data.
        log_q: That of the guide, its discrete auxiliaries summed over.
        summed_out: What is left of the enumerated sites, where there are some.
    """

    call: Call
    count: int
    model: poutine.Trace
    guide: poutine.Trace
    log_p: Tensor
    log_q: Tensor
    summed_out: SummedOut | None

    @property
    def log_weight(self) -> Tensor:
        r"""Is :math:`\log p(x, z) - \log q(z \mid x)`, in float64, `(K, R)` or `(K, 1)`."""
        return self.log_p - self.log_q

    @property
    def rounding(self) -> Tensor:
        """How far logarithms of equal weights may be apart, by their last digits, `(K, R)`."""
        kinds = [
            site["log_prob"].dtype
            for trace in (self.model, self.guide)
            for site in sites.random_sites(trace)
        ]
        last = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
        return DIGITS * last * (1 + self.log_p.abs() + self.log_q.abs())


def draw(
    call: Call,
    model: Program,
    guide: Callable[..., Any],
    enumeration: Enumeration,
    count: int,
    rows: int | None,
    device: torch.device,
) -> Draws:
    """Draws the latents of rows from the guide, and weighs the draws.

    Arguments:
        call: Runs a program on the rows: on `count` times as many, if each has its own weight.
        model: The model.
        guide: Its guide.
        enumeration: What the model enumerates.
        count: The number of draws, `K`.
        rows: The number of rows, `R`; None where the whole data have one weight.
        device: Where the rows are.
    """
    guided = call(poutine.trace(guide).get_trace)
    program: Callable[..., Any] = model
    if enumeration.names:
        program = EnumMessenger(first_available_dim=enumeration.first_dim)(program)
    joint = call(poutine.trace(poutine.replay(program, trace=guided)).get_trace)
    guided, joint = prune_subsample_sites(guided), prune_subsample_sites(joint)
    check_unscaled(joint, guided)
    guided.compute_log_prob()
    joint.compute_log_prob()
    total = None if rows is None else count * rows
    latent, by_row = set(sites.latent_sites(joint)), rows is not None
    if is_summed(guided, latent, by_row):
        traces = _of_each_value(call, guide, guided, latent, by_row)
        terms = [log_density(trace, total, device) for trace in traces]
        log_q = torch.stack(terms).logsumexp(0).reshape(count, -1)
    else:
        log_q = log_density(guided, total, device).reshape(count, -1)
    summed_out = sum_out(joint, guided) if enumeration.names else None
    log_p = log_density(joint, total, device, summed_out).reshape(count, -1)
    return Draws(call, count, joint, guided, log_p, log_q, summed_out)


def _of_each_value(
    call: Call, guide: Callable[..., Any], drawn: poutine.Trace, latent: set[str], by_row: bool
) -> Iterator[poutine.Trace]:
    """Traces of a guide whose densities add up to that of the latents that it drew."""

    def again(given: poutine.Trace) -> poutine.Trace:
        return call(poutine.trace(poutine.replay(guide, trace=given)).get_trace)

    for trace in each_value(again, drawn, latent, by_row):
        trace = prune_subsample_sites(trace)
        trace.compute_log_prob()
        yield trace


def sum_out(model: poutine.Trace, guide: poutine.Trace) -> SummedOut:
    r"""The enumerated sites, and those that depend on them: :math:`\log \sum_k p(x, k)`."""
    guide.pack_tensors()
    model.pack_tensors(guide.plate_to_symbol)
    _, factors, _, summed, _ = model_factors(model, guide)
    names = {
        name
        for name, site in model.nodes.items()
        if site["type"] == "sample"
        and not summed.isdisjoint(packed_dims(site["packed"]["log_prob"]))
    }
    terms = [
        packed.unpack(term, model.symbol_to_dim)
        for part in contract_tensor_tree(factors, summed).values()
        for term in part
    ]
    return SummedOut(names, terms)


def log_density(
    trace: poutine.Trace,
    rows: int | None,
    device: torch.device,
    summed_out: SummedOut | None = None,
) -> Tensor:
    """The log-density of a trace: of each of `rows` rows, `(rows,)`, or with None in all, `(1,)`.

    In float64: the sum over all rows of float32 numbers would lose digits.
    """
    terms = [
        (site["log_prob"], row_dim(site))
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and (summed_out is None or name not in summed_out.names)
    ]
    if summed_out is not None:
        observed = sites.observed_sites(trace)
        terms += [(term, row_dim(next(iter(observed.values())))) for term in summed_out.terms]
    place = device if device.type != "mps" else torch.device("cpu")
    total = torch.zeros(rows or 1, device=place, dtype=torch.float64)
    for term, dim in terms:
        term = term.to(place, torch.float64)
        if rows is None:
            term = term.sum()
        elif term.dim() > 1:
            term = term.movedim(dim, 0).flatten(1).sum(1)
        total = total + term
    return total


def row_dim(site: dict) -> int | None:
    """The dimension of the rows at a site, counted from the right; None outside of their plate."""
    dims = [frame.dim for frame in site["cond_indep_stack"] if frame.name == "data"]
    return dims[0] if dims else None
