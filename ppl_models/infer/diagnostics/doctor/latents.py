"""Of each latent: whether both programs have it, alike, and a density where the guide draws it."""

from typing import Any

from pyro import poutine
from torch import Tensor

from ppl_models.infer.diagnostics.doctor.exam import Exam
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.trials import shapes
from ppl_models.infer.trials.independence import Pair
from ppl_models.infer.trials.supports import outside

RUNS = 8  # more: a site that is there every other time is overlooked once in 256


def examine(exam: Exam, traces: Pair) -> None:
    """Takes note of sites that only one program has, or that are others in the other one."""
    exam.asks(checks.check_program, traces.model, program="model")
    exam.asks(checks.check_observed, traces.model, program="model")
    exam.asks(checks.check_sites, *traces)
    for name, site in sites.latent_sites(traces.guide).items():
        if name in sites.latent_sites(traces.model):
            exam.asks(_check_shape, traces.model.nodes[name], site, program="guide")
    for text in outside(*traces):
        exam.note(text, "guide")
    _examine_runs(exam, traces)


def examine_shapes(exam: Exam, traces: Pair) -> None:
    """Takes note of sites whose batch and event are not those of rows."""
    for trace, program in zip(traces, ("model", "guide"), strict=True):
        exam.asks_of_each(shapes.check_no_outer, trace, program)
        exam.asks_of_each(shapes.check_rows, trace, program, exam.batch)
    before = exam.seen
    for trace, program in zip(traces, ("model", "guide"), strict=True):
        exam.asks_of_each(_Placed(sites.plate_depth(trace), before), trace, program)


class _Placed:
    """Whether a site is in plates, of which there are so many, where nothing was found before."""

    def __init__(self, depth: int, known: set[str | None]) -> None:
        self.depth, self.known = depth, known

    def __call__(self, trace: poutine.Trace, program: str) -> None:
        if not self.known & set(trace.nodes):
            shapes.check_placed(trace, program, self.depth)


def _check_shape(model: dict, guide: dict) -> None:
    """Raises where a latent has another shape in the guide."""
    if not isinstance(guide["value"], Tensor):
        return
    wanted, found = model["fn"].shape(), guide["value"].shape
    if wanted != found:
        raise ValueError(
            f"guide: what it draws at its site {guide['name']!r} has another shape than in the "
            f"model. Expected {_told(model, wanted)}, got {_told(guide, found)}. Try parameters of "
            f"the shape of the model's, in the same plates."
        )


def _told(site: dict, shape: Any) -> str:
    return f"{tuple(shape)} of its {sites.kind(site['fn'])}"


def _examine_runs(exam: Exam, traces: Pair) -> None:
    """Takes note of sites that are not there each time."""
    runs = [traces, *(exam.run() for _ in range(RUNS))]
    for of_one, program in zip(zip(*runs, strict=True), ("model", "guide"), strict=True):
        found = [_names(trace) for trace in of_one]
        few, many = (by(found, key=len) for by in (min, max))
        always: set[str] = set.intersection(*found)
        for name in sorted(set.union(*found) - always):
            exam.note(
                f"{program}: its site {name!r} is there in some runs and not in others. Expected "
                f"the same sites in each run, got {len(few)} of them once and "
                f"{len(many)} another time. Try a distribution over all values, or "
                f"poutine.mask, in the place of Python's `if` on what was drawn.",
                program,
            )


def _names(trace: poutine.Trace) -> set[str]:
    return {site["name"] for site in sites.random_sites(trace)}
