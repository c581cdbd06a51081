"""The programs of `benchmarks.speed.samplers.problems` in NumPyro."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.control_flow import scan


def schools(effect: Array, error: Array) -> None:
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = numpyro.sample("scale", dist.HalfCauchy(5.0))
    with numpyro.plate("data", len(effect)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("effect", dist.Normal(mean + scale * z, error), obs=effect)


def logistic(x: Array, group: Array, y: Array) -> None:
    size = x.shape[1]
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0).expand([size]).to_event(1))
    with numpyro.plate("groups", 20):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    logits = (x * (mean + scale * z)[group]).sum(-1)
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def mixture(x: Array) -> None:
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(3, 2.0)))
    with numpyro.plate("components", 3):
        loc = numpyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("data", len(x)):
        k = numpyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(loc[k], scale[k][..., None]).to_event(1), obs=x)


def markov(x: Array) -> None:
    with numpyro.plate("states", 3):
        moves = numpyro.sample("moves", dist.Dirichlet(jnp.ones(3)))
        loc = numpyro.sample("loc", dist.Normal(0.0, 3.0))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))

    def step(before: Array, row: Array) -> tuple[Array, None]:
        state = numpyro.sample(
            "state", dist.Categorical(moves[before]), infer={"enumerate": "parallel"}
        )
        numpyro.sample("x", dist.Normal(loc[state], scale), obs=row)
        return state, None

    start = numpyro.sample(
        "start", dist.Categorical(jnp.ones(3) / 3), infer={"enumerate": "parallel"}
    )
    scan(step, start, x)


def factors(x: Array) -> None:
    size = x.shape[1]
    loadings = numpyro.sample("loadings", dist.Normal(0.0, 1.0).expand([size, 2]).to_event(2))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 0.5).expand([size]).to_event(1))
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.LowRankMultivariateNormal(loc, loadings, noise), obs=x)
