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
    """Its kernel in one compiled loop, chain after chain; `MCMC.run` would compile each time."""
    model: Callable[..., Any] = getattr(numpyro_side, problem.model.__name__)
    data = tuple(jax.numpy.asarray(x.numpy()) for x in problem.data)
    kernel, start, drawing, found = numpyro.infer.NUTS(model), Watch(), Watch(), []

    def step(state: Any, _: None) -> tuple[Any, Any]:
        state = kernel.sample(state, data, {})
        return state, state.z

    def chain(state: Any) -> Any:
        return jax.lax.scan(step, state, None, 2 * number)

    with start.running():
        keys = jax.random.split(jax.random.PRNGKey(0), chains)
        states = [kernel.init(key, number, None, data, {}) for key in keys]
        run = jax.jit(chain).lower(states[0]).compile()
        constrained = jax.jit(jax.vmap(kernel.postprocess_fn(data, {})))
    for state in states:
        with drawing.running():
            draws = constrained({k: z[number:] for k, z in run(state)[1].items()})
            found.append({k: np.asarray(x) for k, x in draws.items()})
    names = found[0].keys()
    whole = start.seconds + drawing.seconds
    return Timed({k: np.stack([x[k] for x in found]) for k in names}, whole, start.seconds)


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
