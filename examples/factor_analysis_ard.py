r"""How many factors are there? Bayesian factor analysis shrinks those that are too many.

.. math::
    z_n &\sim \mathcal{N}(0, I) \\
    x_n \mid z_n &\sim \mathcal{N}(\mu + W z_n, \Psi), \qquad
    w_{dk} \sim \mathcal{N}(0, \tau_k^2), \quad \tau_k \sim \mathrm{HalfCauchy}(1)

    python examples/factor_analysis_ard.py                   # wine, less than a minute
    python examples/factor_analysis_ard.py --data tests      # simulated: three factors, known
    python examples/factor_analysis_ard.py --data cancer --factors 16

Wine: 13 chemical measurements of 178 wines from three cultivars. Tests: the scores of 300 people in
12 tests, simulated with three abilities behind them. Cancer: 30 measurements of cell nuclei in 569
samples. All are standardised. Prints how relevant each factor is, and how many there are; loadings
to read; and the evidence of held-out rows beside maximum likelihood. Draws the same, and the
scores of the rows.
"""

import argparse
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import sklearn.datasets
import sklearn.decomposition
import torch
import xarray
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides.factor_normal import FactorNormal
from ppl_models import elbo, fit, from_pyro_svi, log_evidence
from ppl_models.factors.bayesian import BayesianFactorAnalysis
from ppl_models.factors.rotation import varimax_draws

ABILITIES = ["verbal", "spatial", "speed"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["wine", "tests", "cancer"], default="wine")
    parser.add_argument("--factors", type=int, default=8, help="the most there may be")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=500, help="draws from the posterior")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    rows, features, groups = load(args.data)
    order = torch.randperm(len(rows))
    train, test = order[: 3 * len(rows) // 4], order[3 * len(rows) // 4 :]
    x = (rows - rows[train].mean(0)) / rows[train].std(0)
    print(f"{args.data}: {len(train)} rows to fit, {len(test)} held out, {len(features)} features")

    model = BayesianFactorAnalysis(len(features), args.factors).double()
    guide = FactorNormal(model.initial_values(x[train]))
    run = fit(
        elbo(model, guide),
        x[train],
        steps=args.steps,
        lr=0.03,
        schedule=CosineAnnealingLR,
        seed=args.seed,
    )
    evidence = log_evidence(model, guide, x[train], num_samples=args.samples, seed=1)
    print(f"fitted in {run.seconds:.1f} s; rows to fit: {evidence}\n")

    coords = {"feature": features, "factor": list(range(1, args.factors + 1))}
    data, held_out = (
        from_pyro_svi(model, guide, x[part], num_samples=args.samples, coords=coords, seed=1)
        for part in (train, test)
    )
    draws = {
        name: torch.from_numpy(data["posterior"][name].values[0])  # (S, ...), of the one chain
        for name in ("loc", "loadings", "noise_variance")
    }
    parts = draws["loadings"], draws["noise_variance"]
    relevance, number = model.relevance(*parts), model.num_relevant(*parts)  # (S, K), (S,)
    report_relevance(relevance, number)

    best = max(1, int(number.mode().values))  # most likely; with none, the first may still be read
    loadings, rotation = varimax_draws(draws["loadings"], best)  # (S, D, M), (S, K, M)
    report_loadings(data["posterior"], loadings, parts[1], features)
    if args.data == "tests":
        report_truth(loadings.mean(0), rows.std(0))

    covariance = model.covariance(*parts)  # (S, D, D)
    samples = [torch.cov(x[part].T) for part in (train, test)]
    report_covariance(covariance, *samples)
    report_held_out(x, train, test, held_out, args.factors)

    z = model.posterior(x, **draws).mean @ rotation  # (S, N, M)
    files = {name: args.outdir / f"factors-{args.data}-{name}.png" for name in PICTURES}
    figures = (
        draw_relevance(relevance, number),
        draw_loadings(loadings, features),
        draw_covariance(covariance.mean(0), samples[0], features),
        draw_scores(z.mean(0), groups),
    )
    for file, figure in zip(files.values(), figures, strict=True):
        figure.savefig(file, dpi=120)
    print("\nwritten:", *files.values(), sep="\n  ")


PICTURES = ("relevance", "loadings", "covariance", "scores")


def load(name: str) -> tuple[Tensor, list[str], dict[str, Tensor]]:
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


def simulated_loadings() -> Tensor:
    """Four tests of each ability, `(12, 3)`; the first of each also needs a little of the next."""
    own = torch.tensor([0.8, 0.7, 0.7, 0.6], dtype=torch.float64)
    loadings = torch.block_diag(own[:, None], own[:, None], own[:, None])
    for k in range(3):
        loadings[4 * k, (k + 1) % 3] = 0.3
    return loadings


def interval(draws: Tensor) -> tuple[Tensor, Tensor]:
    """The 89% interval of each column."""
    low, high = torch.quantile(draws, torch.tensor([0.055, 0.945], dtype=draws.dtype), dim=0)
    return low, high


def report_relevance(relevance: Tensor, number: Tensor) -> None:
    low, high = interval(relevance)
    print("relevance: the share of the variance of a factor that a row tells (0 to 1)")
    print("factor   mean   89% interval   probability that it is more than one half")
    for k, mean in enumerate(relevance.mean(0)):
        above = (relevance[:, k] > 0.5).double().mean()
        print(f"{k + 1:6d}{mean:7.2f}{low[k]:9.2f} to {high[k]:.2f}{above:10.0%}")
    counts = number.bincount() / len(number)
    likely = ", ".join(f"{k}: {p:.0%}" for k, p in enumerate(counts.tolist()) if p > 0)
    print(f"so many factors are that relevant (probability): {likely}\n")


def report_loadings(posterior: Any, loadings: Tensor, noise: Tensor, features: list[str]) -> None:
    mean = loadings.mean(0)  # (D, M)
    share = ((loadings**2).sum(1) / loadings.shape[1]).mean(0)
    print("loadings on each factor, aligned with a varimax rotation (posterior means; * for 0.4 or")
    print("more), and the variance of the feature that is noise:")
    print(f"{'':26}", *(f"{k:>5} " for k in range(1, mean.shape[1] + 1)), " noise")
    for d, feature in enumerate(features):
        cells = [f"{w:5.2f}{'*' if abs(w) >= 0.4 else ' '}" for w in mean[d]]
        print(f"{feature:26}", *cells, f"{noise[:, d].mean():6.2f}")
    print(f"{'share of all variance':26}", *(f"{s:5.0%} " for s in share), "\n")

    # Any variable in the posterior is summarised; its dimensions name the rows of the table.
    dims = ("chain", "draw", "feature", "rotated")
    posterior["loading"] = xarray.DataArray(loadings[None].numpy(), dims=dims)
    first = posterior.isel(rotated=0)
    print("the loadings on factor 1, as ArviZ summarises them:")
    print(az.summary(first, var_names=["loading"], kind="stats"), "\n")


def report_truth(mean: Tensor, spread: Tensor) -> None:
    """Says how near the loadings are to those that simulated the rows, in their best order."""
    truth = simulated_loadings() / spread[:, None]
    cosines = torch.nn.functional.cosine_similarity(mean[:, :, None], truth[:, None], dim=0)
    print("Tucker's congruence with the true loadings (1: proportional):")
    for k, ability in enumerate(ABILITIES):
        nearest = int(cosines[:, k].argmax())
        print(f"  {ability:8} {cosines[nearest, k]:.3f} (factor {nearest + 1})")
    print()


def report_covariance(draws: Tensor, train: Tensor, test: Tensor) -> None:
    low, high = interval(draws)
    inside = ((low < train) & (train < high)).double().mean()
    print("covariance of the features, W W' + Psi, beside the sample covariance of the same rows:")
    print(f"  {inside:.0%} of its entries lie in the posterior's 89% intervals (nearly all should)")
    print("  distance from the sample covariance of the rows held out (root mean square, entries):")
    for name, estimate in {"posterior mean": draws.mean(0), "sample": train}.items():
        print(f"    {name:15} {(estimate - test).square().mean().sqrt():.4f}")
    print()


def report_held_out(x: Tensor, train: Tensor, test: Tensor, held_out: Any, most: int) -> None:
    """Prints log evidences of the rows held out, in nats per row, and what kind each is."""
    log_p = torch.from_numpy(held_out["log_likelihood"]["x"].values[0])  # (S, N)
    num_draws, num_rows = log_p.shape
    ours = log_p.logsumexp(0) - math.log(num_draws)  # (N,)
    # The jackknife over draws: each left out once.
    share = (log_p - ours).exp() / num_draws  # of each draw in the sum for a row
    without = (1 - share).clamp(min=1e-12).log().mean(1)
    error = ((num_draws - 1) * without.var(correction=0)).sqrt()

    print(f"log evidence of the {num_rows} rows held out, nats per row:")
    full = torch.distributions.MultivariateNormal(x[train].mean(0), torch.cov(x[train].T))
    peers = {"a Gaussian, full covariance": full.log_prob(x[test])}
    with warnings.catch_warnings():  # where the noise of a feature falls to zero it never ends
        warnings.simplefilter("ignore", ConvergenceWarning)
        for k in range(1, most + 1):
            peer = sklearn.decomposition.FactorAnalysis(k, tol=1e-3, svd_method="lapack")
            peer.fit(x[train].numpy())
            name = f"factor analysis, {k} factor{'s' if k > 1 else ''}"
            peers[name] = torch.from_numpy(peer.score_samples(x[test].numpy()))
    for name, value in peers.items():
        print(f"  {name:30}{value.mean():9.3f}  exact, at the maximum of the likelihood")
    print(
        f"  {f'Bayes, at most {most} factors':30}{ours.mean():9.3f}  estimate: mean density over "
        f"{num_draws} draws of the guide, Monte Carlo error {error:.3f}"
    )
    best = max(peers, key=lambda k: peers[k].mean())
    difference = ours - peers[best]
    print(
        f"Bayes minus the best of these: {difference.mean():+.3f} "
        f"± {difference.std() / math.sqrt(num_rows):.3f} (standard error over rows);\n"
        f"the best, {best}, is chosen by these very rows"
    )


def draw_relevance(relevance: Tensor, number: Tensor) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    mean, (low, high) = relevance.mean(0), interval(relevance)
    factors = torch.arange(1, relevance.shape[1] + 1)
    left.errorbar(factors, mean, (mean - low, high - mean), fmt="o", capsize=4)
    left.axhline(0.5, color="k", linestyle="--", label="a row tells half of the factor")
    left.set(title="Relevance of each factor (89% intervals)", xlabel="factor", ylim=(0, 1.05))
    left.set(ylabel="share of its variance that a row tells", xticks=factors)
    left.legend(loc="lower left")
    right.bar(
        range(relevance.shape[1] + 1), number.bincount(minlength=len(factors) + 1) / len(number)
    )
    right.set(title="How many factors are relevant?", xlabel="number of factors", ylim=(0, 1))
    right.set(ylabel="probability", xticks=range(len(factors) + 1))
    return figure


def draw_loadings(loadings: Tensor, features: list[str]) -> Figure:
    mean, (low, high) = loadings.mean(0), interval(loadings)  # (D, M) each
    figure = Figure(figsize=(4 + 0.8 * mean.shape[1], 1.2 + 0.32 * len(mean)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(mean, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for d, k in np.ndindex(*mean.shape):
        sure = low[d, k] * high[d, k] > 0
        axes.text(
            k,
            d,
            f"{mean[d, k]:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold" if sure else "normal",
            color="white" if abs(mean[d, k]) > 0.6 else "black",
        )
    axes.set_xticks(range(mean.shape[1]), [str(k + 1) for k in range(mean.shape[1])])
    axes.set_yticks(range(len(features)), features)
    axes.set(xlabel="factor (varimax)", title="Loadings (bold: 89% interval without 0)")
    figure.colorbar(image, label="posterior mean")
    return figure


def draw_covariance(mean: Tensor, sample: Tensor, features: list[str]) -> Figure:
    figure = Figure(figsize=(15, 5.8), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = ["Sample", "Posterior mean of $WW^T + \\Psi$", "Sample minus posterior mean"]
    for axes, title, matrix in zip(panels, titles, (sample, mean, sample - mean), strict=True):
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set(title=title, yticks=[])
        axes.set_xticks(range(len(features)), features, rotation=90, fontsize=8)
    panels[0].set_yticks(range(len(features)), features, fontsize=8)
    figure.colorbar(image, ax=panels, label="covariance of standardised features", shrink=0.7)
    return figure


def draw_scores(z: Tensor, groups: dict[str, Tensor]) -> Figure:
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.subplots()
    second = z[:, 1] if z.shape[1] > 1 else torch.zeros(len(z))
    for name, members in groups.items():
        axes.plot(z[members, 0], second[members], "o", markersize=4, alpha=0.7, label=name)
    axes.set(xlabel="factor 1", ylabel="factor 2", title="Scores of the rows (posterior means)")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
