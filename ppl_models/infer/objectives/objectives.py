r"""What can be descended.

An objective has a name, a loss in nats per row, and parameters. `fit` takes turns over one or more
of them.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.elbo import ELBO
from pyro.infer.trace_elbo import Trace_ELBO, _compute_log_r
from pyro.infer.traceenum_elbo import _compute_dice_elbo, _compute_model_factors
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor, nn

from ppl_models.infer.programs import inspection
from ppl_models.infer.programs.program import Program, no_latents
from ppl_models.infer.programs.rng import kept_rng


class Objective(Protocol):
    """What `fit` needs: a loss, and what it trains."""

    name: str

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        """Returns the loss of a minibatch of `size` rows in all, in nats per row."""

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        """Checks a first batch before anything is trained, and creates lazy parameters.

        `data` are all the rows, where they are in memory.
        """

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """What is trained, unconstrained; complete once prepared."""

    def modules(self) -> dict[str, nn.Module]:
        """The modules that run, for devices, modes (train, eval) and buffers."""

    def blame(self, *batch: Tensor, size: int) -> str:
        """Says what made the loss of this batch infinite or undefined."""


def elbo(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None = None,
    estimator: ELBO | None = None,
) -> "EvidenceLowerBound":
    r"""The evidence lower bound of a model and its guide, as an objective.

    .. math::
        -\frac{1}{N} \mathbb{E}_{q_\phi(z \mid x)}
        \left[ \log p_\theta(x, z) - \log q_\phi(z \mid x) \right]

    Arguments:
        model: A Pyro program `model(x=None, size=None)`, called as `model(*batch, size=N)`.
            One without an argument `size` is called without it.
        guide: A program over the latents of the model, called alike; None for a model whose
            latents, if any, are all enumerated.
        estimator: An estimator of Pyro, such as `Trace_ELBO(num_particles=10)` or
            `TraceMeanField_ELBO()`. Default: one particle; discrete sites of the model marked
            for enumeration are summed over.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import FactorAnalysis
        >>> model, x = FactorAnalysis(5, 2), torch.randn(7, 5)
        >>> loss = elbo(model, ExactPosterior(model)).loss(x, size=70)
        >>> torch.allclose(loss, -model.evidence().log_prob(x).mean(), atol=1e-4)
        True
    """
    return EvidenceLowerBound(model, guide, estimator)


class EvidenceLowerBound:
    """The objective that `elbo` returns."""

    name = "elbo"

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        estimator: ELBO | None,
    ) -> None:
        self.model = Program(model, "model")
        self.guide = Program(guide if guide is not None else no_latents, "guide")
        gives_loss = hasattr(estimator, "differentiable_loss") and not isinstance(estimator, type)
        if estimator is not None and not gives_loss:
            raise TypeError(
                f"estimator: expected an ELBO of Pyro that gives a differentiable loss, got "
                f"{estimator!r}. Try Trace_ELBO(num_particles=10) or TraceMeanField_ELBO()."
            )
        self.estimator = direct(estimator) or estimator

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        size = len(batch[0]) if size is None else size
        estimator = self.estimator or self._choose_estimator(batch, size)
        if torch.is_grad_enabled() or isinstance(estimator, (DirectELBO, DirectEnumELBO)):
            total = estimator.differentiable_loss(self.model, self.guide, *batch, size=size)
        else:  # some of Pyro's own refuse to give a loss without a gradient
            number = estimator.loss(self.model, self.guide, *batch, size=size)
            total = torch.tensor(number, dtype=torch.float64)
        return total / (size if self.model.takes_size else len(batch[0]))

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        for program in (self.model, self.guide):
            program.check_arguments(len(batch))
        with torch.no_grad(), pyro.validation_enabled(False):
            traces = self._traces(batch, size)
        inspection.check_sites(*traces)
        inspection.check_support(traces[0], batch, data or batch)
        rows, scaled = len(batch[0]), self.model.takes_size
        inspection.check_scaling(traces[0], rows, size, scaled)
        for trace, name in zip(traces, ("model", "guide"), strict=True):
            inspection.check_plates(trace, name, rows, size, scaled)
        if isinstance(self.estimator, Trace_ELBO):
            inspection.check_not_enumerated(traces[0], self.estimator)
        with torch.no_grad():
            self.loss(*batch, size=size)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for program in (self.model, self.guide):
            for name, parameter in program.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{program.name}.{name}", parameter

    def modules(self) -> dict[str, nn.Module]:
        return {
            f"{program.name}.{name}".rstrip("."): module
            for program in (self.model, self.guide)
            for name, module in program.modules().items()
        }

    def blame(self, *batch: Tensor, size: int) -> str:
        with torch.no_grad(), pyro.validation_enabled(False):
            return inspection.first_not_finite(*self._traces(batch, size))

    def _traces(self, batch: tuple[Tensor, ...], size: int) -> tuple[poutine.Trace, poutine.Trace]:
        """Runs the guide, and the model on what it sampled."""
        with inspection.told(batch), self.guide.noticing(), self.model.noticing():
            guide = poutine.trace(self.guide).get_trace(*batch, size=size)
            model = poutine.trace(poutine.replay(self.model, guide)).get_trace(*batch, size=size)
        return model, guide

    def _choose_estimator(self, batch: tuple[Tensor, ...], size: int) -> ELBO:
        with torch.no_grad(), kept_rng(batch[0].device), pyro.validation_enabled(False):
            model, guide = self._traces(batch, size)
        inspection.check_sites(model, guide)
        enumerated = inspection.enumerated_sites(model) or inspection.enumerated_sites(guide)
        depth = inspection.plate_depth(model, guide)
        kind = DirectEnumELBO if enumerated else DirectELBO
        self.estimator = kind(max_plate_nesting=depth)
        return self.estimator


class DirectELBO(Trace_ELBO):
    """Pyro's `Trace_ELBO`, the same loss and gradient, without reads from the device.

    Pyro's own calls `.item()` at every site, which on a GPU waits for everything before it.
    """

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        total: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
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
        for pair in self._get_traces(model, guide, args, kwargs):
            total = total + (_sum(*pair) if _all_direct(pair[1]) else _compute_dice_elbo(*pair))
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
        site["infer"].get("_enumerate_dim") is None
        and not isinstance(site["score_parts"].score_function, Tensor)
        for site in _sites(guide_trace)
    )


def _sum(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
    """The bound, with the enumerated sites of the model summed out."""
    costs, factors, _, summed, scale = _compute_model_factors(model_trace, guide_trace)
    total = sum(term.sum() for terms in costs.values() for term in terms)
    for terms in contract_tensor_tree(factors, summed).values() if factors else ():
        total = total + sum(packed.scale_and_mask(term, scale=scale).sum() for term in terms)
    return total - sum(site["packed"]["log_prob"].sum() for site in _sites(guide_trace))


def _surrogate(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
    """Has the gradient of the bound where guide sites are not reparameterised.

    The score function gives it, `log r * grad log q`, with the terms of other rows left out.
    """
    log_r = _compute_log_r(model_trace, guide_trace)
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
