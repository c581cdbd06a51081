r"""Data sets as simulations, whose latents a guide draws, or a posterior that is made for each.

All draws for all data sets are one program of the number of a draw, which is given the data set
that this draw is for, so that they run side by side.

Shapes: `S` data sets, `L` draws for each, `B` draws.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppl_models.infer.diagnostics.calibration.draws import (
    Simulations,
    Some,
    gathering,
    numbers,
    ranked,
    some,
    together,
)
from ppl_models.infer.diagnostics.calibration.refits import Refits, Values
from ppl_models.infer.diagnostics.calibration.simulator import Simulator
from ppl_models.infer.evidence.joint import Joint, sampling
from ppl_models.infer.evidence.mcmc import replayed
from ppl_models.infer.programs import sites
from ppl_models.infer.programs.program import Program
from ppl_models.scoped import own_rng

FEW = 3  # data sets on which it is seen whether a guide looks at them


class DataSets:
    """Data sets that a model drew.

    Arguments:
        simulator: What draws them.
        count: How many, `S`.
        batch_size: How many draws are made at once.

    Raises:
        ValueError: If it is not known how many rows one has, or each has other sites.
    """

    def __init__(self, simulator: Simulator, count: int, batch_size: int) -> None:
        _check_size(simulator)
        self.simulator, self.count, self.batch_size = simulator, count, batch_size
        found = list(simulator.sets(count))
        self.each = [data for data, _ in found]
        self.stacked = {
            place: torch.stack([data[place] for data in self.each]) for place in simulator.places
        }
        self.latents = {
            name: torch.stack([sites.latent_sites(trace)[name]["value"] for _, trace in found])
            for name in simulator.latents
        }

    def numbers(self) -> Tensor:
        """The data of each as one vector."""
        return numbers(self.stacked.values(), self.count)

    def numbered(self, program: Program, which: Tensor) -> Callable[..., Any]:
        """A program of the number of a draw, which says which data set it is given."""
        which = which.to(self.simulator.device)

        def run(number: Tensor, size: int | None = None) -> Any:
            place, data = which.index_select(0, number[:1]), list(self.each[0])
            for argument, stacked in self.stacked.items():
                data[argument] = stacked.index_select(0, place)[0]
            return program(*data, size=self.simulator.size)

        return run

    @contextmanager
    def joint(self, guide: Callable[..., Any], which: Tensor) -> Iterator[Joint]:
        """The model, and a guide that is a program of the number of a draw."""
        number = torch.zeros(1, dtype=torch.long, device=self.simulator.device)
        model = self.numbered(self.simulator.program, which)
        with sampling(model, guide, (number,), None, numbered=True) as joint:
            yield joint

    def drawn(self, joint: Joint, names: list[str], which: Tensor) -> Iterator[Some]:
        """All draws, some at a time."""
        done, gathered = 0, gathering(joint, names)
        for _, found in joint.evaluate(gathered, len(which), self.batch_size):
            count = len(found["log_p"])
            yield some(which[done : done + count], found)
            done += count

    def weighed(self, latents: dict[str, Tensor], which: Tensor) -> Iterator[Some]:
        """Draws that were made, with their log-densities."""
        samples = {n: x.unsqueeze(0).to(self.simulator.device) for n, x in latents.items()}
        with self.joint(replayed(samples), which) as joint:
            yield from self.drawn(joint, sorted(latents), which)

    def simulations(
        self, names: list[str], draws: Callable[[], Iterator[Some]], number: Tensor
    ) -> Simulations:
        """The data sets with their latents, and draws of these."""
        latents = {name: self.latents[name] for name in names}
        truth = together(self.weighed(latents, torch.arange(self.count)))

        def others() -> tuple[dict[str, Tensor], Tensor]:
            more = DataSets(self.simulator, self.count, self.batch_size)
            return {name: more.latents[name].cpu() for name in names}, more.numbers()

        return Simulations(truth, draws, number, self.numbers(), others)


@contextmanager
def amortised(guide: Program, sets: DataSets, num_draws: int) -> Iterator[Simulations]:
    """A context with simulations that are data sets, any of which the guide takes."""
    _check_looks(guide, sets)
    which = torch.arange(sets.count).repeat_interleave(num_draws)
    with sets.joint(sets.numbered(guide, which), which) as joint:
        names = ranked(joint)
        number = torch.full((sets.count,), num_draws)
        yield sets.simulations(names, lambda: sets.drawn(joint, names, which), number)


def _check_looks(guide: Program, sets: DataSets) -> None:
    """Raises where a guide draws the same for any data: its parameters are of one data set."""
    found = []
    for data in sets.each[:FEW]:
        with own_rng("a trial", 0, sets.simulator.device), guide.noticing():
            trace = poutine.trace(guide).get_trace(*data, size=sets.simulator.size)
        drawn = sites.latent_sites(trace).items()
        found.append({n: s["value"] for n, s in drawn if not sites.in_data_plate(s)})
    names = set.intersection(*(set(values) for values in found))
    if names and all(torch.equal(found[0][n], other[n]) for other in found for n in names):
        raise ValueError(of_one_data_set(type(guide.inner).__name__))


def of_one_data_set(kind: str) -> str:
    return (
        f"guide: {kind} has parameters of the data that it was fitted to, and does not look at "
        f"others. Expected a guide that is amortised, or one that is made for each data set. Try "
        f"AmortizedNormal(num_features, num_latents) where rows have latents, or "
        f"refit=lambda model, x: ..., a function that fits a guide to x and returns it."
    )


def refitted(sets: DataSets, refits: Refits) -> Simulations:
    """Simulations that are data sets, for each of which a posterior is made."""
    found = refits.draws(sets.each)
    names = sorted(sets.latents.keys() & found[0].keys())
    latents = {name: _joined(sets.latents[name], found, name) for name in names}
    number = torch.tensor([len(next(iter(values.values()))) for values in found])
    which = torch.arange(sets.count).repeat_interleave(number)
    return sets.simulations(names, lambda: sets.weighed(latents, which), number)


def _joined(truth: Tensor, found: list[Values], name: str) -> Tensor:
    """The draws of a site for all data sets, one after the other."""
    shape = tuple(truth.shape[1:])
    for values in found:
        if name not in values or values[name].shape[1:] != shape:
            got = tuple(values[name].shape[1:]) if name in values else "none"
            raise ValueError(
                f"refit: expected draws of site {name!r} of the shape {shape} that the model "
                f"draws, got {got}. Try nuts(model, *data), or a guide."
            )
    return torch.from_numpy(np.concatenate([values[name] for values in found])).to(truth.dtype)


def _check_size(simulator: Simulator) -> None:
    """Raises where it is not known how many rows a data set has."""
    if not simulator.program.takes_size or simulator.knows_size:
        return
    shared = [n for n, s in simulator.latents.items() if not sites.in_data_plate(s)]
    names = ", ".join(map(repr, shared))
    raise ValueError(
        f"size: expected the number of rows of a data set, which is a simulation, as "
        f"{f'its rows share {names}' if shared else 'the posterior is that of all its rows'}; "
        f"got None. Try size=100."
    )
