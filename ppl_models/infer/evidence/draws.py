"""Draws of the latents of some rows: what a model and a guide said of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyro import poutine
from pyro.infer.discrete import infer_discrete
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_models.infer.programs import sites
from ppl_models.infer.programs.program import Program

Call = Callable[[Any], Any]


class SummedOut(NamedTuple):
    """What is left of sites after the sum over enumerated ones."""

    names: set[str]
    terms: list[Tensor]  # with plates as dimensions


@dataclass
class Draws:
    """Some draws of some rows.

    Attributes:
        model: The trace of the model. Enumerated sites are summed over in `log_p`.
        guide: The trace of the guide.
        rows: Which rows.
        count: How many draws of each row, `K`.
        tiled: Whether the draws are tiled as rows.
        log_p: The joint log-density of model, `(K, R)`, or `(K, 1)` of the whole data.
        log_q: That of the guide.
        run: Calls a program on these rows.
        free_dim: The first dimension that is free for enumeration.
        summed_out: What is left of the enumerated sites, where there are some.
    """

    model: poutine.Trace
    guide: poutine.Trace
    rows: slice
    count: int
    tiled: bool
    log_p: Tensor
    log_q: Tensor
    run: Call
    free_dim: int
    summed_out: SummedOut | None

    def unstack(self, site: dict, value: Tensor, event_dim: int) -> Tensor:
        """Returns a tensor of a site with the draws in front, `(K, *batch, *event)`."""
        if not self.tiled:
            return value.unsqueeze(0)
        dim = row_dim(site)
        axis = -1 if dim is None else value.dim() - event_dim + dim
        if axis < 0:  # the same for all rows and draws
            return value.unsqueeze(0).expand(self.count, *value.shape)
        return value.unflatten(axis, (self.count, -1)).movedim(axis, 0)

    def latents(self, model: Program) -> poutine.Trace:
        """The trace of the latents, with draws of the enumerated ones given the others."""
        if not sites.summed_out_sites(self.model, self.guide):
            return self.guide
        replayed = poutine.replay(model, trace=self.guide)
        sampled = infer_discrete(replayed, first_available_dim=self.free_dim)
        trace = self.run(poutine.trace(sampled).get_trace)
        latents = poutine.Trace()
        for name, site in sites.latent_sites(trace).items():
            latents.add_node(name, **site)
        return latents

    def predictive(self, model: Program, given: poutine.Trace | None) -> poutine.Trace:
        """A trace of the model without its data: fresh rows given latents, or from the prior."""
        program: Callable[..., Any] = Unobserved()(model)
        if given is not None:
            program = poutine.replay(program, trace=given)
        return self.run(poutine.trace(program).get_trace)


class Unobserved(Messenger):
    """`poutine.uncondition`, but `pyro.deterministic` and `pyro.factor` stay as they are."""

    def _pyro_sample(self, message: dict) -> None:
        if message["is_observed"] and sites.is_datum(message):
            message.update(is_observed=False, value=None, done=False)


def row_dim(site: dict) -> int | None:
    """The dimension of the rows at a site, counted from the right; None outside of their plate."""
    dims = [frame.dim for frame in site["cond_indep_stack"] if frame.name == "data"]
    return dims[0] if dims else None
