r"""
How many factors are there?
===========================

Thirteen measurements of wine go up and down together. How many causes do they share? Bayesian
factor analysis starts with more factors than it needs, and shrinks those that are too many.

.. math::
    z_n &\sim \mathcal{N}(0, I) \\
    x_n \mid z_n &\sim \mathcal{N}(\mu + W z_n, \Psi), \qquad \Psi = \mathrm{diag}(\psi) \\
    w_{dk} \mid \tau_k &\sim \mathcal{N}(0, \tau_k^2), \qquad \tau_k \sim \mathrm{HalfCauchy}(1)

Each factor has a scale :math:`\tau_k` of its own: automatic relevance determination [1]_. What a
row tells of a factor, from 0 to 1, is its relevance; it does not depend on how the factors are
rotated:

.. math::
    \rho_k = 1 - \mathrm{var}(z_k \mid x) = \frac{\lambda_k}{1 + \lambda_k}, \qquad
    \lambda_k \text{ the eigenvalues of } W^\top \Psi^{-1} W

Takes 15 seconds on two cores: ``python examples/factor_analysis_ard.py``. Pictures go into
``outputs/``. Besides the wines [2]_ there are simulated tests, whose three abilities are known, and
measurements of cell nuclei in samples of breast cancer:

.. code-block:: sh

    python examples/factor_analysis_ard.py --data tests
    python examples/factor_analysis_ard.py --data cancer --factors 16

.. [1] Variational Principal Components (Bishop, 1999), https://doi.org/10.1049/cp:19991160
.. [2] Wine (Aeberhard & Forina, 1992), https://doi.org/10.24432/C5PC7J
"""

# %%
# The data
# --------
# 178 wines of three cultivars, and 13 chemical measurements of each, standardised. A quarter of the
# rows is held out.

import argparse
import math
import warnings
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import sklearn.datasets
import sklearn.decomposition
import torch
import xarray
from sklearn.exceptions import ConvergenceWarning
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import FactorNormal
from ppl_models import (
    BayesianFactorAnalysis,
    elbo,
    fit,
    from_pyro_svi,
    log_evidence,
    varimax_draws,
)

parser = argparse.ArgumentParser(description="How many factors? Bayesian factor analysis.")
parser.add_argument("--data", choices=["wine", "tests", "cancer"], default="wine")
parser.add_argument("--factors", type=int, default=8, help="the most there may be")
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--samples", type=int, default=500, help="draws from the posterior")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")

ABILITIES = ["verbal", "spatial", "speed"]


def simulated_loadings():
    """Four tests of each ability, `(12, 3)`; the first of each also needs a little of the next."""
    own = torch.tensor([0.8, 0.7, 0.7, 0.6], dtype=torch.float64)
    loadings = torch.block_diag(own[:, None], own[:, None], own[:, None])
    for k in range(3):
        loadings[4 * k, (k + 1) % 3] = 0.3
    return loadings


def load(name):
    """Returns rows, the names of the features, and which rows belong to which group."""
    if name == "tests":
        truth = simulated_loadings()
        ability = torch.randn(300, 3, dtype=torch.float64)  # z, (N, K)
        noise = (1 - (truth**2).sum(1)).sqrt() * torch.randn(300, len(truth))
        features = [f"{ability} {i}" for ability in ABILITIES for i in range(1, 5)]
        return ability @ truth.T + noise, features, {"people": torch.ones(300, dtype=torch.bool)}
    bunch = getattr(sklearn.datasets, f"load_{'wine' if name == 'wine' else 'breast_cancer'}")()
    features = [feature.replace("_of_diluted_wines", "") for feature in bunch.feature_names]
    labels = torch.from_numpy(bunch.target)
    names = [str(group).replace("class_", "cultivar ") for group in bunch.target_names]
    groups = {group: labels == i for i, group in enumerate(names)}
    return torch.from_numpy(bunch.data), [f.replace("_", " ") for f in features], groups


torch.manual_seed(args.seed)
rows, features, groups = load(args.data)
order = torch.randperm(len(rows))
train, test = order[: 3 * len(rows) // 4], order[3 * len(rows) // 4 :]
x = (rows - rows[train].mean(0)) / rows[train].std(0)
print(f"{args.data}: {len(train)} rows to fit, {len(test)} held out, {len(features)} features")

# %%
# The fit
# -------
# The latent of a row is summed out of the program, exactly, so that the guide only has what all
# rows share. The evidence is a lower bound, of the whole data. The line may say that it is
# unreliable: more than a hundred latents are many for importance sampling, and one or two draws
# carry all the weight. Then it is a bound still, on average, and a loose one.

model = BayesianFactorAnalysis(len(features), args.factors).double()
guide = FactorNormal(model.initial_values(x[train]))
settings = {"steps": args.steps, "lr": 0.03, "schedule": CosineAnnealingLR, "seed": args.seed}
run = fit(elbo(model, guide), x[train], **settings)
with warnings.catch_warnings():  # of what the line says, too
    warnings.simplefilter("ignore", UserWarning)
    evidence = log_evidence(model, guide, x[train], num_samples=args.samples, seed=1)
print(f"fitted in {run.seconds:.1f} s; rows to fit: {evidence}")

coords = {"feature": features, "factor": list(range(1, args.factors + 1))}
data, held_out = (
    from_pyro_svi(model, guide, x[part], num_samples=args.samples, coords=coords, seed=1)
    for part in (train, test)
)
draws = {
    name: torch.from_numpy(data["posterior"][name].values[0])  # (S, ...), of the one chain
    for name in ("loc", "loadings", "noise_variance")
}
loadings_and_noise = draws["loadings"], draws["noise_variance"]

# %%
# How many factors?
# -----------------
# Draws of the posterior give draws of the number of factors of which a row tells more than it
# leaves open, :math:`\rho_k > 1/2`.


def interval(draws):
    """The 89% interval of each column."""
    low, high = torch.quantile(draws, torch.tensor([0.055, 0.945], dtype=draws.dtype), dim=0)
    return low, high


relevance, number = model.relevance(*loadings_and_noise), model.num_relevant(*loadings_and_noise)
mean, (low, high) = relevance.mean(0), interval(relevance)  # of (S, K)
print("relevance: the share of the variance of a factor that a row tells (0 to 1)")
print("factor   mean   89% interval   probability that it is more than one half")
for k in range(args.factors):
    above = (relevance[:, k] > 0.5).double().mean()
    print(f"{k + 1:6d}{mean[k]:7.2f}{low[k]:9.2f} to {high[k]:.2f}{above:10.0%}")
counts = number.bincount(minlength=args.factors + 1) / len(number)
likely = ", ".join(f"{k}: {p:.0%}" for k, p in enumerate(counts.tolist()) if p > 0)
print(f"so many factors are that relevant (probability): {likely}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=[3, 2])
factors = range(1, args.factors + 1)
left.errorbar(factors, mean, torch.stack([mean - low, high - mean]), fmt="o", capsize=4)
left.axhline(0.5, color="k", linestyle="--", label="a row tells half of the factor")
left.set(title="Relevance of each factor (89% intervals)", xlabel="factor", ylim=(0, 1.05))
left.set(ylabel="share of its variance that a row tells", xticks=factors)
left.legend(loc="lower left")
right.bar(range(args.factors + 1), counts)
right.set(title="How many factors are relevant?", xlabel="number of factors", ylim=(0, 1))
right.set(ylabel="probability", xticks=range(0, args.factors + 1, 1 + args.factors // 10))
figure.savefig(args.outdir / f"factors-{args.data}-relevance.png")

# %%
# Loadings to read
# ----------------
# Loadings are known up to a rotation only. :func:`ppl_models.varimax_draws` turns all draws alike,
# so that each factor has few large loadings. As many factors as are most likely are read.

best = max(1, int(number.mode().values))  # with none, the first may still be read
loadings, rotation = varimax_draws(draws["loadings"], best)  # (S, D, M), (S, K, M)
mean, (low, high) = loadings.mean(0), interval(loadings)  # (D, M) each
noise = draws["noise_variance"].mean(0)
share = ((loadings**2).sum(1) / len(features)).mean(0)
print("loadings on each factor (posterior means; * for 0.4 or more), and the variance of the")
print("feature that is noise:")
print(f"{'':26}", *(f"{k:>5} " for k in range(1, best + 1)), " noise")
for d, feature in enumerate(features):
    cells = [f"{w:5.2f}{'*' if abs(w) >= 0.4 else ' '}" for w in mean[d]]
    print(f"{feature:26}", *cells, f"{noise[d]:6.2f}")
print(f"{'share of all variance':26}", *(f"{s:5.0%} " for s in share))

# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(figsize=(3.4 + 0.75 * best, 1.2 + 0.3 * len(features)))
image = axes.imshow(mean, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
for d, k in np.ndindex(*mean.shape):
    weight = "bold" if low[d, k] * high[d, k] > 0 else "normal"
    color = "white" if abs(mean[d, k]) > 0.6 else "black"
    look = {"fontsize": 8, "fontweight": weight, "color": color, "ha": "center", "va": "center"}
    axes.text(k, d, f"{mean[d, k]:.2f}", **look)
axes.set_xticks(range(best), [str(k + 1) for k in range(best)])
axes.set_yticks(range(len(features)), features)
axes.set(xlabel="factor (varimax)", title="Loadings (bold: 89% interval without 0)")
figure.colorbar(image, label="posterior mean")
figure.savefig(args.outdir / f"factors-{args.data}-loadings.png")

# %%
# Any variable that is put into the posterior is summarised by ArviZ; its dimensions name the rows
# of the table. The loadings on the first factor:

dims = ("chain", "draw", "feature", "rotated")
data["posterior"]["loading"] = xarray.DataArray(loadings[None].numpy(), dims=dims)
first = data["posterior"].isel(rotated=0)
print(az.summary(first, var_names=["loading"], kind="stats"))

# %%
# Where the truth is known, as with ``--data tests``, the loadings are compared with it.

if args.data == "tests":
    truth = simulated_loadings() / rows.std(0)[:, None]
    cosines = torch.nn.functional.cosine_similarity(mean[:, :, None], truth[:, None], dim=0)
    print("Tucker's congruence with the true loadings (1: proportional):")
    for k, ability in enumerate(ABILITIES):
        nearest = int(cosines[:, k].argmax())
        print(f"  {ability:8} {cosines[nearest, k]:.3f} (factor {nearest + 1})")

# %%
# Do so few factors explain the covariances?
# ------------------------------------------
# The covariance of the features under the model is :math:`W W^\top + \Psi`. Beside it is that of
# the same rows, with as many numbers as there are pairs of features.

covariance = model.covariance(*loadings_and_noise)  # (S, D, D)
sample, unseen = (torch.cov(x[part].T) for part in (train, test))
low, high = interval(covariance)
inside = ((low < sample) & (sample < high)).double().mean()
print("covariance of the features, W W' + Psi, beside the sample covariance of the same rows:")
print(f"  {inside:.0%} of its entries lie in the posterior's 89% intervals (nearly all should)")
print("  distance from the sample covariance of the rows held out (root mean square, entries):")
for name, estimate in {"posterior mean": covariance.mean(0), "sample": sample}.items():
    print(f"    {name:15} {(estimate - unseen).square().mean().sqrt():.4f}")

figure, panels = plt.subplots(1, 3, figsize=(10, 4.4), layout="compressed")
small = {"fontsize": min(8, 170 / len(features))}
ours = covariance.mean(0)
titles = ["Sample", "Posterior mean of $WW^T + \\Psi$", "Sample minus posterior mean"]
for axes, title, matrix in zip(panels, titles, (sample, ours, sample - ours), strict=True):
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set(title=title, yticks=[])
    axes.set_xticks(range(len(features)), features, rotation=90, **small)
panels[0].set_yticks(range(len(features)), features, **small)
figure.colorbar(image, ax=panels, label="covariance (standardised features)", shrink=0.6)
figure.savefig(args.outdir / f"factors-{args.data}-covariance.png")

# %%
# The rows held out
# -----------------
# Nobody had to choose the number of factors. Is the price a worse density of new rows? The density
# under the posterior is the mean over its draws, an estimate whose Monte Carlo error is that of the
# jackknife. Maximum likelihood gives one density for each number of factors.

log_p = torch.from_numpy(held_out["log_likelihood"]["x"].values[0])  # (S, N)
num_draws, num_rows = log_p.shape
ours = log_p.logsumexp(0) - math.log(num_draws)  # (N,)
share = (log_p - ours).exp() / num_draws  # of each draw in the sum for a row
without = (1 - share).clamp(min=1e-12).log().mean(1)  # each draw left out once
error = ((num_draws - 1) * without.var(correction=0)).sqrt()

full = torch.distributions.MultivariateNormal(x[train].mean(0), torch.cov(x[train].T))
peers = {"a Gaussian, full covariance": full.log_prob(x[test])}
with warnings.catch_warnings():  # where the noise of a feature falls to zero it never ends
    warnings.simplefilter("ignore", ConvergenceWarning)
    for k in factors:
        peer = sklearn.decomposition.FactorAnalysis(k, tol=1e-3, svd_method="lapack")
        peer.fit(x[train].numpy())
        name = f"factor analysis, {k} factor{'s' if k > 1 else ''}"
        peers[name] = torch.from_numpy(peer.score_samples(x[test].numpy()))

print(f"log evidence of the {num_rows} rows held out, nats per row:")
for name, value in peers.items():
    print(f"  {name:30}{value.mean():9.3f}  exact, at the maximum of the likelihood")
print(
    f"  {f'Bayes, at most {args.factors} factors':30}{ours.mean():9.3f}  estimate: mean density "
    f"over {num_draws} draws of the guide, Monte Carlo error {error:.3f}"
)
best_peer = max(peers, key=lambda k: peers[k].mean())
difference = ours - peers[best_peer]
print(
    f"Bayes minus the best of these: {difference.mean():+.3f} "
    f"± {difference.std() / math.sqrt(num_rows):.3f} (standard error over rows);\n"
    f"the best, {best_peer}, is chosen by these very rows"
)

# %%
# With the wines the mean over the posterior is ahead, by about two standard errors, even of a
# number of factors chosen with hindsight: it never bets on one set of loadings.
#
# The scores
# ----------
# Where each row lies on the first two factors. The model has not seen the cultivars.

z = (model.posterior(x, **draws).mean @ rotation).mean(0)  # of (S, N, M)
second = z[:, 1] if best > 1 else torch.zeros(len(z))
figure, axes = plt.subplots(figsize=(6.4, 4.6))
for (name, members), marker in zip(groups.items(), "os^", strict=False):
    axes.plot(z[members, 0], second[members], marker, alpha=0.7, label=name)
axes.set(xlabel="factor 1 (standard deviations)", ylabel="factor 2 (standard deviations)")
axes.set_title("Scores of the rows (posterior means)")
axes.legend()
figure.savefig(args.outdir / f"factors-{args.data}-scores.png")

# %%
# To try next
# -----------
# - ``--data tests``: three abilities are behind these, and their loadings are known.
# - ``--factors 12``: does the number that is relevant change?
# - ``--data cancer --factors 16``: features that are nearly sums of others. What becomes of the
#   relevance of the first factors?
# - :doc:`/families/factors` has the derivations, and :doc:`/gallery/factor_analysis_grades` the
#   model with a single factor.
