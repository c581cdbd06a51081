"""Which numbers of a run are not finite: the first site that has some, and the rows they are of."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from ppl_models.checks import listed
from ppl_models.infer.programs.pyro_internals import active_handlers
from ppl_models.infer.programs.rows import Rows
from ppl_models.infer.programs.sites import base, kind


class Numbers(NamedTuple):
    """Some numbers of a site, and how many dimensions of an event are right of its plates."""

    what: str
    values: Tensor
    events: int


def first_not_finite(model: poutine.Trace, guide: poutine.Trace) -> str:
    """Names the first site whose parameters, value or log-density are not finite, and the rows."""
    for trace, program in ((guide, "guide"), (model, "model")):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or site_is_subsample(site):
                continue
            for what, value, events in _numbers(site):
                bad = ~torch.isfinite(value)
                if bad.any():
                    return (
                        f"the first site with such numbers is {name!r} of the {program}: {what} "
                        f"has {int(bad.sum())} of {value.numel()} not finite"
                        f"{rows_of(site, bad, events)}"
                    )
    return "every site is finite by itself; the sum is not"


def rows_of(site: dict, bad: Tensor, events: int = 0) -> str:
    """Says which rows some entries of a site belong to, of the data where these are known.

    Arguments:
        site: A site.
        bad: Which entries of its log-density, or of other numbers of it.
        events: How many dimensions of an event these have.
    """
    dim = next((f.dim for f in site["cond_indep_stack"] if f.name == "data" and f.vectorized), None)
    if dim is None or bad.dim() < events - dim or bad.shape[dim - events] == 1:
        return ""
    by_row = bad.movedim(dim - events, 0)
    return named(by_row.reshape(len(by_row), -1).any(1).nonzero().flatten())


def named(places: Tensor) -> str:
    """Says which rows some places of the batch hold, of the data where that is known."""
    handler = next((m for m in active_handlers() if isinstance(m, Rows)), None)
    noun = "row" if len(places) == 1 else "rows"
    if handler is None or handler.rows is None:
        return f", in {noun} {listed(places.tolist())} of the batch"
    return f", in {noun} {listed(handler.rows[places].tolist())} of the data"


def _numbers(site: dict) -> Iterator[Numbers]:
    fn = site["fn"]
    innermost = base(fn)
    while hasattr(innermost, "base_dist"):  # a transformed one has the parameters of its base
        innermost = innermost.base_dist
    for parameter, constraint in getattr(innermost, "arg_constraints", {}).items():
        value = innermost.__dict__.get(parameter)  # lazy ones are computed from these
        if isinstance(value, Tensor) and value.is_floating_point():
            events = len(innermost.batch_shape) - len(fn.batch_shape) + _event_dim(constraint)
            yield Numbers(f"{parameter} of its {kind(fn)}", value, max(events, 0))
    if isinstance(site["value"], Tensor):
        yield Numbers("its value", site["value"].double(), fn.event_dim)
    yield Numbers("its log-density", fn.log_prob(site["value"]), 0)


def _event_dim(constraint: constraints.Constraint) -> int:
    """How many dimensions an element of a parameter has; none where that is not said."""
    try:
        return constraint.event_dim
    except NotImplementedError:
        return 0
