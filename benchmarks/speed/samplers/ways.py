"""Samplers, each with the processor's seconds that it takes, to start and to draw."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro
import pyro
import torch

from benchmarks.speed.samplers import numpyro_side
from benchmarks.speed.samplers.problems import Draws, Problem
from ppl_models import nuts


class Timed(NamedTuple):
    """Draws, `(chains, draws, *)`, and seconds: of all, and of what came before the first draw."""

    draws: Draws
    whole: float
    start: float


class Watch:
    """Seconds of the processor, of all threads."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        before = time.process_time()
        yield
        self.seconds += time.process_time() - before


def ours(problem: Problem, number: int, chains: int) -> Timed:
    """Whose start holds all but the chains: tracing, compiling, comparing, and ArviZ's groups."""
    module: Any = import_module("ppl_models.infer.sampling.nuts")
    whole, sampling, sample = Watch(), Watch(), module.sample

    def timed(*args: Any) -> Any:
        with sampling.running():
            return sample(*args)

    module.sample = timed
    try:
        with whole.running():
            found = nuts(
                problem.model, *problem.data, draws=number, tune=number, chains=chains, seed=0,
                progress=False,
            )  # fmt: skip
    finally:
        module.sample = sample
    draws = {name: np.asarray(values) for name, values in found["posterior"].data_vars.items()}
    return Timed(draws, whole.seconds, whole.seconds - sampling.seconds)


def of_numpyro(problem: Problem, number: int, chains: int) -> Timed:
    """One chain after the other, for which it compiles once: its start is what the first takes
    longer than the others."""
    model: Callable[..., Any] = getattr(numpyro_side, problem.model.__name__)
    data = [jax.numpy.asarray(x.numpy()) for x in problem.data]
    kernel = numpyro.infer.NUTS(model)
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=number, num_samples=number, progress_bar=False)
    seconds, draws = [], []
    for key in range(chains):
        watch = Watch()
        with watch.running():
            mcmc.run(jax.random.PRNGKey(key), *data)
            draws.append(jax.block_until_ready(mcmc.get_samples()))
        seconds.append(watch.seconds)
    start = max(0.0, seconds[0] - float(np.mean(seconds[1:])))
    return Timed({k: np.stack([x[k] for x in draws]) for k in draws[0]}, sum(seconds), start)


def of_pyro(problem: Problem, number: int, chains: int) -> Timed:
    pyro.set_rng_seed(0)
    watch = Watch()
    with watch.running():
        kernel = pyro.infer.NUTS(problem.model)
        mcmc = pyro.infer.MCMC(kernel, number, number, num_chains=chains, disable_progbar=True)
        mcmc.run(*problem.data)
    samples = mcmc.get_samples(group_by_chain=True)
    return Timed({k: v.numpy() for k, v in samples.items()}, watch.seconds, 0.0)


torch.set_num_threads(1)
