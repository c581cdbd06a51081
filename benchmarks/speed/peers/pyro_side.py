"""Steps by `pyro.infer.SVI` and by this library, of the programs of `benchmarks.speed.steps`."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from benchmarks.speed.peers.ways import Data, tenth
from benchmarks.speed.steps import Case, cases, registered
from ppl_models import SVI, elbo, fit


def case_of(name: str) -> Case:
    return next(case for case in cases("cpu") if case.name == name)


class Stochastic:
    """An SVI of Pyro's kind, with a store of parameters of its own: names are shared by all."""

    def __init__(self, kind: Callable[..., Any], name: str, data: Data) -> None:
        case = case_of(name)
        loss = TraceEnum_ELBO(max_plate_nesting=1) if case.enumerated else Trace_ELBO()
        self.data, self.store = tuple(map(torch.from_numpy, data)), pyro.get_param_store()
        with self.store.scope() as self.parameters:
            torch.manual_seed(0)
            model, guide = map(registered, case.make())
            self.svi = kind(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)

    def __call__(self, steps: int) -> float:
        with self.store.scope(self.parameters):
            losses = self.losses(steps)
        return float(np.mean(losses[-tenth(steps) :])) / len(self.data[0])

    def losses(self, steps: int) -> Any:
        return [self.svi.step(*self.data) for _ in range(steps)]


class Run(Stochastic):
    """The same by `run`, which `ppl_models.SVI` has."""

    def losses(self, steps: int) -> Any:
        return np.asarray(self.svi.run(steps, *self.data).losses)


class Clock:
    """Stands where `fit` has its progress bar, and notes when how many steps were done."""

    def __init__(self) -> None:
        self.notes = [(0, time.perf_counter())]

    def __enter__(self) -> "Clock":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def n(self) -> int:
        """The steps done."""
        return self.notes[-1][0]

    def update(self, steps: int = 1) -> None:
        self.notes.append((self.n + steps, time.perf_counter()))

    def set_postfix(self, *shown: Any, **options: Any) -> None:
        return None

    def set_description(self, *shown: Any, **options: Any) -> None:
        return None

    def per_step(self, after: int) -> float:
        """The seconds of a step after the first ones; zero where nothing was noted there."""
        first, *rest = (note for note in self.notes if note[0] >= after)
        return (rest[-1][1] - first[1]) / (rest[-1][0] - first[0]) if rest else 0.0


class Fit:
    """Whole runs of `fit`, all the rows in each step."""

    block = 100

    def __init__(self, name: str, data: Data, **options: Any) -> None:
        torch.manual_seed(0)
        self.objective = elbo(*case_of(name).make())
        self.data, self.options = tuple(map(torch.from_numpy, data)), options

    def __call__(self, steps: int) -> float:
        run = fit(self.objective, self.data, steps=steps, progress=False, **self.options)
        return float(np.mean(run.history["loss"][-tenth(steps) :]))

    def per_step(self, steps: int) -> float:
        """The seconds of a step, in a run of twice as many of which the first half may compile."""
        clock = Clock()
        with patch("ppl_models.infer.training.fit.tqdm", lambda **options: clock):
            self(2 * steps)
        return clock.per_step(after=steps)


pyro_svi = partial(Stochastic, pyro.infer.SVI)
svi = partial(Stochastic, partial(SVI, compile=True))
svi_run = partial(Run, SVI) if "run" in vars(SVI) else None  # Pyro's own is another thing
fit_default = Fit
fit_eager = partial(Fit, compile=False)
fit_compiled = partial(Fit, compile=True)
