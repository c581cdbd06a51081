r"""
Eight schools by guides and samplers
====================================

How much did coaching help in each of eight schools, and which way of inference finds the posterior:
three guides, two samplers, or none of them?

The effects of coaching on the scores of a test were measured with errors :math:`\sigma_j` that are
known [1]_. The schools are thought to be alike to a degree that is unknown, too [2]_:

.. math::
    \mu &\sim \mathcal{N}(0, 5) \\
    \tau &\sim \mathrm{HalfCauchy}(5) \\
    z_j &\sim \mathcal{N}(0, 1), \qquad \theta_j = \mu + \tau z_j \\
    y_j &\sim \mathcal{N}(\theta_j, \sigma_j), \qquad j = 1, \dots, 8

Samplers and guides are better at :math:`z_j` than at :math:`\theta_j` itself, whose scale changes
with :math:`\tau`.

Takes 45 seconds on two cores: ``python examples/eight_schools.py``. Pictures go into
``outputs/``.
It needs nutpie: ``pip install '.[mcmc]'`` in a checkout.

.. [1] `Estimation in Parallel Randomized Experiments
       <https://doi.org/10.3102/10769986006004377>`_ (Rubin, 1981)
.. [2] Bayesian Data Analysis (Gelman et al., 2013), section 5.5
"""

# %%
# The data and the model
# ----------------------
# Effects and errors are in points of the test.

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import elbo, fit, from_pyro_mcmc, from_pyro_svi, khat, nuts

parser = argparse.ArgumentParser(description="The posterior of eight schools, by several ways.")
parser.add_argument("--steps", type=int, default=2000, help="of each guide")
parser.add_argument("--samples", type=int, default=4000, help="draws of each guide")
parser.add_argument("--draws", type=int, default=10000, help="of each of four chains of nuts")
parser.add_argument("--pyro-draws", type=int, default=100, help="of Pyro's one chain; 0 for none")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")

effect = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])  # y
error = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])  # sigma
names = ["mu", "tau", *(f"theta[{school}]" for school in "ABCDEFGH")]


def model(effect, error):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


# %%
# The exact posterior
# -------------------
# Given the mean and the scale, the effects are normal, and are integrated out by hand:
#
# .. math::
#     y_j \mid \mu, \tau &\sim \mathcal{N}(\mu, \tau^2 + \sigma_j^2) \\
#     \theta_j \mid y_j, \mu, \tau &\sim \mathcal{N}(\mu + s_j (y_j - \mu), s_j \sigma_j^2), \qquad
#     s_j = \frac{\tau^2}{\tau^2 + \sigma_j^2}
#
# (variances, here). The mean and the scale are summed over a grid of 400 x 2000 points, in double
# precision.


class Found(NamedTuple):
    """What a way gives: numbers of each of `names`."""

    mean: np.ndarray
    sd: np.ndarray
    quantiles: np.ndarray  # 5, 25, 50, 75 and 95 %, (5, 10)
    k: float = np.nan
    seconds: float = np.nan


def quantiles(draws):
    return np.quantile(draws, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)


y, sigma = effect.double().numpy(), error.double().numpy()
mu = np.linspace(-30, 40, 400)[:, None, None]
ends = np.linspace(0, np.pi / 2, 2001)  # tau = 5 tan(u) makes the prior of u uniform
tau = 5 * np.tan((ends[1:] + ends[:-1]) / 2)[None, :, None]
variance = tau**2 + sigma**2  # of what was measured, given mean and scale
log = (-0.5 * np.log(variance) - (y - mu) ** 2 / (2 * variance)).sum(-1) - mu[..., 0] ** 2 / 50
weight = np.exp(log - log.max())
weight /= weight.sum()
share = tau**2 / variance  # s
mean = mu + share * (y - mu)
squares = [mu[..., 0] ** 2, tau[..., 0] ** 2, *np.moveaxis(mean**2 + share * sigma**2, -1, 0)]
means = [mu[..., 0], tau[..., 0], *np.moveaxis(mean, -1, 0)]
means, squares = (np.array([(weight * f).sum() for f in which]) for which in (means, squares))

# Quantiles are those of 100,000 draws from the points of the grid, and of effects given them.
random = np.random.default_rng(0)
places = random.choice(weight.size, 100_000, p=weight.ravel())
row, column = np.unravel_index(places, weight.shape)
theta = mean[row, column] + np.sqrt(share[0, column]) * sigma * random.normal(size=(len(row), 8))
drawn = np.concatenate([mu[row, 0], tau[0, column], theta], 1)  # (100000, 10)
found = {"reference": Found(means, np.sqrt(squares - means**2), quantiles(drawn))}

# %%
# Three guides
# ------------
# Pyro's, from one that takes all latents as independent to a normalising flow. Pareto's
# :math:`\hat k` of a guide's importance weights says whether it can be trusted: above 0.7 it
# cannot.


def summary(posterior, k=np.nan, seconds=np.nan):
    values = [np.asarray(posterior["posterior"][name]) for name in ("mu", "tau", "theta")]
    draws = np.concatenate([x.reshape(x.shape[0] * x.shape[1], -1) for x in values], 1)
    return Found(draws.mean(0), draws.std(0), quantiles(draws), k, seconds)


data = effect, error
options_of_fit = {"lr": 1e-2, "schedule": CosineAnnealingLR, "seed": args.seed, "progress": False}
for make in (AutoNormal, AutoMultivariateNormal, AutoIAFNormal):
    options = {"hidden_dim": [32], "num_transforms": 2} if make is AutoIAFNormal else {}
    began = time.perf_counter()
    pyro.set_rng_seed(args.seed)
    guide = make(model, **options)
    fit(elbo(model, guide), data, steps=args.steps, **options_of_fit)
    posterior = from_pyro_svi(model, guide, *data, num_samples=args.samples, seed=args.seed)
    seconds = time.perf_counter() - began
    k = khat(model, guide, *data, num_samples=args.samples, seed=args.seed).value
    found[make.__name__] = summary(posterior, float(torch.as_tensor(k).max()), seconds)

# %%
# Two samplers
# ------------
# NUTS, with four chains on the density of the same program, compiled; and a short chain of Pyro's
# own, which runs the program in each of its steps.

began = time.perf_counter()
try:
    posterior = nuts(
        model, *data, draws=args.draws, target_accept=0.95, seed=args.seed, progress=False
    )
except ImportError as error_of_import:  # one line says what to install
    raise SystemExit(f"error: {error_of_import}") from None
found["nuts"] = summary(posterior, seconds=time.perf_counter() - began)

if args.pyro_draws:
    began = time.perf_counter()
    pyro.set_rng_seed(args.seed)
    kernel, draws = pyro.infer.NUTS(model, target_accept_prob=0.95), args.pyro_draws
    mcmc = pyro.infer.MCMC(kernel, draws, warmup_steps=draws, disable_progbar=True)
    mcmc.run(*data)
    found["pyro.infer.NUTS"] = summary(from_pyro_mcmc(mcmc), seconds=time.perf_counter() - began)

# %%
# All beside the exact posterior
# ------------------------------
# ``furthest`` is the largest error of a mean among the ten latents, in standard deviations of
# the exact posterior; ``k`` is Pareto's, of guides alone; ``s`` are seconds.

exact = found["reference"]
print(f"{'':22}{'mu':^14} {'tau':^14} {'theta[A]':^14}  furthest")
print(f"{'way':22}" + "   mean     sd " * 3 + f" mean, sd {'k':>8} {'s':>8}")
for name, way in found.items():
    numbers = " ".join(f"{way.mean[i]:7.2f} {way.sd[i]:6.2f}" for i in range(3))
    far = (np.abs(way.mean - exact.mean) / exact.sd).max()
    line = f"{name:22}{numbers} {far:9.3f} {way.k:8.2f} {way.seconds:8.1f}"
    print(line.replace("nan", "  -"))

# %%
# NUTS is right to within about a hundredth of a standard deviation. The guides are off by a tenth
# or two, although :math:`\hat k`, which with other draws differs by about a tenth, finds none of
# them unusable: it looks at tails, and theirs are about right here. A chain of a hundred draws is
# too short to say much.
#
# The intervals of each latent: a thick line holds half of the posterior, a thin one nine tenths,
# and the mark is the median.

figure, axes = plt.subplots(figsize=(7.2, 8))
step = 0.75 / len(found)
for n, ((name, way), mark) in enumerate(zip(found.items(), "os^Dv*", strict=False)):
    place = np.arange(len(names)) + (n - (len(found) - 1) / 2) * step
    low, lower, middle, upper, high = way.quantiles
    colour = "black" if name == "reference" else f"C{n - 1}"
    axes.hlines(place, low, high, color=colour, lw=1)
    axes.hlines(place, lower, upper, color=colour, lw=3)
    axes.plot(middle, place, mark, color=colour, ms=5, label=name)
axes.set_yticks(np.arange(len(names)), names)
axes.invert_yaxis()
axes.set_xlabel("points of the test")
axes.set_title("Eight schools: medians, intervals of 50 % and of 90 %")
axes.grid(axis="x", alpha=0.3)
figure.legend(loc="outside lower center", ncols=3)
figure.savefig(args.outdir / "eight-schools.png")

# %%
# To try next
# -----------
# - Sample the effects themselves, ``theta = pyro.sample("theta", dist.Normal(mu, tau))``: what
#   becomes of the sampler, and of each guide?
# - Errors half as large: how much more do the schools differ, and which guide suffers?
# - Is the model right? ``az.plot_ppc`` of ``posterior``, and :func:`ppl_models.loo`.
# - :doc:`/use/trust` has more ways of finding out whether to believe a guide.
