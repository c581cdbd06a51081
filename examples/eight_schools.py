r"""Eight schools: the same posterior by three guides and two samplers, beside the exact one.

.. math::
    \mu \sim \mathcal{N}(0, 5), \qquad \tau \sim \mathrm{HalfCauchy}(5), \qquad
    \theta_j \sim \mathcal{N}(\mu, \tau), \qquad y_j \sim \mathcal{N}(\theta_j, \sigma_j)

    python examples/eight_schools.py    # a minute or two

The effects of coaching on the scores of a test in eight schools, each measured with an error that
is known. The model draws :math:`z_j = (\theta_j - \mu) / \tau` instead of the effects, as samplers
ask for it. Prints for each way its means and standard deviations, Pareto's k of its weights (above
0.7 the guide is not to be trusted; a sampler has none), and its seconds; draws the intervals of all
latents beside each other.

The reference is exact: given the mean and the scale, the effects are normal and are integrated out
by hand, and the other two by quadrature, in double precision.

References:
    | Estimation in Parallel Randomized Experiments (Rubin, 1981)
    | https://doi.org/10.3102/10769986006004377
    | Bayesian Data Analysis (Gelman et al., 2013), section 5.5
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from ppl_models import elbo, fit, from_pyro_mcmc, from_pyro_svi, khat, nuts

EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
GUIDES = {
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoIAFNormal": lambda model: AutoIAFNormal(model, hidden_dim=[32], num_transforms=2),
}
NAMES = ["mu", "tau", *(f"theta[{j}]" for j in range(8))]


class Found(NamedTuple):
    """What a way gives: numbers of each of `NAMES`."""

    mean: np.ndarray
    sd: np.ndarray
    quantiles: np.ndarray  # 5, 25, 50, 75 and 95 %, (5, 10)
    k: float = np.nan
    seconds: float = np.nan


def model(effect: Tensor, error: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000, help="of each guide")
    parser.add_argument("--samples", type=int, default=4000, help="draws of each guide")
    parser.add_argument("--draws", type=int, default=10000, help="of each of four chains of nuts")
    parser.add_argument(
        "--pyro-draws", type=int, default=300, help="of Pyro's one chain; 0 for none"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)

    found = {"reference": reference()}
    for name, make in GUIDES.items():
        found[name] = by_guide(make, args)
    found["nuts"] = by_nuts(args)
    if args.pyro_draws:
        found["pyro.infer.NUTS"] = by_pyro(args)
    print_table(found)
    path = args.outdir / "eight_schools.png"
    forest(found).savefig(path, dpi=120)
    print(f"\nthe intervals of all latents are in {path}")


def reference() -> Found:
    """The exact posterior by quadrature over the mean and the scale, on 400 x 2000 points."""
    effect, error = EFFECT.double().numpy(), ERROR.double().numpy()
    mu = np.linspace(-30, 40, 400)[:, None, None]
    ends = np.linspace(0, np.pi / 2, 2001)  # tau = 5 tan(u) makes the prior of u uniform
    tau = 5 * np.tan((ends[1:] + ends[:-1]) / 2)[None, :, None]
    spread = tau**2 + error**2  # of the effects that were measured, given mean and scale
    logs = -0.5 * np.log(spread) - (effect - mu) ** 2 / (2 * spread)
    log = logs.sum(-1) - mu[..., 0] ** 2 / 50
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    share = tau**2 / spread
    mean = mu + share * (effect - mu)  # of the true effects, given mean and scale
    sd = np.sqrt(share) * error
    means = [(weight * mu[..., 0]).sum(), (weight * tau[..., 0]).sum()]
    squares = [(weight * mu[..., 0] ** 2).sum(), (weight * tau[..., 0] ** 2).sum()]
    means += list(np.einsum("mt,mtj->j", weight, mean))
    squares += list(np.einsum("mt,mtj->j", weight, mean**2 + sd**2))
    draws = _draws(weight, mu[:, 0, 0], tau[0, :, 0], effect, error)
    sds = np.sqrt(np.array(squares) - np.array(means) ** 2)
    return Found(np.array(means), sds, _quantiles(draws))


def _draws(weight: np.ndarray, mu: np.ndarray, tau: np.ndarray, *data: np.ndarray) -> np.ndarray:
    """Exact draws from the points of a grid, `(100000, 10)`, of which quantiles are taken."""
    random = np.random.default_rng(0)
    places = random.choice(weight.size, 100_000, p=weight.ravel())
    m, t = mu[places // len(tau)][:, None], tau[places % len(tau)][:, None]
    share = t**2 / (t**2 + data[1] ** 2)
    noise = random.normal(size=(len(m), 8))
    theta = m + share * (data[0] - m) + np.sqrt(share) * data[1] * noise
    return np.concatenate([m, t, theta], 1)


def by_guide(make: Callable[..., Any], args: argparse.Namespace) -> Found:
    """A fitted guide, and how far it is to be trusted."""
    began = time.perf_counter()
    pyro.set_rng_seed(args.seed)
    guide, data = make(model), (EFFECT, ERROR)
    fit(elbo(model, guide), data, steps=args.steps, lr=5e-3, seed=args.seed, progress=False)
    posterior = from_pyro_svi(model, guide, *data, num_samples=args.samples, seed=args.seed)
    seconds = time.perf_counter() - began
    k = khat(model, guide, *data, num_samples=args.samples, seed=args.seed).value
    return _found(posterior, float(torch.as_tensor(k).max()), seconds)


def by_nuts(args: argparse.Namespace) -> Found:
    began = time.perf_counter()
    posterior = nuts(
        model, EFFECT, ERROR, draws=args.draws, target_accept=0.95, seed=args.seed, progress=False
    )
    return _found(posterior, np.nan, time.perf_counter() - began)


def by_pyro(args: argparse.Namespace) -> Found:
    began = time.perf_counter()
    pyro.set_rng_seed(args.seed)
    kernel, draws = pyro.infer.NUTS(model, target_accept_prob=0.95), args.pyro_draws
    mcmc = pyro.infer.MCMC(kernel, draws, warmup_steps=draws, disable_progbar=True)
    mcmc.run(EFFECT, ERROR)
    return _found(from_pyro_mcmc(mcmc), np.nan, time.perf_counter() - began)


def _found(posterior: Any, k: float, seconds: float) -> Found:
    values = [np.asarray(posterior["posterior"][n]) for n in ("mu", "tau", "theta")]
    draws = np.concatenate([x.reshape(x.shape[0] * x.shape[1], -1) for x in values], 1)
    return Found(draws.mean(0), draws.std(0), _quantiles(draws), k, seconds)


def _quantiles(draws: np.ndarray) -> np.ndarray:
    return np.quantile(draws, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)


def print_table(found: dict[str, Found]) -> None:
    exact = found["reference"]
    print(f"{'':22}{'mu':^14} {'tau':^14} {'theta[0]':^14}  furthest")
    print(f"{'way':22}" + "   mean     sd " * 3 + f" mean, sd {'k':>8} {'s':>8}")
    for name, way in found.items():
        numbers = " ".join(f"{way.mean[i]:7.2f} {way.sd[i]:6.2f}" for i in range(3))
        far = (np.abs(way.mean - exact.mean) / exact.sd).max()
        line = f"{name:22}{numbers} {far:9.3f} {way.k:8.2f} {way.seconds:8.1f}"
        print(line.replace("nan", "  -"))


def forest(found: dict[str, Found]) -> Figure:
    """The intervals of 50 and 90 % of each latent, one line for each way."""
    figure = Figure(figsize=(8, 9), layout="constrained")
    axes = figure.subplots()
    step = 0.8 / len(found)
    colors = ["black", *TABLEAU_COLORS]
    for n, (name, way) in enumerate(found.items()):
        y = np.arange(len(NAMES)) + (n - (len(found) - 1) / 2) * step
        low, lower, middle, upper, high = way.quantiles
        axes.hlines(y, low, high, color=colors[n], lw=1)
        axes.hlines(y, lower, upper, color=colors[n], lw=3)
        axes.plot(middle, y, "o", color=colors[n], ms=4, label=name)
    axes.set_yticks(np.arange(len(NAMES)), NAMES)
    axes.invert_yaxis()
    axes.set_xlabel("points of the test: medians, intervals of 50 % and of 90 %")
    axes.set_title("Eight schools: the posterior by guides and samplers")
    figure.legend(loc="outside lower center", ncols=3)
    axes.grid(axis="x", alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
