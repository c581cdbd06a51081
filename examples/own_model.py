r"""
A model of your own
===================

Four lines of Pyro, of which the library knows nothing: is their posterior right?

The counts are real: soldiers killed by the kick of a horse, in each of ten Prussian army corps and
each of the twenty years from 1875 to 1894 [1]_. All corps and years are thought to share one rate:

.. math::
    \lambda &\sim \mathrm{Gamma}(2, 1) \\
    x_n \mid \lambda &\sim \mathrm{Poisson}(\lambda), \qquad n = 1, \dots, N

This model is simple enough for its posterior to be known, :math:`\mathrm{Gamma}(2 + \sum_n x_n, 1 +
N)`, which shows how good the fit is.

Takes 15 seconds on two cores: ``python examples/own_model.py``. Pictures go into ``outputs/``.

.. [1] Das Gesetz der kleinen Zahlen (von Bortkiewicz, 1898), as in Statistical Methods for
       Research Workers (Fisher, 1925)
"""

# %%
# The program
# -----------
# A model is a function of the rows. With rows it scores them; without, it draws some. What belongs
# to a row goes into ``data_plate``, and the row itself is the site ``"x"``.

import argparse
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

from ppl_models import data_plate, elbo, fit, from_pyro_svi, log_evidence

parser = argparse.ArgumentParser(description="A model of your own, beside its exact posterior.")
parser.add_argument("--epochs", type=int, default=500)
parser.add_argument("--samples", type=int, default=2000, help="draws from the posterior")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")


def model(x=None, size=None):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


# 109 times no death, 65 times one, and so on: 200 counts, in no particular order.
counts = torch.arange(5.0).repeat_interleave(torch.tensor([109, 65, 22, 3, 1]))
print(f"{len(counts)} counts of deaths by horse-kick, {counts.sum():.0f} deaths in all")

# %%
# The fit
# -------
# The guide is Pyro's: a normal distribution of the logarithm of the rate. With a constant learning
# rate the last steps leave a little noise in it; a schedule, such as
# ``torch.optim.lr_scheduler.CosineAnnealingLR``, would take it away.

torch.manual_seed(args.seed)
guide = pyro.infer.autoguide.AutoNormal(model)
run = fit(elbo(model, guide), counts, epochs=args.epochs, lr=1e-2, seed=args.seed)
posterior = from_pyro_svi(model, guide, counts, num_samples=args.samples, seed=args.seed)
print(f"fitted in {run.seconds:.1f} s; the posterior, as ArviZ summarises it:")
print(az.summary(posterior, var_names=["rate"], kind="stats"))

# %%
# Beside the exact posterior
# --------------------------

exact = dist.Gamma(2 + counts.sum(), 1.0 + len(counts))
rate = posterior["posterior"]["rate"].values.ravel()
shift = (rate.mean() - exact.mean) / exact.stddev
print("rate (deaths per corps and year)")
print(f"  fitted posterior  {rate.mean():.4f} ± {rate.std():.4f}")
print(f"  exact posterior   {exact.mean:.4f} ± {exact.stddev:.4f}")
print(f"  difference        {shift:+.2f} standard deviations")

# sphinx_gallery_thumbnail_number = 1
figure, axes = plt.subplots()
axes.hist(rate, bins=40, density=True, color="C0", alpha=0.5, label="draws from the guide")
grid = torch.linspace(rate.min() * 0.9, rate.max() * 1.05, 300)
label = f"exact: Gamma({exact.concentration:.0f}, {exact.rate:.0f})"
axes.plot(grid, exact.log_prob(grid).exp(), "k", label=label)
axes.set(xlabel="rate (deaths per corps and year)", ylabel="posterior density")
axes.legend()
figure.savefig(args.outdir / "own-model-posterior.png")

# %%
# The evidence
# ------------
# All rows share the rate, so there is one evidence, that of all of them. It is estimated from draws
# of the guide: a lower bound on average, which in one run may be above the truth by an error or
# two. By Bayes' rule it is known exactly,
#
# .. math:: \log p(x) = \log p(\lambda) + \log p(x \mid \lambda) - \log p(\lambda \mid x)
#
# at any rate, here at 1.

evidence = log_evidence(model, guide, counts, seed=args.seed)
one = torch.ones((), dtype=torch.float64)
joint = dist.Gamma(2.0, 1.0).log_prob(one) + dist.Poisson(one).log_prob(counts.double()).sum()
exact_evidence = joint - dist.Gamma(2 + counts.double().sum(), 1.0 + len(counts)).log_prob(one)
print(evidence)
print(f"exact value: {exact_evidence:.3f} nats")

figure, axes = plt.subplots()
run.plot(axes)
axes.axhline(
    -exact_evidence / len(counts), color="k", linestyle="--", label="minus the exact log evidence"
)
axes.legend()
figure.savefig(args.outdir / "own-model-training.png")

# %%
# Is the model right?
# -------------------
# The exact posterior of a wrong model is of no use. The counts that it predicts, beside those
# observed:

plot_check = getattr(az, "plot_ppc_rootogram", None) or az.plot_ppc  # ArviZ 1.x, or 0.x
plot_check(posterior)
figure, axes = plt.gcf(), plt.gca()
axes.set_xlabel("deaths per corps and year", fontsize="medium")
axes.set_ylabel("frequency", fontsize="medium")
axes.set_title("Observed (black) and predicted")
figure.savefig(args.outdir / "own-model-check.png", bbox_inches="tight")

# %%
# To try next
# -----------
# - A rate for each corps: put ``pyro.sample("rate", ...)`` into a plate of ten.
# - A model with more spread than Poisson's, ``dist.GammaPoisson``, and the evidence of each:
#   which do the data prefer, and by how many nats?
# - :doc:`/use/own_model` has plates, covariates, time series and discrete latents, each in a few
#   lines.
