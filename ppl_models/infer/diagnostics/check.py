r"""What is wrong with a model and its guide, before either is fitted: the doctor of plates.

.. math::
    \log p(x_{1:N}, z_{1:N} \mid \theta) = \sum_{n=1}^{N} \log p(x_n, z_n \mid \theta)

is what a program says, by its plates, and few mistakes in it raise an error. Each of these is found
by running both programs: as they are, on half of the rows, on rows in another order, in double
precision, and once with gradients.

What it catches: rows compared with each other (an N x N broadcast), a missing `to_event`, a plate
that does not know how many rows there are, sites outside of their plates, latents that the guide
lacks, draws in another shape or from another support, masks of one program alone, rows that depend
on each other, more than one precision or device, values outside of a support, log-densities that
are not finite or lose their digits in float32, sites that come and go, and parameters that no loss
depends on. What it cannot: a model that is sound and not the one that was meant. See `khat` and
`sbc` for a guide that is sound and does not fit.

What takes no time of these `fit` asks by itself, of its first batch: it ends at the first that
makes its loss another number, and warns of what may be meant, such as a support, a precision or an
idle parameter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import Tensor

from ppl_models.checks import allows_missing, check_devices, check_tensors
from ppl_models.infer.diagnostics.doctor import latents, numbers, rows
from ppl_models.infer.diagnostics.doctor.exam import Exam
from ppl_models.infer.diagnostics.doctor.finding import Finding
from ppl_models.infer.objectives.elbo import EvidenceLowerBound, elbo
from ppl_models.infer.programs.program import Program, no_latents
from ppl_models.infer.programs.tables import as_rows
from ppl_models.infer.trials.independence import Pair
from ppl_models.prompt.lines import in_words
from ppl_models.prompt.tables import table


@dataclass(frozen=True)
class Check:
    """What was found in a model and its guide. It is true where that is nothing.

    Attributes:
        findings: What is wrong, one after the other.

    Example:
        >>> print(Check())
        nothing wrong was found
        >>> bool(Check())
        True
    """

    findings: tuple[Finding, ...] = ()

    __repr__ = in_words

    def __bool__(self) -> bool:
        return not self.findings

    def _repr_html_(self) -> str:
        names = ["what", "site", "line", "expected", "got", "remedy"]
        lines = [[getattr(found, name) or "" for name in names] for found in self.findings]
        head = [*names[:-1], "try"]
        return table(head, lines, str(self).partition("\n")[0]) if lines else escape(str(self))

    def __str__(self) -> str:
        if self:
            return "nothing wrong was found"
        noun = "thing is" if len(self.findings) == 1 else "things are"
        parts = [f"{n}. {found}" for n, found in enumerate(self.findings, 1)]
        return "\n".join([f"{len(self.findings)} {noun} wrong", *parts])


def check(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *batch: Tensor,
    size: int | None = None,
) -> Check:
    """Returns what is wrong with a model and its guide, each with the line of its statement.

    Random numbers are left as they were, and so are parameters; what programs create in a first
    run stays, as parameters of an autoguide do.

    Arguments:
        model: A Pyro program.
        guide: Its guide, or a class of autoguide; None without one.
        batch: Some rows, as the model takes them.
        size: The number of rows in all. Default: those of the batch, which is then cut in halves
            to see whether a minibatch would count as it should.

    Raises:
        TypeError: If one is no program, or there are no rows.
        ValueError: If `size` is less than the rows.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(x=None, size=None):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         return pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> found = check(model, AutoNormal, torch.tensor([3.0, 1.0, 0.0, 2.0]))
        >>> bool(found), found.findings[0].site
        (False, 'x')
    """
    objective = elbo(model, guide)
    exam = Exam(*_programs(objective), *_rows(objective, batch, size))
    if _examine_data(exam):
        with exam.quietly():
            _examine_programs(exam, objective)
    return Check(tuple(exam.findings))


def _programs(objective: EvidenceLowerBound) -> tuple[Program, Program]:
    model = Program(objective.model, "model")
    guide = no_latents if objective.guide is None else objective.guide
    return model, Program(guide, "guide", model)


def _rows(
    objective: EvidenceLowerBound, batch: tuple[Any, ...], size: int | None
) -> tuple[tuple[Tensor, ...], int]:
    """The batch as tensors, and the number of rows in all."""
    found = as_rows(batch, objective.modules().values())
    if not found or not all(isinstance(x, Tensor) and x.dim() for x in found):
        got = ", ".join(type(x).__name__ for x in found) or "none"
        raise TypeError(
            f"check: expected tensors of rows, as the model takes them, got {got}. Try "
            f"check(model, guide, x), or check(model, guide, x, y) for rows with labels."
        )
    count = len(found[0])
    if size is not None and (not isinstance(size, int) or size < count):
        raise ValueError(
            f"size: expected the number of rows in all, {count} or more, got {size!r}. Try "
            f"size=None for a batch that is all the rows."
        )
    return found, size or count


def _examine_data(exam: Exam) -> bool:
    """Takes note of data that no program could take; returns whether it is worth to run any."""
    modules = exam.modules
    for program in (exam.model, exam.guide):
        exam.asks(program.check_arguments, len(exam.batch))
    exam.asks(check_tensors, exam.batch, allows_missing(modules.values()))
    exam.asks(check_devices, modules, exam.batch, "model.to(x.device)")
    return not exam.findings


def _examine_programs(exam: Exam, objective: EvidenceLowerBound) -> None:
    guide = exam.tries(exam.guide)
    model = exam.tries(exam.model, guide)
    if guide is None or model is None:
        return
    traces = Pair(model, guide)
    latents.examine(exam, traces)
    latents.examine_shapes(exam, traces)
    numbers.examine(exam, traces)
    rows.examine(exam, traces)
    numbers.examine_slopes(exam, objective)
