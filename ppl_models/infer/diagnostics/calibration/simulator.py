r"""Data that a model draws, with the latents that it drew them from.

.. math:: z \sim p(z), \qquad x \sim p(x \mid z)

The program is run without its data, and then with what it drew: what it now observes must be what
it drew at the same sites, and all other sites must be there as before. So it is found out, and not
assumed, which arguments are data.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from ppl_models.infer.diagnostics.calibration.places import Place, named, returned, why_no_data
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.program import Program
from ppl_models.infer.trials.conditionals import pseudo_likelihoods
from ppl_models.scoped import kept_rng

TRIES = 10  # runs that must have the same sites
PROBE = 2  # rows of a first run


class Simulation(NamedTuple):
    """What one run has drawn: the arguments with it, and the trace without data."""

    data: tuple[Any, ...]
    trace: poutine.Trace


class Simulator:
    """A model that draws data.

    Arguments:
        program: The model.
        inputs: What it is given beside data, in the order of its arguments, None for data.
        size: The number of rows of a data set, where the program takes it.

    Raises:
        ValueError: If it cannot be run without data, or what it draws are no data for it, or are
            not from its joint distribution.
    """

    def __init__(self, program: Program, inputs: tuple[Any, ...], size: int | None) -> None:
        self.program, self.inputs = program, inputs
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        counts = [len(x) for x in tensors if x.dim()]
        self.knows_size = size is not None or bool(counts)
        self.size = size or next(iter(counts), PROBE)
        owned = [p for module in program.modules().values() for p in module.parameters()]
        self.device = next(iter([*owned, *tensors]), torch.zeros(())).device
        self.places: dict[int, Place] = {}  # of data among the arguments
        with kept_rng(self.device), program.noticing():
            first = self._drawn(inputs, self.size)
            observing = self._observing(first)
        self.first = Simulation(self._with_data(inputs, first), first)
        _check_is_joint(first, observing)
        self.shapes = _shapes(first)
        self.latents = sites.latent_sites(observing)
        self.by_row = bool(self.latents) and all(map(sites.in_data_plate, self.latents.values()))

    def rows(self, count: int) -> Simulation:
        """So many rows at once, each with latents of its own; inputs are taken in turn."""
        with kept_rng(self.device):
            for _ in range(TRIES):
                self._check_alike(self._drawn(self.inputs, self.size))
        which = torch.arange(count, device=self.device)
        inputs = tuple(x if x is None else x[which % len(x)] for x in self.inputs)
        trace = self._drawn(inputs, count)
        return Simulation(self._with_data(inputs, trace), trace)

    def sets(self, count: int) -> Iterator[Simulation]:
        """So many data sets, one after the other."""
        for _ in range(count):
            trace = self._drawn(self.inputs, self.size)
            self._check_alike(trace)
            yield Simulation(self._with_data(self.inputs, trace), trace)

    def _drawn(self, inputs: tuple[Any, ...], size: int) -> poutine.Trace:
        """A run without data."""
        try:
            return poutine.trace(self.program).get_trace(*inputs, size=size)
        except Exception as error:  # whatever a program does that was given no data
            took = f"size={size}" if self.program.takes_size else "no size"
            raise ValueError(
                f"model: it cannot draw data ({_first_line(error)}), run with {len(inputs)} "
                f"input(s) and {took}; its arguments are {_names(self.program.argument_names)}. "
                f"Expected a program model(x=None, size=None) with proper priors, which draws "
                f"`size` rows where x is None. Try data_plate(x, size), and what it is given "
                f"beside them as inputs, in the order of its arguments, None for data."
            ) from error

    def _observing(self, trace: poutine.Trace) -> poutine.Trace:
        """A run with what was drawn as data, whose places are found."""
        names, failed = self.program.argument_names, []
        given = dict(enumerate(self.inputs))
        free = {name: n for n, name in enumerate(names) if given.get(n) is None}
        for self.places in filter(None, (returned(trace, free), named(trace, free))):
            data = self._with_data(self.inputs, trace)
            program = poutine.replay(self.program, trace=trace)
            try:
                observing = poutine.trace(program).get_trace(*data, size=self.size)
            except Exception as error:  # whatever a program does that is given no data of its own
                failed.append(_first_line(error))
                continue
            if (reason := why_no_data(trace, observing)) is None:
                return observing
            failed.append(reason)
        raise ValueError(
            f"model: what it draws cannot be given to it as data"
            f"{f' ({failed[0]})' if failed else ''}. Its arguments are {_names(names)}, its sites "
            f"{_names(sites.latent_sites(trace))}. Expected a program model(x=None, size=None) "
            f"that observes x where it is given, and draws and returns it where not. Try `return "
            f"pyro.sample('x', ..., obs=x)`."
        )

    def _with_data(self, inputs: tuple[Any, ...], trace: poutine.Trace) -> tuple[Any, ...]:
        """The arguments of the program with what it drew in the place of data."""
        data = dict(enumerate(inputs)) | {n: get(trace).detach() for n, get in self.places.items()}
        return tuple(data.get(n) for n in range(max(data) + 1))

    def _check_alike(self, trace: poutine.Trace) -> None:
        """Raises where a run has other sites than the first one."""
        before, now = self.shapes, _shapes(trace)
        for site in sorted(before.keys() | now.keys()):
            if before.get(site) != now.get(site):
                raise ValueError(
                    f"model: site {site!r} has the shape {before.get(site, 'of none')} in one run "
                    f"and {now.get(site, 'of none')} in another. Expected the same sites in all "
                    f"runs: what is not always drawn has no rank. Try as many sites each time, "
                    f"and a mask."
                )


def _shapes(trace: poutine.Trace) -> dict[str, tuple[int, ...]]:
    return {name: tuple(s["value"].shape) for name, s in sites.reported_sites(trace).items()}


def _names(names: Any) -> str:
    return ", ".join(names) or "none"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(": ")


def _check_is_joint(drawn: poutine.Trace, observing: poutine.Trace) -> None:
    """Raises where runs of a program are not draws from its joint density."""
    random = [*sites.random_sites(drawn), *sites.random_sites(observing)]
    if factors := sorted({site["name"] for site in random if sites.is_factor(site)}):
        raise ValueError(
            f"model: its pyro.factor site(s) {_names(factors)} weigh what it draws, so that its "
            f"runs are no draws from its joint density. Expected a program of pyro.sample alone."
        )
    if pseudo := pseudo_likelihoods(observing):
        raise ValueError(
            f"model: site {next(iter(pseudo))!r} has a pseudo-likelihood, which no data are drawn "
            f"from. Expected a density of rows."
        )
    checks.check_unscaled(drawn, observing)
