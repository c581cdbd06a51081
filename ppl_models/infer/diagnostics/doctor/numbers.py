"""Of the numbers: their kinds, whether they are finite and inside, their digits, their slopes."""

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_models.infer.diagnostics.doctor.exam import Exam
from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.not_finite import rows_of
from ppl_models.infer.trials.independence import Pair
from ppl_models.infer.trials.precision import check_precision


def examine(exam: Exam, traces: Pair) -> None:
    """Takes note of numbers outside a support, of mixed precisions, and of lost digits."""
    for trace, program in zip(traces, ("model", "guide"), strict=True):
        for site in sites.random_sites(trace):
            exam.asks(_check_kinds, site, program, program=program)
    exam.asks_of_each(_Support(exam), traces.model)
    known = exam.seen
    for trace, program in zip(traces, ("model", "guide"), strict=True):
        for site in sites.random_sites(trace):
            if site["name"] not in known:
                exam.asks(_check_density, site, program, program=program)


def examine_slopes(exam: Exam, objective: Objective) -> None:
    """Takes note of parameters that the loss does not depend on."""
    named = {
        name: x
        for name, x in {id(x): (name, x) for name, x in _parameters(exam)}.values()
        if x.requires_grad
    }
    if not named:
        return
    with exam.rows():
        try:
            loss = objective.loss(*exam.batch, size=exam.size)
            slopes = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        except Exception as error:  # whatever a program does
            if not exam.findings:  # which have said it
                exam.note(str(error).partition("\n")[0])
            return
    for name, slope in zip(named, slopes, strict=True):
        if slope is None:
            _note_parameter(exam, name)


def _parameters(exam: Exam) -> Iterator[tuple[str, Tensor]]:
    for program in filter(lambda program: program.is_whole, (exam.model, exam.guide)):
        for name, parameter in program.named_parameters():
            yield f"{program.name}.{name}", parameter


def _note_parameter(exam: Exam, name: str) -> None:
    program, _, rest = name.partition(".")
    exam.note(
        f"parameter {name}: the loss does not depend on it, so that it stays as it is. Expected a "
        f"gradient, got none. Try using it in a site, without .detach(), .item() or a rounding on "
        f"the way; or .requires_grad_(False) if that is meant.",
        program,
        exam.line(rest, program),
    )


def _check_kinds(site: dict, program: str) -> None:
    """Raises where the numbers of a site have different precisions, or are on different devices."""
    where = f"site {site['name']!r} of the {program}: its numbers are"
    devices = {name: x.device for name, x in _parts(site) if x.dim()}
    if len(set(devices.values())) > 1:
        raise ValueError(
            f"{where} on more than one device. Expected one, got {_listed(devices)}. Try "
            f"x.new_zeros(...), or torch.zeros(..., device=x.device), for what is made in the "
            f"program."
        )
    kinds = {name: x.dtype for name, x in _parts(site) if x.is_floating_point()}
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"{where} of more than one precision, and digits are lost on the way. Expected one, "
            f"got {_listed(kinds)}. Try model.double() and x.double() together, or "
            f"x.new_zeros(...) for what is made in the program."
        )


def _listed(kinds: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_short(kind)}" for name, kind in kinds.items())


def _short(kind: Any) -> str:
    return str(kind).removeprefix("torch.")


def _parts(site: dict) -> Iterator[tuple[str, Tensor]]:
    """The value of a site and the parameters of its distribution, by name."""
    if isinstance(site["value"], Tensor):
        yield "its value", site["value"]
    inner = sites.base(site["fn"])
    while hasattr(inner, "base_dist"):
        inner = inner.base_dist
    for name in getattr(inner, "arg_constraints", {}):
        if isinstance(value := inner.__dict__.get(name), Tensor):
            yield name, value


class _Support:
    """Whether values are inside of supports: of data, and of what a guide draws."""

    def __init__(self, exam: Exam) -> None:
        self.batch = exam.batch

    def __call__(self, trace: poutine.Trace) -> None:
        checks.check_support(trace, self.batch, self.batch)


def _check_density(site: dict, program: str) -> None:
    """Raises where a log-density is not finite, or loses its digits."""
    alone = poutine.Trace()
    alone.add_node(site["name"], **site)
    with pyro.validation_enabled(False):
        alone.compute_log_prob()
    density = alone.nodes[site["name"]]["unscaled_log_prob"]
    bad = ~density.isfinite() & (True if site["mask"] is None else site["mask"])
    if bad.any():
        rows = rows_of(site, bad)
        raise ValueError(
            f"site {site['name']!r} of the {program}: its log-density is "
            f"{density[bad].flatten()[0].item()} at {int(bad.sum())} of {density.numel()} "
            f"places{rows}. Expected finite numbers. Try values and parameters inside of the "
            f"support of its {sites.kind(site['fn'])}."
        )
    check_precision(alone)
