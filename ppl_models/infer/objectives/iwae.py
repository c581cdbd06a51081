r"""The importance-weighted bound: several draws of the latents of a row, weighted together.

.. math::
    \mathcal{L}_K(x) = \mathbb{E}_{z_k \sim q(z \mid x)}
    \left[ \log \frac{1}{K} \sum_{k=1}^{K} \frac{p(x, z_k)}{q(z_k \mid x)} \right]
    \le \log p(x)

It is the ELBO with one draw, and rises to the evidence as `K` grows. Each row has weights of its
own, and what a minibatch counts for is a factor of the logarithm, not in it:
:math:`\frac{N}{B} \sum_b \log \bar w_b`, where Pyro's `RenyiELBO` has
:math:`\log \sum_k \prod_b w_{bk}^{N / B}`, which is no bound of anything.

The gradient of the guide is the noisier, beside its size, the more particles there are. The doubly
reparameterised one has the same mean, and noise that falls with them,

.. math::
    \nabla_\phi \mathcal{L}_K = \mathbb{E} \left[ \sum_k \tilde{w}_k^2 \,
    \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi} \right], \qquad
    \tilde{w}_k = \frac{w_k}{\sum_j w_j}

Shapes: `N` rows in all, `B` of them in a minibatch, `K` particles.

References:
    | Importance Weighted Autoencoders (Burda et al., 2016)
    | https://arxiv.org/abs/1509.00519
    | Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019)
    | https://arxiv.org/abs/1810.04152
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.effect import AutoMessenger
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.infer.evidence.joint import tile
from ppl_models.infer.evidence.weights import Call, Draws, Enumeration, draw
from ppl_models.infer.objectives.elbo import EvidenceLowerBound
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.once import Once, training_modes
from ppl_models.infer.programs.rows import Rows
from ppl_models.infer.trials.auxiliary import check_told
from ppl_models.infer.trials.independence import Pair, Trial, first_dependence
from ppl_models.infer.trials.masks import follow_masks
from ppl_models.infer.trials.points import check_no_point
from ppl_models.infer.trials.shapes import check_rows
from ppl_models.scoped import kept_rng


def iwae(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    num_particles: int,
    *,
    doubly_reparameterised: bool = False,
) -> "ImportanceWeightedBound":
    r"""The importance-weighted bound of a model and its guide, as an objective.

    Its loss is minus the bound, in nats per row. A model trained by it has the better evidence;
    the guide is drawn less to the posterior itself than to where the weights are, the more so the
    more particles there are. The rows are tiled to `K * B`, so that a step costs about as much as
    one of `elbo` with as many rows, less what networks of the rows take: an encoder sees each row
    once, where that gives the same draws.

    Arguments:
        model: A Pyro program whose latents belong to rows. Discrete sites marked for enumeration
            are summed over, in each weight.
        guide: Its guide, reparameterised, which takes any rows (an amortised one).
        num_particles: The number of draws of each row, `K`.
        doubly_reparameterised: Whether the gradient of the guide is the one with the least noise,
            which takes a second run of the guide. It has the same mean, and that of the model is
            the same.

    Raises:
        ValueError: From `fit`, before the first step: if latents are shared by all rows, or the
            guide has parameters for each row, or it draws what has no reparameterisation; for the
            doubly reparameterised gradient, also if its latents are functions of other sites.

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import VAE, fit
        >>> objective = iwae(VAE(4, 2), AmortizedNormal(4, 2), num_particles=5)
        >>> run = fit(objective, torch.ones(100, 4), epochs=3, batch_size=20, seed=0)
        >>> run.steps, len(run.history["loss"])
        (15, 3)
    """
    check_count(num_particles=num_particles)
    if doubly_reparameterised:
        from ppl_models.infer.objectives.doubly import DoublyReparameterisedBound  # built on this

        return DoublyReparameterisedBound(model, guide, num_particles)
    return ImportanceWeightedBound(model, guide, num_particles)


class ImportanceWeightedBound(EvidenceLowerBound):
    """The objective that `iwae` returns."""

    name = "iwae"

    def __init__(
        self, model: Callable[..., Any], guide: Callable[..., Any], num_particles: int
    ) -> None:
        super().__init__(model, guide, estimator=None)
        self.num_particles = num_particles
        self.enumeration: Enumeration | None = None  # known from the first batch on
        self._once: Once | None = None  # alike
        self._modes: tuple[bool, ...] = ()  # of training, in which networks may see a row once

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        self._check_guide()  # before a first run gives it the shape of this batch
        super().prepare(*batch, size=size, data=data)

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        if self.enumeration is None:
            self.enumeration = self._enumeration(batch)
            self._look_once(batch, self.enumeration)
        log_weights = self._log_weights(batch, self.enumeration, self._sees_once())  # (K, B)
        return math.log(self.num_particles) - log_weights.logsumexp(0).mean()

    def _look_once(self, batch: tuple[Tensor, ...], enumeration: Enumeration) -> None:
        """Finds the networks that may see each row once, whatever the number of particles."""
        once = Once(self._model, self._guide)
        with torch.no_grad(), pyro.validation_enabled(False):
            if self.num_particles > 1 and once.holds(
                lambda shared: self._log_weights(batch, enumeration, once if shared else None),
                batch[0].device,
            ):
                self._once, self._modes = once, training_modes(once.modules)

    def _sees_once(self) -> Once | None:
        """The networks that see each row once: in another mode they may drop units."""
        once = self._once
        return once if once and training_modes(once.modules) == self._modes else None

    def _log_weights(
        self, batch: tuple[Tensor, ...], enumeration: Enumeration, once: Once | None
    ) -> Tensor:
        r"""Returns :math:`\log p(x_b, z_{bk}) - \log q(z_{bk} \mid x_b)`, `(K, B)`."""
        with self._calling(batch, once) as call:
            return self._draw(call, self._guide, batch, enumeration).log_weight

    def _draw(
        self,
        call: Call,
        guide: Callable[..., Any],
        batch: tuple[Tensor, ...],
        enumeration: Enumeration,
    ) -> Draws:
        """All particles of the rows of a batch."""
        rows, device = len(batch[0]), batch[0].device
        return draw(call, self._model, guide, enumeration, self.num_particles, rows, device)

    @contextmanager
    def _calling(self, batch: tuple[Tensor, ...], once: Once | None) -> Iterator[Call]:
        """Gives what runs a program on the rows of a batch, tiled."""
        rows = len(batch[0])
        tiled = tile(batch, slice(0, rows), self.num_particles)
        size = len(tiled[0])

        def call(program: Callable[..., Any]) -> Any:
            shared = once.given(tiled, batch) if once else nullcontext()
            with Rows(None, size, size), shared:  # a guide with parameters for rows is refused
                return program(*tiled, size=size)

        try:
            yield call
        finally:
            if once:
                once.forget()  # parameters will move

    def _enumeration(self, batch: tuple[Tensor, ...]) -> Enumeration:
        """What the model enumerates. Refuses programs that have no such bound."""
        rows = len(batch[0])
        self._check_guide()
        with (
            torch.no_grad(),
            kept_rng(batch[0].device),
            pyro.validation_enabled(False),
            Rows(None, rows, rows),
        ):
            model, guide = self._traces(batch, rows)
            checks.check_sites(model, guide)

            def again(given: poutine.Trace) -> poutine.Trace:
                guide = poutine.replay(self._guide, trace=given)
                return poutine.trace(guide).get_trace(*batch, size=rows)

            check_no_point(model, guide, again)
            check_told(model, guide, again)
        for trace, program in ((model, "model"), (guide, "guide")):
            self._check_trace(trace, program, rows)
            check_rows(trace, program, batch)
        trial = Trial(self._model, self._guide, batch, None, None)
        follow_masks(self._model, self._guide, Pair(model, guide), trial, trained=True)
        self._check_independence(batch)
        return Enumeration.of(model, guide)

    def _check_guide(self) -> None:
        if isinstance(self._guide.inner, (AutoGuide, AutoMessenger)):
            raise ValueError(
                f"iwae: {type(self._guide.inner).__name__} has parameters for each row or draws "
                f"all rows together, and each row needs {self.num_particles} draws of its own. "
                f"Try an amortised guide, or elbo(model, guide)."
            )

    def _check_independence(self, batch: tuple[Tensor, ...]) -> None:
        tiled = tile(batch, slice(0, len(batch[0])), self.num_particles)
        alone, together = (Trial(self._model, self._guide, x, None, None) for x in (batch, tiled))
        found = first_dependence(alone, together, [len(batch[0]), len(tiled[0])])
        if found:
            raise ValueError(
                f"iwae: {found}: the log-density of a row depends on the other rows of its batch, "
                f"on how many there are or on their order, and the {self.num_particles} draws of "
                f"each row are rows of one batch. Try elbo(model, guide) and the whole data as one "
                f"batch, or what a row needs to know of the others as a tensor beside it."
            )

    def _check_trace(self, trace: poutine.Trace, program: str, rows: int) -> None:
        for site in sites.random_sites(trace):
            if not sites.has_entries(site, rows):
                plate = any(frame.name == "data" for frame in site["cond_indep_stack"])
                whose = "is in a plate 'data' of others than" if plate else "is shared by all"
                raise ValueError(
                    f"iwae: site {site['name']!r} of the {program} {whose} rows, so that "
                    f"no row has a weight of its own, and the weights of a minibatch are none of "
                    f"the whole data. Try elbo(model, guide) to train, and log_evidence, which "
                    f"weighs the whole data."
                )
            if program == "guide" and not getattr(site["fn"], "has_rsample", False):
                raise ValueError(
                    f"iwae: site {site['name']!r} of the guide is drawn from a "
                    f"{type(site['fn']).__name__} without a reparameterisation, and gradients "
                    f"would miss a part. Try infer={{'enumerate': 'parallel'}} in the model and "
                    f"no such site in the guide, or elbo(model, guide)."
                )
