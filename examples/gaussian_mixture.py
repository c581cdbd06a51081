r"""
Clusters without labels
=======================

How many kinds of iris are there, and what do digits look like to a model that was never told which
is which? A mixture of Gaussians answers both, with an evidence that is exact.

.. math::
    z_n &\sim \mathrm{Categorical}(\pi) \\
    x_n \mid z_n = k &\sim \mathcal{N}(\mu_k, \Sigma_k)

The component of a row is summed over, so that the evidence and the responsibilities, the posterior
of :math:`z_n`, are both closed forms:

.. math::
    p(x_n) = \sum_k \pi_k \, \mathcal{N}(x_n \mid \mu_k, \Sigma_k), \qquad
    r_{nk} = p(z_n = k \mid x_n) = \frac{\pi_k \, \mathcal{N}(x_n \mid \mu_k, \Sigma_k)}{p(x_n)}

EM takes turns: responsibilities from the parameters, parameters from rows weighted by
responsibilities [1]_. All evidences are in nats per row. They are densities, so that they depend on
the units: centimetres for irises, grey levels from 0 to 1 for digits.

Takes 20 seconds on two cores: ``python examples/gaussian_mixture.py``. Pictures go into
``outputs/``.

.. [1] Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster, Laird & Rubin, 1977),
       https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
"""

# %%
# Irises
# ------
# 150 irises, each measured in four places. They are of three species, which the mixtures are not
# told.

import argparse
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Ellipse
from sklearn.datasets import load_iris
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import GaussianMixture, compare, elbo, fit, fit_em, log_evidence
from ppl_models.datasets import digits
from ppl_models.pictures import images

parser = argparse.ArgumentParser(description="Mixtures of Gaussians: irises and digits.")
parser.add_argument("--components", type=int, default=6, help="the most, for irises (1 to 8)")
parser.add_argument("--digit-components", type=int, default=20)
for name, default in {"--restarts": 5, "--epochs": 400, "--seed": 0}.items():
    parser.add_argument(name, type=int, default=default)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")

ROUNDING = 0.03  # cm, the standard deviation of what rounding to 0.1 cm leaves out
data = load_iris()
x, species = torch.from_numpy(data.data), torch.from_numpy(data.target)
print(f"{len(x)} irises of three species, {x.shape[1]} features in cm")

# %%
# How many components?
# --------------------
# The evidence of the flowers that were fitted rises with each component. That of flowers that were
# left out does not: five times, a fifth of them is kept from the fit. ``min_scale`` keeps
# components from closing in on a few flowers that happen to be alike, which would raise the
# likelihood without end.

candidates = {
    k: GaussianMixture(num_features=4, num_components=k, min_scale=ROUNDING).double()
    for k in range(1, args.components + 1)
}
comparison = compare(candidates, x, folds=5, restarts=args.restarts, seed=args.seed)
print(comparison)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
names = comparison.names
left.plot(names, comparison.bic, "o-")
star = {"markersize": 13, "zorder": 3}
best = comparison.best("bic")
left.plot(best, comparison.bic.min(), "k*", label=f"least: {best}", **star)
left.set(title="BIC", xlabel="components", ylabel="BIC (less is better)")
right.plot(names, comparison.evidence, "s--", color="gray", label="of the fit")
held_out, error = comparison.held_out, comparison.standard_error
label = "left out, ± standard error"
right.errorbar(names, held_out, error, fmt="o-", capsize=4, label=label)
best = comparison.best()
right.plot(best, held_out.max(), "k*", label=f"best: {best}", **star)
right.set(title="Evidence", xlabel="components", ylabel="nats per flower (exact)")
for axes in (left, right):
    axes.set_xticks(names)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, columnspacing=1.2)
figure.savefig(args.outdir / "gaussian-mixture-number.png")

# %%
# BIC and the flowers left out need not agree. With two components and with three the evidences of
# flowers left out differ by less than their error: the data do not decide between them.
#
# The clusters
# ------------
# The best mixture, beside the species that it has not seen:

model = candidates[best]
responsibilities = model.posterior(x).probs.detach()  # r, (N, K)
cluster, found = responsibilities.argmax(1), responsibilities.shape[1]
print(f"flowers of each species in the clusters of the best, {found} components:")
print(f"  {'cluster':12}" + "".join(f"{k + 1:5d}" for k in range(found)))
for s, name in enumerate(data.target_names):
    counts = cluster[species == s].bincount(minlength=found)
    print(f"  {name:12}" + "".join(f"{int(count):5d}" for count in counts))
print(f"{int((responsibilities.amax(1) < 0.9).sum())} flowers are in no cluster with 90 %")

# %%
# The colour of a flower is mixed from those of the components in proportion to its
# responsibilities; its shape says the species. The ellipses hold 50 % and 90 % of each component.

PALETTE = torch.tensor([to_rgb(f"C{k}") for k in range(8)], dtype=torch.float64)


def ellipse(mean, covariance, width, color):
    """The points at so many standard deviations from the mean of a Gaussian in the plane."""
    variance, directions = torch.linalg.eigh(covariance.detach())
    short, long = (2 * width * variance.sqrt()).tolist()
    angle = torch.rad2deg(torch.atan2(directions[1, 1], directions[0, 1])).item()
    style = {"facecolor": "none", "edgecolor": color, "linewidth": 1.5}
    return Ellipse(mean.tolist(), long, short, angle=angle, **style)


# sphinx_gallery_thumbnail_number = 2
figure, panels = plt.subplots(1, 2, figsize=(9, 4.4))
colors = (responsibilities @ PALETTE[:found]).clamp(0, 1)
for axes, pair in zip(panels, ([0, 2], [2, 3]), strict=True):
    for s, marker in enumerate("os^"):
        rows = species == s
        look = {"s": 28, "edgecolors": "black", "linewidths": 0.4, "label": data.target_names[s]}
        axes.scatter(*x[rows][:, pair].T, c=colors[rows].numpy(), marker=marker, **look)
    # The marginal of a Gaussian has the mean and the covariance of those features.
    for k, (mean, covariance) in enumerate(zip(model.locs, model.covariances, strict=True)):
        for width in (1.177, 2.146):  # 50 % and 90 % of the component lie inside
            axes.add_patch(ellipse(mean[pair], covariance[pair][:, pair], width, f"C{k}"))
    axes.set(xlabel=data.feature_names[pair[0]], ylabel=data.feature_names[pair[1]])
    axes.autoscale_view()
legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
for handle in legend.legend_handles:
    handle.set(facecolor="white", sizes=[40])
figure.savefig(args.outdir / "gaussian-mixture-iris.png")

# %%
# Three ways to one optimum
# -------------------------
# The same model from the same start: by EM, by the gradient of the evidence of all rows, and by
# that of minibatches. :func:`ppl_models.elbo` sums over the components, which need no guide, so
# that it is the exact evidence, and its gradient leads where EM does.

components = min(3, args.components)
start = GaussianMixture(4, components, min_scale=ROUNDING).double()
torch.manual_seed(args.seed)
start.initialise(x)
settings = {"epochs": args.epochs, "lr": 0.05, "schedule": CosineAnnealingLR, "seed": args.seed}
runs = {}
print(f"{'':26}evidence   steps  seconds")
for name, batch_size in {"EM": None, "gradient": None, "minibatches of 50 rows": 50}.items():
    model = copy.deepcopy(start)
    if name == "EM":
        run = fit_em(model, x, initialise=False, tolerance=1e-9)
    else:
        run = fit(elbo(model), x, batch_size=batch_size, **settings)
    evidence = log_evidence(model, None, x)
    print(f"{name:24}{evidence.mean:10.6f}{run.steps:8d}{run.seconds:9.2f}")
    runs[name] = run
print(f"({evidence.kind}, in nats per flower, of a mixture of {components})")

figure, axes = plt.subplots()
best = min(run.history["loss"][-1] for run in runs.values())
for (name, run), style in zip(runs.items(), ("-", "--", ":"), strict=True):
    above = torch.tensor(run.history["loss"], dtype=torch.float64) - best
    axes.loglog(range(1, len(above) + 1), above.clamp(min=1e-10), style, label=name)
axes.set(xlabel="times through the data", ylabel="loss above the best (nats per flower)")
axes.set_title("Three ways to one optimum (what is below 1e-10 is drawn there)")
axes.legend()
figure.savefig(args.outdir / "gaussian-mixture-ways.png")

# %%
# Digits
# ------
# Gaussians of whole images: 8 by 8 pixels, of which three never vary. Four kinds of covariance are
# compared. Purity is the share of digits that are what most digits in their cluster are; the labels
# are used for nothing else.

MIN_SCALE = 0.1  # of grey levels: many pixels are white in all images of a cluster
(train, labels), (test, test_labels) = digits(labels=True)
varies = train.amin(0) < train.amax(0)  # (64,)
train, test = train[:, varies].double(), test[:, varies].double()
print(
    f"{len(train)} handwritten digits, and {len(test)} for the test; "
    f"{int((~varies).sum())} of 64 pixels never vary, and are left out.\n"
    f"No standard deviation is less than {MIN_SCALE} grey levels in any direction.\n"
    f"Evidence in nats per digit, exact"
)
print(f"{'':22}{'evidence':>13}{'purity':>18}\n{'':21}train   test     train  test   seconds")
many = args.digit_components
kinds = [("full", 1), ("spherical", many), ("diag", many), ("tied", many), ("full", many)]
for covariance, num in kinds:
    model = GaussianMixture(train.shape[1], num, covariance, min_scale=MIN_SCALE).double()
    run = fit_em(model, train, restarts=args.restarts, tolerance=1e-4, seed=args.seed)
    cluster, test_cluster = (model.posterior(rows).probs.argmax(1) for rows in (train, test))
    one_hot = torch.nn.functional.one_hot(cluster, num).T @ torch.eye(10).long()[labels]
    majority = one_hot.argmax(1)  # the digit of each component, (K,)
    purity = (majority[cluster] == labels, majority[test_cluster] == test_labels)
    print(
        f"  {num:3d} {covariance:12}"
        + "".join(f"{log_evidence(model, None, rows).mean:8.2f}" for rows in (train, test))
        + "".join(f"{hit.double().mean():8.0%}" for hit in purity)
        + f"{run.seconds:9.1f}"
    )

# %%
# With a covariance for each component the evidence of new digits is the highest, and that of the
# digits it was fitted to is higher still: its tens of thousands of parameters know some of them by
# heart. Its components, which are digits and ways to write them:


def whole(rows):
    """Rows as images, with the pixels that never vary."""
    filled = rows.new_zeros(len(rows), len(varies))
    filled[:, varies] = rows.detach().clamp(0, 1)
    return filled.unflatten(1, (8, 8))


order = (majority - 0.5 * model.weights.detach()).argsort()  # by digit, the largest first
lines = -(-many // 10)
figure, axes = plt.subplots(figsize=(7.5, 0.95 * lines + 0.5))
room = torch.nn.functional.pad(whole(model.locs)[order], (0, 0, 3, 0))  # for a line of text
title = "Means of the components, their most frequent digit, and their weight"
images(room, axes, columns=10, title=title)
for i, k in enumerate(order.tolist()):
    place = 9 * (i % 10) + 3.5, 12 * (i // 10) + 2.2
    text = f"{majority[k]}: {model.weights[k]:.1%}"
    axes.text(*place, text, fontsize=8, horizontalalignment="center")
figure.savefig(args.outdir / "gaussian-mixture-means.png")

# %%
# New digits, drawn from the mixture, beside digits of the test:

figure, panels = plt.subplots(1, 2, figsize=(9, 2.5))
figure.get_layout_engine().set(wspace=0.08)
images(whole(test[:50]), panels[0], title="Test digits")
images(whole(model(size=50)), panels[1], title="Drawn from the mixture")
figure.savefig(args.outdir / "gaussian-mixture-samples.png")

# %%
# To try next
# -----------
# - ``--digit-components 40``: the evidence of training digits rises. Does that of the test?
# - A mixture that infers how many components there are: :doc:`/gallery/bayesian_mixture`.
# - Rows with holes: :doc:`/gallery/missing_data`.
# - :doc:`/families/mixtures` derives EM and each covariance.
