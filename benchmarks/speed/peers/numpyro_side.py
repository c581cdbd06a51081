"""The programs of `benchmarks.speed.steps` in NumPyro, and the ways in which it takes steps."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array, lax, random
from numpyro.handlers import block
from numpyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from numpyro.infer.initialization import init_to_feasible

from benchmarks.speed.peers.ways import Data, Take, tenth

Program = Callable[..., Any]
# How many steps a compiled loop takes in one call: some tens of milliseconds.
BLOCKS = {"regression": 1000, "mixture": 500, "VAE, B=16": 200, "VAE, B=128": 20}


def regression(x: Array, y: Array) -> None:
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(x @ weights, scale), obs=y)


def mixture(x: Array) -> None:
    num_features = x.shape[1]
    weights = numpyro.sample("weights", dist.Dirichlet(jax.numpy.ones(5)))
    with numpyro.plate("components", 5):
        loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([num_features]).to_event(1))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5).expand([num_features]).to_event(1))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def linear(name: str, x: Array, width: int) -> Array:
    """A layer that starts as torch's does."""
    edge = len(x.T) ** -0.5

    def start(*shape: int) -> Callable[[Array], Array]:
        return lambda key: random.uniform(key, shape, minval=-edge, maxval=edge)

    weight = numpyro.param(f"{name}.weight", start(x.shape[1], width))
    return x @ weight + numpyro.param(f"{name}.bias", start(width))


def vae(latents: int, hidden: int) -> tuple[Program, Program]:
    def perceptron(name: str, x: Array, width: int) -> Array:
        return linear(f"{name}.2", jax.numpy.tanh(linear(f"{name}.0", x, hidden)), width)

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([latents]).to_event(1))
            logits = perceptron("decoder", z, x.shape[1])
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            loc, log_scale = jax.numpy.split(perceptron("encoder", x, 2 * latents), 2, axis=1)
            numpyro.sample("z", dist.Normal(loc, jax.numpy.exp(log_scale)).to_event(1))

    return model, guide


def programs(name: str) -> tuple[Program, Program]:
    """Model and guide of a case of `benchmarks.speed.steps`, by its name."""
    if name.startswith("VAE"):
        latents, hidden = (int(part.partition("=")[2]) for part in name.split(",")[-2:])
        return vae(latents, hidden)
    if name.startswith("mixture"):
        start = init_to_feasible  # where Pyro's starts
        return mixture, AutoNormal(block(mixture, hide=["z"]), init_loc_fn=start)
    kind = AutoMultivariateNormal if "Multivariate" in name else AutoNormal
    return regression, kind(regression, init_loc_fn=init_to_feasible)


def made(name: str) -> SVI:
    model, guide = programs(name)
    loss = TraceEnum_ELBO() if name.startswith("mixture") else Trace_ELBO()
    return SVI(model, guide, numpyro.optim.Adam(1e-3), loss)


def run(name: str, data: Data) -> Take:
    """A run as a user has it."""
    svi = made(name)

    def take(steps: int) -> float:
        found = svi.run(random.PRNGKey(0), steps, *data, progress_bar=False)
        return float(found.losses[-tenth(steps) :].mean()) / len(data[0])

    return take


def update(name: str, data: Data) -> Take:
    """Steps in a loop of Python, each a call of a compiled function."""
    svi = made(name)
    state, turn = svi.init(random.PRNGKey(0), *data), jax.jit(svi.update)

    def take(steps: int) -> float:
        nonlocal state
        losses = []
        for _ in range(steps):
            state, loss = turn(state, *data)
            losses.append(loss)
        return float(np.mean(jax.device_get(losses[-tenth(steps) :]))) / len(data[0])

    return take


def scanned(name: str, data: Data) -> Take:
    """Steps in whole blocks, each a call of a compiled loop."""
    svi = made(name)
    state = svi.init(random.PRNGKey(0), *data)
    length = next(size for start, size in BLOCKS.items() if name.startswith(start))

    @jax.jit
    def turn(state: Any, *data: Array) -> tuple[Any, Array]:
        return lax.scan(lambda state, _: svi.update(state, *data), state, length=length)

    def take(steps: int) -> float:
        nonlocal state
        losses = []
        for _ in range(max(1, steps // length)):
            state, values = turn(state, *data)
            losses.append(values)
        ends = np.concatenate(jax.device_get(losses))[-tenth(steps) :]
        return float(ends.mean()) / len(data[0])

    take.block = length  # type: ignore[attr-defined]
    return take
