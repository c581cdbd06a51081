"""The ways to take steps, by name. Only what a way needs is imported, when it is asked for."""

from collections.abc import Callable
from importlib import import_module

import numpy as np

Data = tuple[np.ndarray, ...]
# Takes so many steps; the mean loss of the last tenth of them, in nats per row.
Take = Callable[[int], float]

WAYS = {
    "by hand": "by_hand.eager",
    "by hand, compiled": "by_hand.compiled",
    "pyro.infer.SVI": "pyro_side.pyro_svi",
    "ppl_models.SVI, compiled": "pyro_side.svi",
    "ppl_models.SVI.run": "pyro_side.svi_run",
    "fit": "pyro_side.fit_default",
    "fit, eager": "pyro_side.fit_eager",
    "fit, compiled": "pyro_side.fit_compiled",
    "NumPyro, update": "numpyro_side.update",
    "NumPyro, scanned": "numpyro_side.scanned",
    "NumPyro, run": "numpyro_side.run",
}
# `run` compiles its loop anew each time; the default of `fit` is one of the other ways.
STEPS = [way for way in WAYS if way not in ("fit", "fit, eager", "NumPyro, run")]
TOTAL = [way for way in WAYS if way != "NumPyro, scanned"]


def tenth(steps: int) -> int:
    return max(1, steps // 10)


def maker(way: str) -> Callable[[str, Data], Take] | None:
    """What makes a `Take` of a program's name and its data; None where this library has it not."""
    module, _, function = WAYS[way].partition(".")
    return getattr(import_module(f"benchmarks.speed.peers.{module}"), function)
