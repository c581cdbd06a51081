r"""Clusters without labels: how many kinds of iris are there, and what do digits look like?

.. math::
    z_n &\sim \mathrm{Categorical}(\pi) \\
    x_n \mid z_n = k &\sim \mathcal{N}(\mu_k, \Sigma_k)

    python examples/gaussian_mixture.py    # half a minute

First 150 irises, each measured in four places: mixtures of one to six Gaussians are compared by the
evidence of flowers that were left out, and the best is drawn beside the species, which it has not
seen. The same mixture is fitted in three ways, to the same evidence. Then handwritten digits:
Gaussians of 61 pixels, their means as images, and new digits drawn from the mixture.

All evidences are exact, in nats per row. They are densities, so that they depend on the units:
centimetres for irises, grey levels from 0 to 1 for digits.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from sklearn.datasets import load_iris
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import Comparison, GaussianMixture, Run, compare, elbo, fit, fit_em, log_evidence
from ppl_models.datasets import digits

ROUNDING = 0.03  # cm, the standard deviation of what rounding to 0.1 cm leaves out
MIN_SCALE = 0.1  # of grey levels: many pixels are black in all images of a cluster
COLORS = torch.tensor(
    [
        [0.12, 0.47, 0.71],
        [0.89, 0.36, 0.10],
        [0.17, 0.63, 0.17],
        [0.58, 0.40, 0.74],
        [0.55, 0.34, 0.29],
        [0.89, 0.47, 0.76],
        [0.50, 0.50, 0.50],
        [0.74, 0.74, 0.13],
    ],
    dtype=torch.float64,
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--components", type=int, default=6, help="the most, for irises (1 to 8)")
    parser.add_argument("--digit-components", type=int, default=20)
    for name, default in {"--restarts": 5, "--epochs": 400, "--seed": 0}.items():
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)

    figures = irises(args) | handwriting(args)
    print("\nwritten:")
    for name, figure in figures.items():
        file = args.outdir / f"gaussian-mixture-{name}.png"
        figure.savefig(file, dpi=120)
        print(f"  {file}")


def irises(args: argparse.Namespace) -> dict[str, Figure]:
    data = load_iris()
    x, species = torch.from_numpy(data.data), torch.from_numpy(data.target)
    print("150 irises of three species, which the mixtures are not told; 4 features in cm\n")
    candidates = {
        k: GaussianMixture(num_features=4, num_components=k, min_scale=ROUNDING).double()
        for k in range(1, args.components + 1)
    }
    comparison = compare(candidates, x, folds=5, restarts=args.restarts, seed=args.seed)
    print("How many components?")
    print(comparison)
    model = candidates[comparison.best()]

    responsibilities = model.posterior(x).probs.detach()  # (N, K)
    cluster = responsibilities.argmax(1)
    found = responsibilities.shape[1]
    print(f"\nFlowers of each species in the clusters of the best, {found} components:")
    print(f"  {'cluster':12}" + "".join(f"{k + 1:5d}" for k in range(found)))
    for s, name in enumerate(data.target_names):
        counts = cluster[species == s].bincount(minlength=found)
        print(f"  {name:12}" + "".join(f"{int(count):5d}" for count in counts))
    print(f"{int((responsibilities.amax(1) < 0.9).sum())} flowers are in no cluster with 90 %\n")

    runs = three_ways(x, min(3, args.components), args)
    return {
        "number": draw_number(comparison),
        "iris": draw_irises(model, x, species, responsibilities, data),
        "ways": draw_ways(runs),
    }


def three_ways(x: Tensor, components: int, args: argparse.Namespace) -> dict[str, Run]:
    """The same model from the same start, by EM, by its gradient, and by minibatches."""
    start = GaussianMixture(4, components, min_scale=ROUNDING).double()
    torch.manual_seed(args.seed)
    start.initialise(x)
    settings = {"lr": 0.05, "schedule": CosineAnnealingLR, "seed": args.seed}
    runs = {}
    print(f"A mixture of {components}, fitted in three ways from the same start:")
    print(f"{'':28}evidence   steps  seconds")
    for name, batch_size in {"EM": None, "gradient": None, "minibatches of 50 rows": 50}.items():
        model = copy.deepcopy(start)
        if name == "EM":
            run = fit_em(model, x, initialise=False, tolerance=1e-9)
        else:
            run = fit(elbo(model), x, epochs=args.epochs, batch_size=batch_size, **settings)
        evidence = log_evidence(model, None, x)
        print(f"  {name:24}{evidence.mean:10.6f}{run.steps:8d}{run.seconds:9.2f}")
        runs[name] = run
    print(f"({evidence.kind}, in nats per row)\n")
    return runs


def handwriting(args: argparse.Namespace) -> dict[str, Figure]:
    (train, labels), (test, test_labels) = digits(labels=True)
    varies = train.amin(0) < train.amax(0)  # (64,)
    train, test = train[:, varies].double(), test[:, varies].double()
    print(
        f"{len(train)} handwritten digits, and {len(test)} for the test; "
        f"{int((~varies).sum())} of 64 pixels never vary, and are left out.\n"
        f"Grey levels run from 0 to 1; no standard deviation is less than {MIN_SCALE} in any "
        f"direction.\nEvidence in nats per digit, exact; purity is the share of digits that are "
        f"what most in their\n"
        f"cluster are (labels are not fitted)."
    )
    print(f"{'':22}{'evidence':>13}{'purity':>18}\n{'':21}train   test     train  test   seconds")
    k = args.digit_components
    for covariance, num in [("full", 1), ("spherical", k), ("diag", k), ("tied", k), ("full", k)]:
        model = GaussianMixture(train.shape[1], num, covariance, min_scale=MIN_SCALE).double()
        run = fit_em(model, train, restarts=args.restarts, tolerance=1e-4, seed=args.seed)
        cluster, test_cluster = (model.posterior(x).probs.argmax(1) for x in (train, test))
        one_hot = torch.nn.functional.one_hot(cluster, num).T @ torch.eye(10).long()[labels]
        majority = one_hot.argmax(1)  # the digit of each component, (K,)
        purity = (majority[cluster] == labels, majority[test_cluster] == test_labels)
        print(
            f"  {num:3d} {covariance:12}"
            + "".join(f"{log_evidence(model, None, x).mean:8.2f}" for x in (train, test))
            + "".join(f"{hit.double().mean():8.0%}" for hit in purity)
            + f"{run.seconds:9.1f}"
        )
    return {
        "means": draw_means(model, majority, varies),
        "samples": draw_samples(test, model(size=50).detach(), varies),
    }


def draw_number(comparison: Comparison) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = comparison.names
    left.plot(names, comparison.bic, "o-")
    best = comparison.best("bic")
    star = {"markersize": 15, "zorder": 3}
    left.plot(best, comparison.bic.min(), "k*", label=f"least: {best}", **star)
    left.set(title="BIC", xlabel="components", ylabel="BIC (less is better)")
    right.plot(names, comparison.evidence, "o--", color="gray", label="of the fit")
    right.errorbar(
        names,
        comparison.held_out,
        comparison.standard_error,
        fmt="o-",
        capsize=4,
        label="left out, ± standard error",
    )
    best = comparison.best()
    right.plot(best, comparison.held_out.max(), "k*", label=f"best: {best}", **star)
    right.set(title="Evidence", xlabel="components", ylabel="nats per flower (exact)")
    for axes in (left, right):
        axes.set_xticks(names)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, fontsize="small")
    return figure


def draw_irises(model: GaussianMixture, x: Tensor, species: Tensor, z: Tensor, data) -> Figure:
    figure = Figure(figsize=(11, 5), layout="constrained")
    colors = (z @ COLORS[: z.shape[1]]).clamp(0, 1).numpy()
    for axes, pair in zip(figure.subplots(1, 2), ([0, 2], [2, 3]), strict=True):
        for s, marker in enumerate("os^"):
            rows = species == s
            axes.scatter(
                *x[rows][:, pair].T,
                c=colors[rows],
                marker=marker,
                s=28,
                edgecolors="black",
                linewidths=0.4,
                label=data.target_names[s],
            )
        # The marginal of a Gaussian has the mean and the covariance of those features.
        for k, (mean, covariance) in enumerate(zip(model.locs, model.covariances, strict=True)):
            for width in (1.177, 2.146):  # 50 % and 90 % of the component lie inside
                axes.add_patch(ellipse(mean[pair], covariance[pair][:, pair], width, COLORS[k]))
        axes.set(xlabel=data.feature_names[pair[0]], ylabel=data.feature_names[pair[1]])
        axes.autoscale_view()
    legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for handle in legend.legend_handles:
        handle.set(facecolor="white", sizes=[50])
    figure.suptitle(
        f"{len(z.T)} components: ellipses hold 50 % and 90 % of each; colours are responsibilities"
    )
    return figure


def ellipse(mean: Tensor, covariance: Tensor, width: float, color: Tensor) -> Ellipse:
    """The points at so many standard deviations from the mean of a Gaussian in the plane."""
    variance, axes = torch.linalg.eigh(covariance.detach())
    short, long = 2 * width * variance.sqrt()
    angle = torch.rad2deg(torch.atan2(axes[1, 1], axes[0, 1])).item()
    style = {"facecolor": "none", "edgecolor": color.tolist(), "linewidth": 1.5}
    return Ellipse(mean.tolist(), long.item(), short.item(), angle=angle, **style)


def draw_ways(runs: dict[str, Run]) -> Figure:
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    best = min(run.history["loss"][-1] for run in runs.values())
    for name, run in runs.items():
        loss = torch.tensor(run.history["loss"], dtype=torch.float64)
        axes.loglog(range(1, len(loss) + 1), (loss - best).clamp(min=1e-12), label=name)
    axes.set(
        ylim=(1e-10, None),
        title="Three ways to one optimum",
        xlabel="times through the data",
        ylabel="loss above the best (nats per flower)",
    )
    axes.legend()
    return figure


def images(rows: Tensor, varies: Tensor) -> Tensor:
    """Rows as images, with the pixels that never vary (they are black)."""
    whole = rows.new_zeros(len(rows), len(varies))
    whole[:, varies] = rows.clamp(0, 1)
    return whole.unflatten(1, (8, 8))


def draw_means(model: GaussianMixture, majority: Tensor, varies: Tensor) -> Figure:
    columns = min(10, len(majority))
    rows = -(-len(majority) // columns)
    figure = Figure(figsize=(1 * columns + 0.3, 1.25 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    order = (majority - 0.5 * model.weights.detach()).argsort()  # by digit, the largest first
    means, weights = images(model.locs.detach(), varies), model.weights.detach()
    for axes in panels:
        axes.axis("off")
    for axes, k in zip(panels, order.tolist(), strict=False):
        axes.imshow(means[k], cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{majority[k]}: {weights[k]:.1%}", fontsize=8)
    figure.suptitle("Means of the components, their most frequent digit, and their weight")
    return figure


def draw_samples(test: Tensor, samples: Tensor, varies: Tensor) -> Figure:
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    titles = ["Test digits", "Drawn from the mixture"]
    for axes, title, rows in zip(figure.subplots(1, 2), titles, (test, samples), strict=True):
        tiles = torch.nn.functional.pad(images(rows[:50], varies), (0, 1, 0, 1), value=0.5)
        sheet = tiles.unflatten(0, (5, 10)).transpose(1, 2).reshape(5 * 9, 10 * 9)
        axes.imshow(sheet[:-1, :-1], cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
        axes.axis("off")
    return figure


if __name__ == "__main__":
    main()
