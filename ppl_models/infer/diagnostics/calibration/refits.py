"""A posterior made anew for each data set that a model drew, several at a time.

Each is made in the same state whatever came before, and with a seed of its own, so that it does not
matter how many processes there are: parameters of the model are frozen, and afterwards its buffers
and Pyro's store are as they were.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ppl_models.infer.compiled.side_by_side import Results
from ppl_models.infer.diagnostics.calibration.thinning import thinned
from ppl_models.infer.evidence.joint import sampling
from ppl_models.infer.evidence.weights import Draws
from ppl_models.infer.programs import sites
from ppl_models.infer.programs.program import Program
from ppl_models.infer.trials.points import check_no_point
from ppl_models.processes import apart, in_turn, together
from ppl_models.processes.jobs import side_by_side
from ppl_models.prompt.bars import progress_bar
from ppl_models.scoped import get_host_rng_state, kept_rng, mix, set_host_rng_state

Values = dict[str, np.ndarray]  # of each latent, with the draws in front
AT_ONCE = 4  # data sets for each job of a process, after which it tells the others
BATCH = 4096  # draws of rows that are made at once


@dataclass(frozen=True, eq=False)
class Refits:
    """What makes posteriors.

    Attributes:
        refit: Called as `refit(model, *data)`, gives a guide or an ArviZ object.
        model: The model.
        num_draws: How many draws of each, `L`.
        num_jobs: In how many processes; None for as many as joblib's context says, or without one
            as there are cores.
        seed: Seeds all of them.
        progress: Whether to show a bar.
    """

    refit: Callable[..., Any]
    model: Callable[..., Any]
    num_draws: int
    num_jobs: int | None
    seed: int
    progress: bool = False

    def draws(self, data: list[tuple[Any, ...]]) -> list[Values]:
        """Draws for each data set, `L` or as many as chains are worth.

        Processes that compute together have some of the data sets each, and each of them its jobs.
        """
        from joblib import cpu_count

        here = together()
        jobs = self.num_jobs or max(1, cpu_count() // here.count)
        width = len(data) if here.alone else AT_ONCE * jobs
        starts = range(0, len(data), width)
        parts = [[*enumerate(data)][start : start + width] for start in starts]
        found: dict[int, Values] = {n: {} for n in range(len(data))}
        with progress_bar("refit", len(data), self.progress, unit="data set") as advance:
            of = partial(self._of_some, jobs, lambda: advance(here.count))
            for _, results in in_turn(here, "sbc", parts, of, torch.device("cpu")):
                for (number, name), values in results.items():
                    found[number][name] = values.numpy()
        return [*found.values()]

    def _of_some(
        self,
        jobs: int,
        advance: Callable[[], object],
        data: list[tuple[int, tuple[Any, ...]]],
    ) -> Results:
        """Those of some data sets, by their numbers and sites."""
        store = pyro.get_param_store().get_state()
        each = [(n, one, store) for n, one in data]
        with apart():
            done = side_by_side(self._draws, each, "refit", num_jobs=self.num_jobs, otherwise=jobs)
            found = []
            for values in done:
                found.append(values)
                advance()
        return {
            (n, name): torch.from_numpy(np.ascontiguousarray(value))
            for (n, _), values in zip(data, found, strict=True)
            for name, value in values.items()
        }

    def _draws(self, number: int, data: tuple[Any, ...], store: dict[str, Any]) -> Values:
        seed = mix(self.seed, number)
        with _alone(Program(self.model, "model"), seed, store):
            posterior = self.refit(self.model, *data)
            if callable(posterior):
                return drawn_by(self.model, posterior, data, self.num_draws, seed)
        return thinned(posterior, self.num_draws)


@contextmanager
def _alone(model: Program, seed: int, store: dict[str, Any]) -> Iterator[None]:
    """A context in which a posterior is made, after which everything is as before."""
    host, threads = get_host_rng_state(), torch.get_num_threads()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(pyro.get_param_store().scope(_copied(store)))
            stack.enter_context(kept_rng(torch.device("cpu")))
            for module in model.modules().values():
                stack.enter_context(_frozen(module))
            torch.set_num_threads(1)  # sums in the same order, and as many processes as cores
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        torch.set_num_threads(threads)
        set_host_rng_state(host)


def _copied(store: dict[str, Any]) -> dict[str, Any]:
    def copied(x: Tensor) -> Tensor:
        return x.detach().clone().requires_grad_(x.requires_grad)

    return {
        "params": {name: copied(x) for name, x in store["params"].items()},
        "constraints": dict(store["constraints"]),
    }


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """A context in which nothing trains a module, and after which its buffers are as before."""
    trained = [p for p in module.parameters() if p.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def drawn_by(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: tuple[Any, ...],
    num_draws: int,
    seed: int,
) -> Values:
    """Draws of a guide for its data, with the shapes of their sites."""
    with sampling(model, guide, data, seed) as joint:
        joint.check_points(check_no_point)
        names = sorted(joint.latent.keys() - joint.enumeration.names)

        def values(draws: Draws) -> Results:
            drawn = sites.latent_sites(draws.guide)
            found = [(name, drawn[name]) for name in names]
            return {n: joint.unstack(draws, s, s["value"], s["fn"].event_dim) for n, s in found}

        most = max(BATCH, joint.num_rows)  # a batch has all rows
        parts = [found for _, found in joint.evaluate(values, num_draws, most)]
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in names}
