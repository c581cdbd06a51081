"""Estimators of the evidence lower bound: Pyro's numbers, without reads from the device."""

from collections.abc import Callable, Iterator
from typing import Any

from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.elbo import ELBO
from pyro.infer.trace_elbo import Trace_ELBO
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor

from ppl_models.infer.programs.pyro_internals import (
    dice_elbo,
    is_enumerated,
    log_ratios,
    model_factors,
    traces,
)


class DirectELBO(Trace_ELBO):
    """Pyro's `Trace_ELBO`, the same loss and gradient, without reads from the device.

    Pyro's own calls `.item()` at every site, which on a GPU waits for everything before it.
    """

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        total: Any = 0.0
        for model_trace, guide_trace in traces(self, model, guide, args, kwargs):
            bound = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
            if any(
                isinstance(s["score_parts"].score_function, Tensor) for s in _sites(guide_trace)
            ):
                surrogate = _surrogate(model_trace, guide_trace)
                bound = bound.detach() + surrogate - surrogate.detach()
            total = total + bound
        return -total / self.num_particles


class DirectEnumELBO(TraceEnum_ELBO):
    """Pyro's `TraceEnum_ELBO`, the same loss and gradient, without reads from the device.

    Pyro's weighs the terms by densities of what the guide enumerates, or draws without a
    reparameterisation. Where it does neither, all weights are one, and the terms are summed.
    """

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        total: Any = 0.0
        for pair in traces(self, model, guide, args, kwargs):
            total = total + (_sum(*pair) if _all_direct(pair[1]) else dice_elbo(*pair))
        return -total / self.num_particles


def direct(estimator: Any) -> ELBO | None:
    """Returns the estimator here that stands for one of Pyro's, with its settings, if there is."""
    for kind, ours in ((Trace_ELBO, DirectELBO), (TraceEnum_ELBO, DirectEnumELBO)):
        if type(estimator) is kind:
            found = ours.__new__(ours)
            found.__dict__ = estimator.__dict__  # shared: settings may change later
            return found
    return None


def _all_direct(guide_trace: poutine.Trace) -> bool:
    """Whether a guide enumerates nothing, and all that it draws is reparameterised."""
    return all(
        not is_enumerated(site) and not isinstance(site["score_parts"].score_function, Tensor)
        for site in _sites(guide_trace)
    )


def _sum(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
    """The bound, with the enumerated sites of the model summed out."""
    costs, factors, _, summed, scale = model_factors(model_trace, guide_trace)
    total = sum(term.sum() for terms in costs.values() for term in terms)
    for terms in contract_tensor_tree(factors, summed).values() if factors else ():
        total = total + sum(packed.scale_and_mask(term, scale=scale).sum() for term in terms)
    return total - sum(site["packed"]["log_prob"].sum() for site in _sites(guide_trace))


def _surrogate(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
    """Has the gradient of the bound where guide sites are not reparameterised.

    The score function gives it, `log r * grad log q`, with the terms of other rows left out.
    """
    log_r = log_ratios(model_trace, guide_trace)
    total = model_trace.log_prob_sum()
    for site in _sites(guide_trace):
        parts = site["score_parts"]
        if isinstance(parts.entropy_term, Tensor):
            total = total - parts.entropy_term.sum()
        if isinstance(parts.score_function, Tensor):
            total = total + (log_r.sum_to(site["cond_indep_stack"]) * parts.score_function).sum()
    return total


def _sites(trace: poutine.Trace) -> Iterator[dict]:
    return (site for site in trace.nodes.values() if site["type"] == "sample")
