r"""Whether the evidence that a model knows is that of the program that runs.

.. math::
    \log p(x) = \log \sum_k p(x, k) = \log p(x, z) - \log p(z \mid x)

where `k` are latents that the program enumerates, and `z` one of which it knows the posterior: for
a few rows the program itself says what their evidence is. Of other latents the draws of a guide
say so within an error,

.. math::
    \hat p(x) = \frac1S \sum_s \frac{p(x, z_s)}{q(z_s \mid x)}, \qquad
    \mathbb{E}\, \hat p(x) = p(x), \qquad \Pr[\hat p(x) > e^t p(x)] \le e^{-t} ,

so that a number well below it is wrong, whatever the guide. One well above it is either wrong, or
the guide leaves out a part of the posterior, as it does with one of two modes: nobody can tell.

Shapes: `B` rows, `S` draws.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ppl_models.infer.evidence.exact.closed_forms import is_of_its_program
from ppl_models.infer.evidence.joint import sampling
from ppl_models.infer.trials.points import check_no_point
from ppl_models.processes import apart
from ppl_models.scoped import kept_host_rng, own_draws
from ppl_models.user_line import warn

FEW = 8  # rows that are compared
DRAWS = 1000  # of a guide
ERRORS = 5.0  # of a number by draws, which it may be off by
CHANCE = 14.0  # nats, by which it is too high once in a million times
ALIKE = 0.2  # of the draws, to which they are as good at least where their mean is known
UNSEEN = 0.014  # the most that draws of a share which a thousand do not meet may lower the mean by


def is_exact(model: Any, guide: Callable[..., Any] | None, x: Tensor) -> bool:
    """Whether `model.evidence()` may be taken for the evidence of the program.

    Where the program cannot tell, as its latents take a guide, it is taken if both were written
    together, the class that has `evidence()` having `forward`, too, and draws of a guide, if there
    is one, do not contradict it.

    Raises:
        ValueError: If it may not, and there is no guide to draw the latents from instead.
    """
    rows = few(x)
    both = _compare(model, rows)
    if both and not both.agree:
        both = _in_double(model, rows) or both  # what differs may be rounding
    name = type(model).__name__
    if both and both.agree:
        return True
    if both:
        _warn(name, rows, both.known, f"{both.found.sum():.6g} by the program")
        return False
    if is_of_its_program(model, "evidence"):
        weighed = _weighed(model, guide, rows) if guide is not None else None
        if weighed is None:
            return True
        error = weighed.variance.sum().sqrt()
        found = f"{weighed.found.sum():.6g} ± {error:.2g} by draws of the guide"
        if weighed.is_above:
            _warn(name, rows, weighed.known, f"{found}, which is a lower bound")
            return False
        if weighed.is_below:
            warn(
                f"log_evidence: {len(rows)} row(s) have {weighed.known.sum():.6g} nats by "
                f"{name}.evidence(), which is taken, and {found}. Either it is of another program, "
                f"or the guide leaves out a part of the posterior, such as a mode. Try a "
                f"posterior(x) in {name}, which the two are compared by, or another guide."
            )
        return True
    if guide is None:
        raise ValueError(
            f"model: {name} inherits evidence() and has another program than the class that it is "
            f"of, and without a guide the two cannot be compared. Try an evidence() in {name}, or "
            f"a guide, such as AmortizedNormal(num_features, num_latents)."
        )
    return False


def _warn(name: str, rows: Tensor, known: Tensor, found: str) -> None:
    warn(
        f"log_evidence: {name}.evidence() is not of the program that runs: {len(rows)} row(s) have "
        f"{known.sum():.6g} nats by it, {found}, whose number is taken. Try an evidence() of this "
        f"program in {name}."
    )


def few(x: Tensor) -> Tensor:
    """The rows that are compared."""
    return x[:: max(1, len(x) // FEW)][:FEW]


class Both(NamedTuple):
    """The log evidence of rows by the closed form and by the program, `(B,)`, or of all, `(1,)`."""

    known: Tensor
    found: Tensor
    size: Tensor  # of the terms that the program sums

    @property
    def agree(self) -> bool:
        error = (self.known - self.found).abs()
        return bool(((error <= 1e-4 * self.size) | (self.known == self.found)).all())


class Weighed(NamedTuple):
    """The log evidence of rows by the closed form and by draws of a guide, or of all, as `Both`."""

    known: Tensor
    found: Tensor
    variance: Tensor  # of what is found
    size: Tensor  # of the terms that the program sums
    alike: bool  # whether the weights are so alike that the variance is that of their mean

    @property
    def is_above(self) -> bool:
        """Whether the draws show a row, or all together, to have more than is known."""
        above, near = self._apart()
        return bool((above > (near + UNSEEN if self.alike else near + CHANCE)).any())

    @property
    def is_below(self) -> bool:
        """Whether draws of weights that are alike, which a part may yet lack, have less."""
        above, near = self._apart()
        return self.alike and bool((above < -near).any())

    def _apart(self) -> tuple[Tensor, Tensor]:
        """By how much draws are above what is known, and what chance and rounding may do to it."""
        above, variance, size = (
            torch.cat([x, x.sum(0, keepdim=True)])
            for x in (self.found - self.known, self.variance, self.size)
        )
        return above, ERRORS * variance.sqrt() + 1e-4 * size


def _weighed(model: Any, guide: Any, x: Tensor) -> Weighed | None:
    """Both, or None where the guide has no draws of these rows, or no density of them.

    It is a copy that is run, as a guide may make its parameters in the first run, of these rows.
    """
    if isinstance(guide, AutoGuide):  # of the rows, or of the number of them, that it was fitted to
        return None
    try:
        with _without_a_trace(x), sampling(model, copy.deepcopy(guide), (x,), seed=0) as joint:
            joint.check_points(check_no_point)
            joint.check_known()
            draws = joint.draw(joint.all_rows, DRAWS)
            known = model.evidence().log_prob(x).double().cpu()
    except Exception:  # whatever a guide does: it was not asked for
        return None
    log_weight = draws.log_weight.double().cpu()  # (S, B), or (S, 1) of all rows
    found = log_weight.logsumexp(0) - math.log(DRAWS)
    if not found.isfinite().all():  # no draw is where the posterior is
        return None
    weight = (log_weight - found).exp()
    known = known if len(found) == len(known) else known.sum(0, keepdim=True)
    size = 1 + draws.log_p.abs().mean(0).double().cpu()
    alike = bool((weight.square().mean(0) <= 1 / ALIKE).all())
    return Weighed(known, found, weight.var(0) / DRAWS, size, alike)


@contextmanager
def _without_a_trace(x: Tensor) -> Iterator[None]:
    """A context that says nothing, alike on each process, and after which all is as it was."""
    store = pyro.get_param_store()
    with ExitStack() as stack:
        stack.enter_context(apart())
        stack.enter_context(kept_host_rng())
        stack.enter_context(own_draws("a trial", 0, x.device))
        stack.enter_context(store.scope(copy.deepcopy(store.get_state())))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def _compare(model: Any, x: Tensor) -> Both | None:
    """Both, or None where the program cannot tell without a guide."""
    try:
        with sampling(model, None, (x,), seed=0) as joint:
            draws = joint.draw(joint.all_rows, 1)
            known = model.evidence().log_prob(x).double().cpu()
    except ValueError:  # latents that nothing draws, or a posterior that is of another program
        return None
    found = draws.log_weight[0].cpu()
    known = known if len(found) == len(known) else known.sum(0, keepdim=True)
    return Both(known, found, 1 + draws.log_p[0].abs().cpu())


def _in_double(model: Any, x: Tensor) -> Both | None:
    try:
        return _compare(copy.deepcopy(model).double(), x.double() if x.is_floating_point() else x)
    except Exception:  # no module, or one that cannot be copied, or has no float64
        return None
