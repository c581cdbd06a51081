r"""How many kinds of iris? A Bayesian mixture with more components than it needs.

.. math::
    \pi &\sim \mathrm{Dirichlet}(1 / K, \ldots) \quad \text{or a Dirichlet process} \\
    \Sigma_k &\sim \mathrm{InverseWishart}, \qquad
    \mu_k \mid \Sigma_k \sim \mathcal{N}(0, 100 \, \Sigma_k) \\
    x_n \mid z_n &\sim \mathcal{N}(\mu_{z_n}, \Sigma_{z_n}), \qquad
    z_n \sim \mathrm{Categorical}(\pi)

    python examples/bayesian_mixture.py    # less than a minute

Petals of 150 irises, 50 of each of three species; the model is not told which, nor how many. Prints
the posterior of the number of components with flowers, which ones are used, their centers with
intervals, the evidence, and ArviZ's comparison with fewer components; draws the components, their
weights, and the intervals of their centers.

The posterior of the number of components is one under these priors. That of a Dirichlet process is
known to hold some small components besides the true ones, however many the rows.

References:
    | A Simple Example of Dirichlet Process Mixture Inconsistency for the Number of Components
    | (Miller & Harrison, 2013), https://arxiv.org/abs/1301.2708
    | The Use of Multiple Measurements in Taxonomic Problems (Fisher, 1936)
    | https://doi.org/10.1111/j.1469-1809.1936.tb02137.x
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray
from matplotlib.figure import Figure
from sklearn.datasets import load_iris
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides.mixture import MixturePosterior
from ppl_models import elbo, fit, from_pyro_svi, log_evidence
from ppl_models.mixtures.bayesian import BayesianGaussianMixture
from ppl_models.mixtures.components import component_summary, num_active
from ppl_models.mixtures.relabel import relabel

FEATURES = ["petal length", "petal width"]
PRIORS = {"dirichlet": "Dirichlet", "stick-breaking": "Dirichlet process"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--components", type=int, default=8, help="the most there can be")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=250, help="draws from the posterior")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)

    iris = load_iris()
    petals = torch.from_numpy(iris.data[:, 2:])  # in cm, (150, 2)
    center, spread = petals.mean(0), petals.std(0)
    rows = (petals - center) / spread  # the default prior is for standardised rows
    most = args.components
    print(f"petals of {len(rows)} irises; the species are kept from the model, which may use up to")
    print(f"{most} components\n")

    posteriors, evidences = {}, {}
    for prior in PRIORS:
        model, guide = infer(rows, most, prior, args)
        evidences[prior] = log_evidence(model, guide, rows, num_samples=args.samples, seed=0)
        data = relabel(sample(model, guide, rows, args))
        posterior = data["posterior"]
        scale = xarray.DataArray(spread.numpy(), dims="feature", coords={"feature": FEATURES})
        middle = xarray.DataArray(center.numpy(), dims="feature", coords={"feature": FEATURES})
        posterior["center"] = posterior["locs"] * scale + middle  # in cm
        posterior["sd"] = posterior["scales"] * scale
        posteriors[prior] = data

    print("posterior probability of the number of components that have flowers:")
    print(f"{'prior of the weights':24}" + "".join(f"{k:>7}" for k in range(1, most + 1)))
    for prior, data in posteriors.items():
        print(f"{PRIORS[prior]:24}" + "".join(f"{p:7.2f}" for p in active(data, most)))
    print("(a Dirichlet process tends to add small components to the true ones)\n")

    for prior, data in posteriors.items():
        print(f"{PRIORS[prior]}: weight with 90% interval, expected number of flowers, and the")
        print("probability that there are any, of each component:")
        print(component_summary(data).round(3).to_string(), end="\n\n")

    data = posteriors["dirichlet"]
    used = int((component_summary(data)["active"] > 0.5).sum())
    few = data["posterior"].isel(component=slice(0, used))
    print("centers and standard deviations of the petals in cm, from draws that ArviZ summarises")
    print("(Dirichlet prior; the labels are made the same in all draws, the largest first):")
    print(az.summary(few, var_names=["center", "sd"], kind="stats"))

    probability = shares(data, most)  # (N, K)
    table = np.array(
        [
            [(probability.argmax(1)[iris.target == s] == k).sum() for k in range(used)]
            for s in (0, 1, 2)
        ]
    )
    print("\nflowers of each species in each component, where they most probably belong:")
    print(f"{'':14}" + "".join(f"{k:5}" for k in range(used)))
    for species, counts in zip(iris.target_names, table, strict=True):
        print(f"{species:14}" + "".join(f"{count:5}" for count in counts))
    doubt = int((probability.max(1) < 0.9).sum())
    print(f"{doubt} of {len(rows)} flowers have less than 90% probability of any component\n")

    for prior, evidence in evidences.items():
        print(f"{PRIORS[prior]}: {evidence}")
    print("(of standardised petals; the guide is in one of the modes that differ by labels only)\n")

    candidates = {f"{most} components": data}
    for count in [k for k in (1, 2, 3) if k < most]:
        model, guide = infer(rows, count, "dirichlet", args)
        candidates[f"{count} component{'s' * (count > 1)}"] = sample(model, guide, rows, args)
    print("ArviZ compares numbers of components by leave-one-out cross-validation, elpd in nats of")
    print("all flowers (an estimate, higher is better):")
    with warnings.catch_warnings():  # of some flowers whose leave-one-out estimate is rough
        warnings.simplefilter("ignore", UserWarning)
        print(az.compare(candidates).round(2).to_string())

    files = [
        args.outdir / f"bayesian-mixture-{n}.png" for n in ("components", "weights", "centers")
    ]
    draw_components(petals.numpy(), iris, posteriors, center, spread).savefig(files[0], dpi=120)
    draw_weights(posteriors).savefig(files[1], dpi=120)
    draw_centers(few, files[2])
    print("\nwritten:", *files, sep="\n  ")


def infer(
    rows: Tensor, components: int, prior: str, args: argparse.Namespace
) -> tuple[BayesianGaussianMixture, MixturePosterior]:
    torch.manual_seed(args.seed)
    model = BayesianGaussianMixture(2, components, weights=prior).double()
    guide = MixturePosterior(model, rows, restarts=3)
    settings = {"steps": args.steps, "lr": 0.03, "schedule": CosineAnnealingLR, "seed": args.seed}
    fit(elbo(model, guide), rows, **settings)
    return model, guide


def sample(
    model: BayesianGaussianMixture, guide: MixturePosterior, rows: Tensor, args: argparse.Namespace
) -> Any:
    coords = {"feature": FEATURES, "other_feature": FEATURES}
    return from_pyro_svi(
        model, guide, rows, num_samples=args.samples, coords=coords, seed=args.seed
    )


def active(data: Any, most: int) -> np.ndarray:
    """The posterior probability of 1, 2, ... components with rows."""
    counts = num_active(data).values.ravel()
    return np.bincount(counts, minlength=most + 1)[1:] / len(counts)


def shares(data: Any, most: int) -> np.ndarray:
    """The posterior probability of each component for each row, (N, K)."""
    z = data["posterior"]["z"].values[0]
    return np.stack([(z == k).mean(0) for k in range(most)], 1)


def draw_components(
    petals: np.ndarray, iris: Any, posteriors: dict[str, Any], center: Tensor, spread: Tensor
) -> Figure:
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = 2.146 * np.stack([np.cos(angle), np.sin(angle)])  # holds 90% of a standard normal
    for axes, (prior, data) in zip(figure.subplots(1, 2), posteriors.items(), strict=True):
        posterior = data["posterior"]
        most = posterior.sizes["component"]
        used = component_summary(data)["active"].to_numpy()
        locs, covariances, z = (posterior[n].values[0] for n in ("locs", "covariances", "z"))
        for s in range(0, len(z), max(1, len(z) // 40)):
            for k in np.unique(z[s]):
                ring = np.linalg.cholesky(covariances[s, k]) @ circle + locs[s, k][:, None]
                x, y = ring * spread.numpy()[:, None] + center.numpy()[:, None]
                axes.plot(x, y, color=f"C{k}" if used[k] > 0.5 else "0.6", linewidth=0.5, alpha=0.6)
        best = shares(data, most).argmax(1)
        for species, marker in enumerate("os^"):
            chosen = iris.target == species
            colors = [f"C{k}" for k in best[chosen]]
            name = iris.target_names[species]
            axes.scatter(*petals[chosen].T, c=colors, marker=marker, s=22, edgecolors="k", lw=0.4)
            axes.scatter([], [], c="w", marker=marker, edgecolors="k", label=name)
        probability = active(data, most)
        count = int(probability.argmax()) + 1
        axes.set(
            title=f"{PRIORS[prior]}: {count} components with probability "
            f"{probability[count - 1]:.2f}",
            xlabel="petal length (cm)",
            ylabel="petal width (cm)",
            xlim=(0.3, 8),
            ylim=(-0.3, 3.2),
        )
        axes.legend(loc="upper left", title="species (not told)")
    figure.suptitle("Components that have flowers, in 40 draws of the posterior (90% ellipses)")
    return figure


def draw_weights(posteriors: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (prior, data) in zip(panels, posteriors.items(), strict=True):
        table = component_summary(data)
        for k, row in table.iterrows():
            color = f"C{k}" if row["active"] > 0.5 else "0.6"
            error = [[row["weight"] - row["5%"]], [row["95%"] - row["weight"]]]
            # The mean of a skew weight may lie beyond its interval.
            axes.errorbar(k, row["weight"], np.maximum(error, 0), fmt="o", color=color, capsize=4)
            text = f"{row['rows']:.1f}\n{row['active']:.0%}"
            place = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
            axes.annotate(text, (k, max(row["95%"], row["weight"])), **place, color=color)
        axes.set(title=PRIORS[prior], xlabel="component, by weight")
        axes.set(xlim=(-0.6, len(table) - 0.4), ylim=(-0.02, 0.56))
        axes.set_xticks(range(len(table)))
    panels[0].set_ylabel("weight (mean, 90% interval)")
    figure.suptitle(
        "Expected number of flowers of each component, and the probability that it has any "
        "(grey: hardly used)"
    )
    return figure


def draw_centers(few: Any, file: Path) -> None:
    """Draws the intervals of the centers, by ArviZ."""
    az.plot_forest(few, var_names=["center"], combined=True)
    figure = plt.gcf()
    figure.set_size_inches(9, 4)
    figure.axes[0].set_title("Centers of the components (cm), with the intervals of ArviZ")
    figure.savefig(file, dpi=120, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
