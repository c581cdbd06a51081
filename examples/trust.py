r"""
Can this posterior be trusted?
==============================

A fitted guide answers whether or not its answer is any good. Here a VAE of digits is asked every
question that helps to tell, and so is a guide with a planted fault.

The model has eight latents of each row, a decoder :math:`f`, and binary pixels; the guide is an
encoder:

.. math::
    z_n &\sim \mathcal{N}(0, I) \\
    x_{nd} \mid z_n &\sim \mathrm{Bernoulli}(\mathrm{sigmoid}(f_\theta(z_n)_d)) \\
    q_\phi(z_n \mid x_n) &= \mathcal{N}(\mu_\phi(x_n), \mathrm{diag}(\sigma^2_\phi(x_n)))

Most questions look at the importance weights of draws from the guide. They are all alike where it
is the posterior, and a few carry everything where it is not:

.. math::
    w = \frac{p_\theta(x, z)}{q_\phi(z \mid x)}, \qquad z \sim q_\phi(z \mid x)

What each answer means, and which fault it can see, is in :doc:`/use/trust`.

Takes 35 seconds on two cores: ``python examples/trust.py``. Pictures go into ``outputs/``.
"""

# %%
# The programs, and a fault
# -------------------------
# The second guide is the first one with half the scale. It is never fitted: it shows what the
# questions answer where something is wrong.

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger

from guides import AmortizedNormal
from ppl_models import (
    VAE,
    check,
    convergence,
    elbo,
    fit,
    inference_gap,
    khat,
    log_evidence,
    predictive_pvalues,
    sandwich,
    sbc,
)
from ppl_models.datasets import digits
from ppl_models.likelihoods import Bernoulli
from ppl_models.pictures import images

parser = argparse.ArgumentParser(description="A VAE of digits, asked every question that there is.")
parser.add_argument("--epochs", type=int, default=300)
parser.add_argument("--rows", type=int, default=297, help="test rows")
parser.add_argument("--simulations", type=int, default=1000, help="of the calibration")
parser.add_argument("--samples", type=int, default=1000, help="draws of each row")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")


class Narrow(Messenger):
    """Halves the scale of a guide: a fault that is planted."""

    def _pyro_sample(self, message):
        if message["name"] == "z":
            normal = message["fn"].base_dist
            message["fn"] = dist.Normal(normal.loc, normal.scale / 2).to_event(1)


def narrow(x, size=None):
    with Narrow():
        return guide(x, size=size)


train, test = digits(binary=True)
test = test[: args.rows]
torch.manual_seed(args.seed)
vae, guide = VAE(64, 8, Bernoulli()), AmortizedNormal(64, 8)
guides = {"guide": guide, "half its scale": narrow}
options = {"num_samples": args.samples, "seed": args.seed}

# %%
# Are the programs what they seem?
# --------------------------------
# Before any fit: shapes that broadcast by accident, plates without their size, latents that the
# guide lacks.

print(check(vae, guide, train[:100]))

# %%
# Has the fit converged?
# ----------------------
# A gain in nats beside its noise, rather than a look at a curve.

run = fit(elbo(vae, guide), train, epochs=args.epochs, batch_size=100, lr=2e-3, seed=args.seed)
print(convergence(run))

# %%
# It has not: the networks still learn, and the questions that follow say what that costs.
#
# What is the evidence, and how well is it known?
# -----------------------------------------------
# A lower bound of the evidence of test rows, from the mean of their weights. How many equal draws
# they are as good as is said with it.

print(log_evidence(vae, guide, test, **options))

# %%
# Where does the guide fail?
# --------------------------
# Row by row: the shape :math:`\hat k` of the tail of the row's weights. Above the threshold no
# number of draws that can be paid for gives a good estimate in that row.

tails = {name: khat(vae, program, test, **options) for name, program in guides.items()}
for name, found in tails.items():
    print(f"{name}:\n  {found}")

figure, axes = plt.subplots()
for (name, found), line in zip(tails.items(), ["-", "-."], strict=True):
    share = (torch.arange(len(found.value)) + 0.5) / len(found.value)
    axes.plot(share, found.value.sort().values, line, label=name)
threshold = tails["guide"].threshold
axes.axhline(threshold, color="0.4", linestyle="--", label="above: too few draws")
axes.set(xlabel="share of the rows", ylabel=r"Pareto's $\hat k$", xlim=(0, 1))
axes.set_title("The tails of the weights, row by row in rising order")
axes.legend()
figure.savefig(args.outdir / "trust-tails.png")

# %%
# How many nats does it cost, and what for?
# -----------------------------------------
# The gap between the ELBO and the evidence has two parts. One is of the family: no normal
# distribution with a diagonal covariance is nearer. The other is of the encoder, one network for
# all rows, which finds a worse normal than each row could have for itself.

print(inference_gap(vae, guide, test[:100], seed=args.seed))

# %%
# Most is the encoder's part: a richer family would not help much, more rows to learn from would.
#
# Where is the evidence?
# ----------------------
# For rows that the model drew, the latents that they were drawn from are known, and annealing then
# gives bounds from both sides. The true value lies between them, but for the noise of each.

print(sandwich(vae, guide, test[:10], simulate=True, seed=args.seed))

# %%
# Is the posterior calibrated?
# ----------------------------
# On average over what the model draws: the truth is as likely to be anywhere among draws of the
# guide, if that is the posterior. A curve that leaves the band is a fault. Besides the eight
# latents, the rank of :math:`\log p(x, z)` is looked at, which sees how latents depend on each
# other.

calibrations = {
    name: sbc(vae, program, num_simulations=args.simulations, seed=args.seed)
    for name, program in guides.items()
}
# sphinx_gallery_thumbnail_number = 2
for name, calibration in calibrations.items():
    print(f"{name}:\n  {calibration}")
    figure, axes = plt.subplots(figsize=(7.6, 4.4))
    calibration.plot(axes)
    figure.savefig(args.outdir / f"trust-calibration-{name.replace(' ', '-')}.png")

# %%
# Neither passes: 1000 simulations show small faults, too, and how bad they are is told by the gap
# above. At half the scale the curves of the latents lie above the band at the left and below it at
# the right, as the truth lies outside of draws that are too narrow more often than it should.
#
# Is the model right?
# -------------------
# The best posterior of a wrong model is of no use. Test rows, and ten of them upside down: how
# usual is the evidence of each among rows that the model draws?

rows = torch.cat([test, test[:10].flip(1)])
places = predictive_pvalues(vae, guide, rows, num_samples=50, seed=args.seed)
print(places)
turned = int((places.unlike >= len(test)).sum())
print(f"of these {len(places.unlike)} rows {turned} are upside down")

order = places.value.argsort()
figure, (least, most) = plt.subplots(2, 1, figsize=(7, 2.8))
p = places.value[order]
title = f"Least like rows that the model draws: p up to {p[9]:.2g}"
images(rows[order[:10]], least, title=title)
title = f"Most like rows that the model draws: p from {p[-10]:.3f} up"
images(rows[order[-10:]], most, title=title)
figure.savefig(args.outdir / "trust-unlike.png")

# %%
# Ten of 307 rows are upside down, and of the suspects far more than one in thirty; the others are
# test rows worth a look. Not every turned digit is found: some are digits that way, too. ``p`` of
# all rows together says that the test rows on the whole are not quite what the model draws.
#
# To try next
# -----------
# - ``AmortizedMultivariateNormal`` or ``AmortizedFlow`` in the place of the guide: which part of
#   the gap do they close?
# - Refine the encoder with rows that the model draws: ``freeze(vae)``, then ``fit(elbo(vae,
#   guide), vae(size=20_000), ...)``.
# - Ask a sampler: :doc:`/gallery/eight_schools` has guides beside :func:`ppl_models.nuts`.
# - Ask the same of your own programs: :doc:`/use/own_model`.
