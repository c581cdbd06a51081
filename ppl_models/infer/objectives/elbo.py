r"""The evidence lower bound, as an objective.

.. math::
    \log p(x) \ge \mathbb{E}_{q(z \mid x)} \left[ \log p(x, z) - \log q(z \mid x) \right]
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.effect import AutoMessenger
from pyro.infer.elbo import ELBO
from pyro.infer.trace_elbo import Trace_ELBO
from pyro.infer.trace_mean_field_elbo import TraceMeanField_ELBO
from torch import Tensor, nn

from ppl_models.checks import check_whole
from ppl_models.infer.objectives.estimators import DirectELBO, DirectEnumELBO, direct
from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.not_finite import first_not_finite
from ppl_models.infer.programs.program import Program, no_latents
from ppl_models.infer.trials.auxiliary import auxiliary_sites, check_told, is_of_pyro
from ppl_models.infer.trials.independence import (
    Pair,
    Trial,
    check_minibatches,
    known_rows,
    named_rows,
)
from ppl_models.infer.trials.masks import follow_masks
from ppl_models.infer.trials.precision import lost_digits
from ppl_models.infer.trials.shapes import (
    check_entries,
    check_no_outer,
    check_placed,
    check_rows,
    replayed,
)
from ppl_models.infer.trials.supports import outside
from ppl_models.scoped import kept_rng
from ppl_models.user_line import warn

LOOKED_AT = 2**20  # numbers of a site whose log-density is computed again in double precision


def elbo(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None = None,
    estimator: ELBO | None = None,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    warm_up: int = 0,
) -> "EvidenceLowerBound":
    r"""The evidence lower bound of a model and its guide, as an objective.

    .. math::
        -\frac{1}{N} \mathbb{E}_{q_\phi(z \mid x)}
        \left[ \log p_\theta(x, z) - \log q_\phi(z \mid x) \right]

    Arguments:
        model: A Pyro program `model(x=None, size=None)`, called as `model(*batch, size=N)`.
            One without an argument `size` is called without it.
        guide: A program over the latents of the model, called alike; None for a model whose
            latents, if any, are all enumerated. A class of autoguide, such as `AutoNormal`, or a
            `functools.partial` of one, is made for the model without its enumerated sites, and is
            `elbo(...).guide` from then on.
        estimator: An estimator of Pyro, such as `Trace_ELBO(num_particles=10)` or
            `TraceMeanField_ELBO()`. Default: one particle; discrete sites of the model marked
            for enumeration are summed over.
        beta: A weight on the KL divergence of guide and prior, against latents that are all used
            for a little (above 1), or not at all (below 1). What is then descended is not the
            bound.
        free_bits: The nats of each element of a latent vector, in the mean over the rows of a
            minibatch, below which its divergence has no gradient, so that none collapses. The
            divergence is taken by its formula. What is then descended is not the bound.
        warm_up: The steps in which the weight of the divergence rises from near 0 to `beta`, so
            that the decoder learns before latents are given up. What is descended meanwhile is
            not the bound. The objective counts them: another fit of it goes on warm.

    With one of the last three `run.history` has what was descended under the objective's name,
    `"elbo with beta=4 (not the bound)"`, and minus the bound under `"elbo"`; a validation loss is
    minus the bound. `log_evidence` knows nothing of them.

    Raises:
        TypeError: If the estimator is none.
        ValueError: If one of the last three is out of range, or `estimator` or the programs do
            not tell the divergence from the rest (enumerated sites, no reparameterisation).

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import FactorAnalysis
        >>> model, x = FactorAnalysis(5, 2), torch.randn(7, 5)
        >>> loss = elbo(model, ExactPosterior(model)).loss(x, size=70)
        >>> torch.allclose(loss, -model.evidence().log_prob(x).mean(), atol=1e-4)
        True
    """
    if (beta, free_bits, warm_up) == (1, 0, 0):
        return EvidenceLowerBound(model, guide, estimator)
    from ppl_models.infer.objectives.remedies import RemediedBound  # it is built on what is below

    return RemediedBound(model, guide, estimator, beta, free_bits, warm_up)


class EvidenceLowerBound(Objective):
    """The objective that `elbo` returns.

    Attributes:
        model: The model, as it was given.
        guide: The guide, as it was given or made; None without one.
    """

    name = "elbo"

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        estimator: ELBO | None,
    ) -> None:
        self._model = Program(model, "model")
        self.model, self.guide = model, _made(guide, model)
        self._guide = Program(no_latents if guide is None else self.guide, "guide", self._model)
        gives_loss = hasattr(estimator, "differentiable_loss") and not isinstance(estimator, type)
        if estimator is not None and not gives_loss:
            raise TypeError(
                f"estimator: expected an ELBO of Pyro that gives a differentiable loss, got "
                f"{estimator!r}. Try Trace_ELBO(num_particles=10) or TraceMeanField_ELBO()."
            )
        self.estimator = direct(estimator) or estimator
        self._knows_masks = False

    @property
    def arguments(self) -> list[str]:  # type: ignore[override]
        return self._model.argument_names

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        size = len(batch[0]) if size is None else size
        estimator = self.estimator or self._choose_estimator(batch, size)
        if not self._knows_masks:
            self._learn_masks(batch, size)
        if torch.is_grad_enabled() or isinstance(estimator, (DirectELBO, DirectEnumELBO)):
            total = estimator.differentiable_loss(self._model, self._guide, *batch, size=size)
        else:  # some of Pyro's own refuse to give a loss without a gradient
            number = estimator.loss(self._model, self._guide, *batch, size=size)
            total = torch.tensor(number, dtype=torch.float64)
        return total / (size if self._model.takes_size else len(batch[0]))

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        for program in (self._model, self._guide):
            program.check_arguments(len(batch))
        check_whole(self._model.modules().values(), data or batch)
        with torch.no_grad(), pyro.validation_enabled(False):
            traces = self._traces(batch, size)
        checks.check_observed(traces[0])
        checks.check_sites(*traces, self.estimator)
        checks.check_support(traces[0], batch, data or batch)
        rows, scaled = len(batch[0]), self._model.takes_size
        checks.check_scaling(traces[0], rows, size, scaled)
        counted = checks.of_rows(traces[0])
        for trace, name in zip(traces, ("model", "guide"), strict=True):
            check_rows(trace, name, batch)
            check_no_outer(trace, name)
            checks.check_plates(trace, name, rows, size, scaled, counted)
        with checks.noting_batch(batch):
            self._warn_of_numbers(traces)
        if self.estimator is not None:
            self._check_auxiliary(traces, batch, size)
        if isinstance(self.estimator, Trace_ELBO):
            checks.check_not_enumerated(traces[0], self.estimator)
        if isinstance(self.estimator, TraceMeanField_ELBO):
            checks.check_mean_field(*traces)
        self._learn_masks(batch, size, data, Pair(*traces))
        if rows < size and not named_rows(traces[0], traces[1], rows):
            check_entries(traces[0], batch)
            check_minibatches(self._model, self._guide, batch, size, data)
        try:
            with torch.no_grad():
                self.loss(*batch, size=size)
        except ValueError:  # Pyro's own validation names a site, and not what it lacks
            depth = sites.plate_depth(*traces)
            for trace, name in zip(traces, ("model", "guide"), strict=True):
                check_placed(trace, name, depth)
            raise

    def _warn_of_numbers(self, traces: tuple[poutine.Trace, poutine.Trace]) -> None:
        """Warns of draws that may have no density, and of densities that lose their digits."""
        with torch.no_grad(), pyro.validation_enabled(False):
            for trace in traces:
                trace.compute_log_prob()
        for text in (*outside(*traces), *lost_digits(*traces, most=LOOKED_AT)):
            warn(text)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for program in (self._model, self._guide):
            for name, parameter in program.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{program.name}.{name}", parameter

    def idle(self) -> list[str]:
        programs = [program for program in (self._model, self._guide) if program.is_whole]
        named = [(f"{p.name}.{name}", x) for p in programs for name, x in p.named_parameters()]
        return [name for name, x in named if x.requires_grad and x.grad is None]

    def modules(self) -> dict[str, nn.Module]:
        return {
            f"{program.name}.{name}".rstrip("."): module
            for program in (self._model, self._guide)
            for name, module in program.modules().items()
        }

    def blame(self, *batch: Tensor, size: int) -> str:
        with torch.no_grad(), pyro.validation_enabled(False):
            return first_not_finite(*self._traces(batch, size))

    def _traces(self, batch: tuple[Tensor, ...], size: int) -> tuple[poutine.Trace, poutine.Trace]:
        """Runs the guide, and the model on what it sampled."""
        with checks.noting_batch(batch), self._guide.noticing(), self._model.noticing():
            guide = poutine.trace(self._guide).get_trace(*batch, size=size)
            model = replayed(self._model, guide, *batch, size=size)
        return model, guide

    def _check_auxiliary(
        self, traces: tuple[poutine.Trace, poutine.Trace], batch: tuple[Tensor, ...], size: int
    ) -> None:
        """Raises where the guide draws what its latents do not tell: the loss would be no bound."""
        if is_of_pyro(self._guide.inner) or not auxiliary_sites(*traces):
            return

        def again(given: poutine.Trace) -> poutine.Trace:
            guide = poutine.replay(self._guide, trace=given)
            return poutine.trace(guide).get_trace(*batch, size=size)

        with torch.no_grad(), kept_rng(batch[0].device), pyro.validation_enabled(False):
            check_told(*traces, again)

    def _learn_masks(
        self,
        batch: tuple[Tensor, ...],
        size: int,
        data: tuple[Tensor, ...] | None = None,
        traces: Pair | None = None,
    ) -> None:
        """Has the guide count what masks of the model leave of its latents, on all data at hand."""
        if traces is None:
            with torch.no_grad(), kept_rng(batch[0].device), pyro.validation_enabled(False):
                traces = Pair(*self._traces(batch, size))
        rows, every = known_rows(batch, size), data if data and len(data[0]) == size else batch
        if rows is not None and every is not batch:
            rows = torch.arange(size, device=rows.device)
        trial = Trial(self._model, self._guide, every, rows, size)
        follow_masks(self._model, self._guide, traces, trial, len(batch[0]), trained=True)
        self._knows_masks = True

    def _choose_estimator(self, batch: tuple[Tensor, ...], size: int) -> ELBO:
        with torch.no_grad(), kept_rng(batch[0].device), pyro.validation_enabled(False):
            model, guide = self._traces(batch, size)
        checks.check_sites(model, guide)
        check_rows(model, "model", batch)
        check_rows(guide, "guide", batch)
        self._check_auxiliary((model, guide), batch, size)
        if not self._knows_masks:
            self._learn_masks(batch, size, traces=Pair(model, guide))
        enumerated = sites.enumerated_sites(model) or sites.marked_sites(guide)
        depth = sites.plate_depth(model, guide)
        kind = DirectEnumELBO if enumerated else DirectELBO
        self.estimator = kind(max_plate_nesting=depth)
        return self.estimator


def _made(guide: Any, model: Callable[..., Any]) -> Any:
    """The guide itself; of a class of autoguide, one that is made for the model."""
    kind = guide.func if isinstance(guide, partial) else guide
    if not (isinstance(kind, type) and issubclass(kind, (AutoGuide, AutoMessenger))):
        return guide
    return guide(poutine.block(model, hide_fn=_is_summed_over))


def _is_summed_over(site: dict) -> bool:
    """Whether a site is marked for enumeration, so that no guide is to draw it."""
    marked = site["type"] == "sample" and site["infer"].get("enumerate")
    return bool(marked) and not site["is_observed"]
