r"""
Generative or discriminative
============================

Labels can be modelled together with the rows, or given them. Which needs fewer rows, which has the
better probabilities, and what does a prior of the weights change?

.. math::
    p(x, y) = \pi_y \, \mathcal{N}(x \mid \mu_y, \Sigma_y) \qquad \text{or} \qquad
    p(y \mid x) \propto e^{w_y^\top x + b_y}

Gaussian discriminant analysis models rows and labels together, and Bayes' rule gives the label of a
new row. With a covariance that all classes share its :math:`p(y \mid x)` has the form of a logistic
or softmax regression,

.. math::
    w_y = \Sigma^{-1} \mu_y, \qquad b_y = \log \pi_y - \tfrac12 \mu_y^\top \Sigma^{-1} \mu_y

which assumes nothing of the rows. Ng and Jordan compared the two with more and more rows [1]_; here
a Bayesian stands at their side.

Takes 30 seconds on two cores: ``python examples/generative_discriminative.py``. Pictures go into
``outputs/``.

.. [1] On Discriminative vs. Generative Classifiers (Ng & Jordan, 2001),
       https://papers.nips.cc/paper/2020-on-discriminative-vs-generative-classifiers
"""

# %%
# Four ways to learn a label
# --------------------------
# Two generative models, in closed form: each class has a covariance of its own, or all share one.
# Two logistic regressions: the most probable weights under a prior that is nearly flat, by
# scikit-learn, and all weights under the prior N(0, 1), by draws from a guide.

import argparse
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import pyro.distributions as dist
import sklearn.linear_model
import torch
from matplotlib.colors import to_rgb
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.model_selection import train_test_split
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import (
    GaussianDiscriminant,
    LogisticRegression,
    SoftmaxRegression,
    elbo,
    fit,
    from_pyro_svi,
)

parser = argparse.ArgumentParser(description="Generative and discriminative models of labels.")
parser.add_argument("--rows", type=int, nargs="+", default=[20, 40, 80, 160, 320])
for name, default in {"--splits": 5, "--epochs": 250, "--draws": 500, "--seed": 0}.items():
    parser.add_argument(name, type=int, default=default)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")

MODELS = ["generative, own", "generative, shared", "logistic, flat prior", "logistic, Bayesian"]
WIDE = 100.0  # the standard deviation of a prior of weights that is flat, or nearly


def train(model, x, y):
    """A normal guide of the weights, with all correlations."""
    guide = AutoMultivariateNormal(model, init_scale=0.3)
    draws = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    how = {"epochs": args.epochs, "lr": 0.1, "schedule": CosineAnnealingLR, "progress": False}
    fit(elbo(model, guide, draws), (x, y), seed=args.seed, **how)
    return guide


def predict(x, y, x_new):
    """What each model, given rows and labels, says of the labels of new rows."""
    found = []
    for covariance in ("own", "shared"):
        generative = GaussianDiscriminant(x.shape[1], 2, covariance).double()
        try:
            found.append(generative.maximum_likelihood(x, y).posterior(x_new))
        except ValueError:  # too few rows for a covariance
            found.append(None)

    model = LogisticRegression(x.shape[1]).double()
    flat = sklearn.linear_model.LogisticRegression(C=WIDE**2, max_iter=10_000)
    flat.fit(x.numpy(), y.numpy())
    mode = torch.from_numpy(flat.coef_[0]), torch.from_numpy(flat.intercept_)[0]
    found.append(model.conditional(x_new, *mode))

    guide = train(model, x, y)
    latents = guide.get_posterior().sample((args.draws,))  # weights, then bias, (S, D + 1)
    draws = model.conditional(x_new, latents[:, None, :-1], latents[:, -1:])
    found.append(dist.Categorical(draws.probs.mean(0)))
    return found


def score(predicted, labels):
    """The error (%) and the log score, (2,)."""
    if predicted is None:
        return torch.full((2,), torch.nan)
    wrong = predicted.probs.argmax(1) != labels
    return torch.stack([100 * wrong.double().mean(), predicted.log_prob(labels).mean()]).detach()


# %%
# Tumours, with more and more rows
# --------------------------------
# A tumour is malignant or benign, by ten measurements of its cells. The models learn from a few of
# 569, drawn at random several times, and are asked about all others. The log score is the mean of
# the log probability of the true label, in nats per row. Means are given with their standard errors
# over the splits, and a dash where the covariance of a class would be singular.

features, labels = load_breast_cancer(return_X_y=True)
features = features[:, :10]  # the means over the cells of a tumour
print(f"{len(labels)} tumours, malignant or benign, 10 features; {args.splits} random splits")
table = torch.zeros(len(args.rows), len(MODELS), args.splits, 2)  # error (%) and log score
for i, number in enumerate(args.rows):
    for split in range(args.splits):
        how = {"train_size": number, "stratify": labels, "random_state": args.seed + split}
        parts = train_test_split(features, labels, **how)
        x, x_new, y, y_new = map(torch.from_numpy, parts)
        center, spread = x.mean(0), x.std(0)
        predicted = predict((x - center) / spread, y, (x_new - center) / spread)
        table[i, :, split] = torch.stack([score(labels, y_new) for labels in predicted])

mean, error = table.mean(2), table.std(2) / args.splits**0.5  # (R, M, 2)
for k, title in enumerate(["error (%)", "log score: mean log p(label | row), nats per row"]):
    print(f"\n{title}\nrows  " + "".join(f"{name:22}" for name in MODELS).rstrip())
    for i, number in enumerate(args.rows):
        pairs = zip(mean[i, :, k], error[i, :, k], strict=True)
        cells = ["-" if m.isnan() else f"{m:6.2f} ± {e:.2f}" for m, e in pairs]
        print(f"{number:<6}" + "".join(f"{cell:22}" for cell in cells).rstrip())

# %%
# With few rows all but the Bayesian are far too sure: a wrong label that was all but excluded costs
# many nats. With hundreds of rows they come together, but for the covariances of the classes' own,
# which have the most to learn and assume the most about the rows.

figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.9))
for k, axes in enumerate(panels):
    for j, (name, marker) in enumerate(zip(MODELS, "os^D", strict=True)):
        value = mean[:, j, k] * (-1) ** k  # log scores are negative
        axes.errorbar(args.rows, value, error[:, j, k], marker=marker, capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(args.rows, [str(number) for number in args.rows])
    axes.set_xlabel("training rows")
panels[0].set(title="Wrong labels", ylabel="test error (%)")
panels[1].set(title="Probabilities", ylabel="minus the log score (nats per row)", yscale="log")
panels[1].set_yticks([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0], minor=False)
panels[1].yaxis.set_major_formatter("{x:g}")
panels[0].legend()
figure.savefig(args.outdir / "generative-discriminative-curves.png")

# %%
# Irises in the plane
# -------------------
# Three species by the length and width of their sepals. The posterior of a softmax regression, as
# log odds against the first species, setosa:

SPECIES = ["setosa", "versicolor", "virginica"]
features, y = map(torch.from_numpy, load_iris(return_X_y=True))
features = features[:, :2]  # sepal length and width, cm
center, spread = features.mean(0), features.std(0)
x = (features - center) / spread
generative = GaussianDiscriminant(2, 3).double().maximum_likelihood(x, y)
softmax = SoftmaxRegression(2, 3).double()
guide = train(softmax, x, y)

coords = {"feature": ["sepal length", "sepal width"], "class": SPECIES[1:]}
draws = {"num_samples": args.draws, "seed": args.seed}
data = from_pyro_svi(softmax, guide, x, y, coords=coords, **draws)
print(az.summary(data, kind="stats"))

# %%
# How well each predicts a flower that was left out: the generative one exactly, by 150 fits, and
# the Bayesian by ArviZ's estimate from one. Three even chances would give -1.10 nats per row.


def leave_one_out(x, y):
    """log p(y | x) of each row by a model fitted to the others, in nats."""
    found = []
    for n in range(len(x)):
        others = torch.arange(len(x)) != n
        model = GaussianDiscriminant(2, 3).double().maximum_likelihood(x[others], y[others])
        found.append(model.posterior(x[n, None]).log_prob(y[n]))
    return torch.cat(found).detach()


loo = az.loo(data)
elpd = getattr(loo, "elpd_loo", None) or loo.elpd  # ArviZ 0.x, 1.x
exact = leave_one_out(x, y)
error = exact.std() / len(exact) ** 0.5
print("leave-one-out log score, nats per row:")
print(f"  generative, own    {exact.mean():.3f} ± {error:.3f}, exact: 150 fits")
print(f"  softmax, Bayesian  {elpd / 150:.3f} ± {loo.se / 150:.3f}, estimate: az.loo")

# %%
# The colours of the plane are mixed in proportion to the probabilities of the species, and change
# at the black lines. The generative model also says where flowers are (dashed: p(x) is lower by 1,
# 2, 4 and 6 nats than at its highest). The Bayesian says where its draws disagree: beyond the
# flowers, along the borders.

sides = torch.linspace(3.5, 8.9, 200).double(), torch.linspace(1.2, 5.2, 200).double()
grid = torch.stack(torch.meshgrid(*sides, indexing="xy"), -1)  # (200, 200, 2)
rows = ((grid - center) / spread).flatten(0, 1)
latents = [torch.from_numpy(data["posterior"][n].values[0]) for n in ("weights", "bias")]
drawn = softmax.conditional(rows, *(values[:, None] for values in latents)).probs  # (S, B, C)
density = generative.evidence().log_prob(rows).detach()
levels = density.max() - torch.tensor([6.0, 4.0, 2.0, 1.0])
palette = torch.tensor([to_rgb(f"C{c}") for c in range(3)]).double()

# sphinx_gallery_thumbnail_number = 2
figure, panels = plt.subplots(1, 3, figsize=(12, 4.1), sharex=True, sharey=True)
place = {"extent": (3.5, 8.9, 1.2, 5.2), "origin": "lower", "aspect": "auto"}
classes = generative.posterior(rows).probs.detach(), drawn.mean(0)
for axes, probs in zip(panels, classes, strict=False):
    axes.imshow((0.35 * probs @ palette + 0.65).reshape(200, 200, 3), **place)
    for c in range(3):
        lead = probs[:, c] - probs[:, [k for k in range(3) if k != c]].amax(1)
        axes.contour(*sides, lead.reshape(200, 200), [0.0], colors="k", linewidths=1.2)
style = {"colors": "0.3", "linestyles": "--", "linewidths": 0.9}
panels[0].contour(*sides, density.reshape(200, 200), levels, **style)
disagreement = drawn.std(0).amax(1).reshape(200, 200)
image = panels[2].imshow(disagreement, cmap="magma_r", vmin=0, **place)
figure.colorbar(image, label="sd of a species' probability (largest)", pad=0.02)
panels[0].set(title="Generative: p(y | x), and p(x)", ylabel="sepal width (cm)")
panels[1].set_title("Softmax: p(y | x), mean over draws")
panels[2].set_title("Softmax: how far draws disagree")
for axes in panels:
    axes.set_xlabel("sepal length (cm)")
    for c, (species, marker) in enumerate(zip(SPECIES, "os^", strict=True)):
        dots = {"color": f"C{c}", "markeredgecolor": "k", "markeredgewidth": 0.6, "markersize": 5}
        axes.plot(*features[y == c].T, marker, label=species, **dots)
panels[0].legend(loc="lower right")
figure.savefig(args.outdir / "generative-discriminative-plane.png")

# %%
# To try next
# -----------
# - ``--rows 15 20 30``: below ten rows of a class a shared covariance still exists. Down to where?
# - A prior that is wider or narrower, ``LogisticRegression(10, weights_scale=...)``: which one has
#   the best log score with 20 rows?
# - Half of the labels removed: a generative model learns from rows without one, too.
# - :doc:`/families/supervised` derives the maximum likelihood of each, and the Bayesian bound.
