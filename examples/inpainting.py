r"""
What lies under a blot
======================

Half of a digit is gone: what could have been there, and how sure may one be?

A VAE learns from rows with holes, and never sees a whole one. Of a row, :math:`o` are the pixels
that were observed, and :math:`m` those that are missing, at random. They are left out of the
likelihood, which integrates them out exactly [1]_:

.. math::
    z &\sim \mathcal{N}(0, I) \\
    x_d \mid z &\sim \mathrm{Bernoulli}(\mathrm{sigmoid}(f_\theta(z)_d)) \\
    p_\theta(x_o \mid z) &= \prod_{d \in o} p_\theta(x_d \mid z)

Afterwards missing pixels are drawn from their posterior predictive:

.. math::
    x_m \sim p_\theta(x_m \mid x_o) = \int p_\theta(x_m \mid z) \, p_\theta(z \mid x_o) \, dz

Takes 25 seconds on two cores: ``python examples/inpainting.py``. Pictures go into
``outputs/``.

.. [1] `MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets
       <https://arxiv.org/abs/1812.02633>`_ (Mattei and Frellsen, 2019)
"""

# %%
# Rows with holes
# ---------------
# ``NaN`` means missing. Training rows lose three pixels in ten.

import argparse
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

from guides import AmortizedNormal
from ppl_models import VAE, elbo, fit, impute, log_evidence
from ppl_models.datasets import digits
from ppl_models.likelihoods import Bernoulli
from ppl_models.nn import MLP, MissingInput
from ppl_models.pictures import images

parser = argparse.ArgumentParser(description="Missing pixels of digits, drawn from the posterior.")
parser.add_argument("--epochs", type=int, default=150)
parser.add_argument("--draws", type=int, default=20, help="of the pixels of a row")
parser.add_argument("--particles", type=int, default=500, help="that they are chosen from")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")


def remove(kind, x, seed):
    """The rows with NaN in the place of some pixels."""
    gone = torch.zeros(len(x), 8, 8, dtype=torch.bool)
    if kind == "lower half":
        gone[:, 4:] = True
    elif kind == "a quarter":
        gone[:, 2:6, 2:6] = True  # the middle
    else:
        generator = torch.Generator().manual_seed(seed)
        gone = torch.rand(gone.shape, generator=generator) < 0.3
    return x.where(~gone.flatten(1), torch.nan)


train, test = digits(binary=True)
holes = remove("three in ten", train, args.seed)
print(f"digits: {len(train)} training rows, {holes.isnan().double().mean():.0%} of their pixels")
print(f"missing at random; {len(test)} test rows, {test.shape[1]} binary pixels")

# %%
# The programs and the fit
# ------------------------
# The model leaves out what is missing (``missing="marginalise"``). The encoder is told what is: it
# reads each row with zeros in the holes, and beside it which pixels were seen.

torch.manual_seed(args.seed)
vae = VAE(64, 8, Bernoulli(), missing="marginalise")
encoder = MLP(2 * 64, 2 * 8, (200, 200), nn.ELU)
guide = AmortizedNormal(64, 8, encoder=MissingInput(encoder))
run = fit(
    elbo(vae, guide),
    holes,
    epochs=args.epochs,
    batch_size=100,
    lr=5e-3,
    schedule=torch.optim.lr_scheduler.CosineAnnealingLR,
    seed=args.seed,
)
print(f"fitted in {run.seconds:.0f} s; at its end the loss is {run.history['loss'][-1]:.2f} nats")

# %%
# Three kinds of holes
# --------------------
# Test rows lose three pixels in ten, as the training rows did, or their lower half, or the quarter
# in the middle: holes of the last two shapes were never seen. Each row is filled several times. A
# draw is chosen among particles by its importance weight, and so comes from the posterior as far as
# there are enough of them.
#
# What the model holds of the truth is the density of the missing pixels given those observed. It is
# a difference, :math:`\log p(x_m \mid x_o) = \log p(x) - \log p(x_o)`, here of two lower bounds: an
# estimate. Beside it is what the frequency of ink at each pixel would give, blind to the rest of
# the row.

options = {"num_samples": args.particles, "seed": args.seed}
frequency = (holes.nansum(0) + 1) / ((~holes.isnan()).sum(0) + 2)  # of ink at each pixel
print("wrong: missing pixels that the likelier value gets wrong, by draws, and by how often a")
print("pixel has ink in the training rows. NLL: of the missing pixels given those observed, in")
print("nats a pixel: a difference of two importance-weighted lower bounds, an estimate, the worse")
print("of which is as good as so many draws.")
head = ("pixels", 7), ("wrong", 9), ("by frequency", 14), ("NLL", 8), ("by frequency", 14)
head += (("draws", 7),)
print(f"  {'missing':14}" + "".join(f"{name:>{width}}" for name, width in head))
seen, drawn = {}, {}
for kind in ("three in ten", "lower half", "a quarter"):
    seen[kind] = remove(kind, test, args.seed + 1)
    drawn[kind] = impute(
        vae, guide, seen[kind], args.draws, num_particles=args.particles, seed=args.seed
    )  # (S, B, D)
    gone = seen[kind].isnan()
    wrong = (drawn[kind].mean(0).round() != test)[gone].double().mean()
    usual = (frequency.round().expand_as(test) != test)[gone].double().mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few draws: the last column says it
        whole, part = (log_evidence(vae, guide, x, **options) for x in (test, seen[kind]))
    nll = (part.value.sum() - whole.value.sum()) / gone.sum()
    carry = min(1 / (1 / bound.effective_draws).mean() for bound in (whole, part))
    base = -torch.distributions.Bernoulli(frequency).log_prob(test)[gone].mean()
    pixels = gone.double().sum(1).mean()
    print(f"  {kind:14}{pixels:7.1f}{wrong:9.1%}{usual:14.1%}{nll:8.3f}{base:14.3f}{carry:7.0f}")

# %%
# The rest of a row saves about a third of the nats of each missing pixel, and about a quarter of
# the errors or more, in holes of each shape. The middle is the hardest: ink there differs the most
# from digit to digit.
#
# How they are filled
# -------------------
# There is more than one way to fill a hole, and the draws show several. Their mean is grey where
# they disagree. Holes are orange.


def draw(kind):
    """Twelve rows: the truth, what was seen of it, and how it was filled."""
    lines = {"truth": test, "observed": seen[kind], "mean of draws": drawn[kind].mean(0)}
    lines |= {f"draw {s + 1}": rows for s, rows in enumerate(drawn[kind][:4])}
    figure, panels = plt.subplots(len(lines), 1, figsize=(7.6, 0.58 * len(lines) + 0.4))
    figure.suptitle(f"Missing: {kind}")
    for axes, (name, rows) in zip(panels, lines.items(), strict=True):
        images(rows[:12], axes, columns=12)
        axes.images[0].set_cmap(plt.get_cmap("gray_r").with_extremes(bad="C5"))  # the holes
        axes.text(-0.01, 0.5, name, ha="right", va="center", transform=axes.transAxes)
    figure.savefig(args.outdir / f"inpainting-{kind.replace(' ', '-')}.png")


draw("three in ten")

# %%
# With pixels missing here and there the draws differ little: their neighbours tell what they were.

# sphinx_gallery_thumbnail_number = 2
draw("lower half")

# %%
# Of an upper half that several digits share, the draws are now one of them and now another.

draw("a quarter")

# %%
# To try next
# -----------
# - ``--particles 10``: draws are then nearer to the guide than to the posterior. Do the errors
#   rise?
# - Train on whole rows (``train`` in the place of ``holes``): what does the model gain?
# - Blots that are not at random: more ink, more likely to be lost. :doc:`/use/missing` says what
#   is right no longer.
# - :doc:`/gallery/missing_data` has mixtures and factor models, whose answer is exact.
