"""Posteriors on which samplers are compared: data, programs in Pyro, and what is looked at.

Of what is looked at neither the labels of components nor the signs of factors change anything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models import data_plate

Draws = Mapping[str, np.ndarray]  # of each latent, `(chains, draws, *)`


@dataclass(frozen=True)
class Problem:
    """A posterior.

    Attributes:
        model: The program.
        data: What it takes.
        quantities: Numbers of each draw, `(chains, draws)`, from the latents.
        fewer: Draws of the one chain of Pyro's sampler, and as many to tune it.
    """

    model: Callable[..., Any]
    data: tuple[Tensor, ...]
    quantities: Callable[[Draws], Draws]
    fewer: int


def schools(effect: Tensor, error: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(effect)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mean + scale * z, error), obs=effect)


def logistic(x: Tensor, group: Tensor, y: Tensor) -> None:
    size = x.shape[1]
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([size]).to_event(1))
    with pyro.plate("groups", int(group.max()) + 1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    logits = (x * (mean + scale * z)[group]).sum(-1)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def mixture(x: Tensor, size: int | None = None) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(x.new_full((3,), 2.0)))
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with data_plate(x, size):
        k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[k], scale[k].unsqueeze(-1)).to_event(1), obs=x)


def markov(x: Tensor) -> None:
    with pyro.plate("states", 3):
        moves = pyro.sample("moves", dist.Dirichlet(x.new_ones(3)))
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    rows = dist.Normal(loc, scale)
    hidden = dist.DiscreteHMM(x.new_zeros(3), moves.log(), rows, duration=len(x))
    pyro.sample("x", hidden, obs=x)


def factors(x: Tensor) -> None:
    size = x.shape[1]
    loadings = pyro.sample("loadings", dist.Normal(0.0, 1.0).expand([size, 2]).to_event(2))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 0.5).expand([size]).to_event(1))
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.LowRankMultivariateNormal(loc, loadings, noise), obs=x)


def problems() -> dict[str, Problem]:
    """All of them, with data of one seed."""
    random = np.random.default_rng(0)

    def tensor(values: Any) -> Tensor:
        return torch.tensor(np.asarray(values), dtype=torch.float32)

    effects = [28.0, 8, -3, 7, -1, 1, 18, 12], [15.0, 10, 16, 11, 9, 11, 10, 18]
    group = np.arange(500) % 20
    x = np.column_stack([np.ones(500), random.normal(size=(500, 2))])
    slopes = random.normal([0.5, 1.0, -1.0], [0.7, 0.5, 0.3], size=(20, 3))
    y = random.random(500) < 1 / (1 + np.exp(-(x * slopes[group]).sum(1)))
    which = random.choice(3, 200, p=[0.5, 0.3, 0.2])
    points = np.array([[-4.0, 0], [0, 3], [4, 0]])[which] + random.normal(size=(200, 2))
    state, states = 0, []
    for _ in range(200):
        state = random.choice(3, p=np.full(3, 0.1) + 0.7 * np.eye(3)[state])
        states.append(state)
    signal = np.array([-3.0, 0, 3])[states] + 0.7 * random.normal(size=200)
    scores = random.normal(size=(200, 2)) @ random.normal(size=(2, 6))
    rows = scores + 0.7 * random.normal(size=(200, 6))
    return {
        "eight schools": Problem(schools, tuple(map(tensor, effects)), plain, 150),
        "hierarchical logistic": Problem(
            logistic, (tensor(x), torch.tensor(group), tensor(y)), plain, 50
        ),
        "Gaussian mixture": Problem(mixture, (tensor(points),), sorted_by_loc, 30),
        "hidden Markov": Problem(markov, (tensor(signal),), sorted_by_loc, 30),
        "factor analysis": Problem(factors, (tensor(rows),), covariances, 30),
    }


def plain(draws: Draws) -> Draws:
    """Each number of each latent."""
    return {
        f"{name}[{i}]": values.reshape(*values.shape[:2], -1)[..., i]
        for name, values in draws.items()
        for i in range(int(np.prod(values.shape[2:])))
    }


def sorted_by_loc(draws: Draws) -> Draws:
    """Means, and what goes with them, from the least to the largest."""
    loc = draws["loc"] if draws["loc"].ndim == 3 else draws["loc"][..., 0]
    order = loc.argsort(-1)
    found = {"loc": np.take_along_axis(loc, order, -1)}
    for name in ("weights", "scale"):
        if name in draws and draws[name].ndim == 3:
            found[name] = np.take_along_axis(draws[name], order, -1)
        elif name in draws:
            found[name] = draws[name]
    if "moves" in draws:
        stay = np.diagonal(draws["moves"], axis1=-2, axis2=-1)
        found["stay"] = np.take_along_axis(stay, order, -1)
    return plain(found)


def covariances(draws: Draws) -> Draws:
    """What loadings that are turned have in common."""
    loadings = draws["loadings"]
    rows, columns = np.triu_indices(loadings.shape[-2])
    whole = (loadings @ np.swapaxes(loadings, -1, -2))[..., rows, columns]
    return plain({"covariance": whole, "noise": draws["noise"], "loc": draws["loc"]})
