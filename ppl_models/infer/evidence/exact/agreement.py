r"""Whether the evidence that a model knows is that of the program that runs.

.. math::
    \log p(x) = \log \sum_k p(x, k) = \log p(x, z) - \log p(z \mid x)

where `k` are latents that the program enumerates, and `z` one of which it knows the posterior: for
a few rows the program itself says what their evidence is.

Shapes: `B` rows.
"""

import copy
from typing import Any, NamedTuple

from torch import Tensor

from ppl_models.infer.evidence.exact.closed_forms import is_of_its_program
from ppl_models.infer.evidence.joint import sampling
from ppl_models.user_line import warn

FEW = 8  # rows that are compared


def is_exact(model: Any, x: Tensor, with_guide: bool) -> bool:
    """Whether `model.evidence()` may be taken for the evidence of the program.

    Where the program cannot tell, as its latents take a guide, it is taken if both were written
    together: the class that has `evidence()` has `forward`, too.

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
        warn(
            f"log_evidence: {name}.evidence() is not of the program that runs: {len(rows)} row(s) "
            f"have {both.known.sum():.6g} nats by it, {both.found.sum():.6g} by the program, whose "
            f"number is taken. Try an evidence() of this program in {name}."
        )
        return False
    if is_of_its_program(model, "evidence"):
        return True
    if not with_guide:
        raise ValueError(
            f"model: {name} inherits evidence() and has another program than the class that it is "
            f"of, and without a guide the two cannot be compared. Try an evidence() in {name}, or "
            f"a guide, such as AmortizedNormal(num_features, num_latents)."
        )
    return False


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
