r"""A generative and a discriminative model of the same labels.

.. math::
    p(x, y) = \pi_y \, \mathcal{N}(x \mid \mu_y, \Sigma_y) \qquad \text{or} \qquad
    p(y \mid x) \propto e^{w_y^\top x + b_y}

    python examples/generative_discriminative.py    # less than a minute

Gaussian discriminant analysis models rows and labels together; with a shared covariance its
p(y | x) is that of a logistic or softmax regression, which assumes nothing of the rows. First,
tumours of the breast, with more and more rows to learn from: Ng & Jordan's comparison, with a
Bayesian at its side. Then three species of iris in the plane of two features, and how sure each
model is where.

References:
    | On Discriminative vs. Generative Classifiers (Ng & Jordan, 2001)
    | https://papers.nips.cc/paper/2020-on-discriminative-vs-generative-classifiers
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arviz as az
import pyro.distributions as dist
import sklearn.linear_model
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import elbo, fit, from_pyro_svi
from ppl_models.supervised.discriminant import GaussianDiscriminant
from ppl_models.supervised.logistic import LogisticRegression, SoftmaxRegression

MODELS = ["generative, own", "generative, shared", "logistic, flat prior", "logistic, Bayesian"]
SPECIES = {"setosa": "tab:blue", "versicolor": "tab:orange", "virginica": "tab:green"}
WIDE = 100.0  # the standard deviation of a prior of weights that is flat, or nearly


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[20, 40, 80, 160, 320])
    counts = {"--splits": 5, "--epochs": 250, "--draws": 500, "--seed": 0}
    for name, default in counts.items():
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)

    names = ("curves", "plane")
    files = [args.outdir / f"generative-discriminative-{name}.png" for name in names]
    draw_curves(args.rows, learning_curves(args)).savefig(files[0], dpi=120)
    compare_in_the_plane(args).savefig(files[1], dpi=120)
    print("\nwritten:", *files, sep="\n  ")


def train(model: Any, x: Tensor, y: Tensor, args: argparse.Namespace) -> AutoMultivariateNormal:
    guide = AutoMultivariateNormal(model, init_scale=0.3)
    draws = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    how = {"epochs": args.epochs, "lr": 0.1, "schedule": CosineAnnealingLR, "progress": False}
    fit(elbo(model, guide, draws), (x, y), seed=args.seed, **how)
    return guide


def learning_curves(args: argparse.Namespace) -> Tensor:
    """Returns error (%) and log score by size, model and split, (R, M, S, 2)."""
    features, labels = load_breast_cancer(return_X_y=True)
    features = features[:, :10]  # the means over the cells of a tumour
    print(f"{len(labels)} tumours, malignant or benign, 10 features; {args.splits} random splits")
    table = torch.zeros(len(args.rows), len(MODELS), args.splits, 2)
    for i, rows in enumerate(args.rows):
        for split in range(args.splits):
            parts = train_test_split(
                features, labels, train_size=rows, stratify=labels, random_state=args.seed + split
            )
            x, x_new, y, y_new = map(torch.from_numpy, parts)
            center, spread = x.mean(0), x.std(0)
            predicted = predict((x - center) / spread, y, (x_new - center) / spread, args)
            table[i, :, split] = torch.stack([score(labels, y_new) for labels in predicted])
    print("on the rows that a model has not seen, means ± standard errors over the splits:")
    for k, title in enumerate(["error (%)", "log score: mean log p(label | row), nats per row"]):
        print(f"\n{title}\nrows  " + "".join(f"{name:22}" for name in MODELS).rstrip())
        for rows, scores in zip(args.rows, table[..., k], strict=True):  # (M, S)
            pairs = zip(scores.mean(1), scores.std(1) / args.splits**0.5, strict=True)
            cells = ["-" if m.isnan() else f"{m:6.2f} ± {error:.2f}" for m, error in pairs]
            print(f"{rows:<6}" + "".join(f"{cell:22}" for cell in cells).rstrip())
    print("\ngenerative: Gaussian discriminant analysis at the maximum likelihood; each class has")
    print("  a covariance of its own, or all share one; - where one would be singular")
    print(f"flat prior: the most probable weights under N(0, {WIDE:.0f}^2), by scikit-learn")
    print("Bayesian: prior N(0, 1); the mean over draws from a guide, AutoMultivariateNormal\n")
    return table


def predict(
    x: Tensor, y: Tensor, x_new: Tensor, args: argparse.Namespace
) -> list[dist.Categorical | None]:
    """What each model, given rows and labels, says of the labels of new rows."""
    found: list[dist.Categorical | None] = []
    for covariance in ("own", "shared"):
        generative = GaussianDiscriminant(x.shape[1], 2, covariance).double()
        try:
            found.append(generative.maximum_likelihood(x, y).posterior(x_new))
        except ValueError:
            found.append(None)

    model = LogisticRegression(x.shape[1]).double()
    flat = sklearn.linear_model.LogisticRegression(C=WIDE**2, max_iter=10_000)
    flat.fit(x.numpy(), y.numpy())
    mode = torch.from_numpy(flat.coef_[0]), torch.from_numpy(flat.intercept_)[0]
    found.append(model.conditional(x_new, *mode))

    guide = train(model, x, y, args)
    latents = guide.get_posterior().sample((args.draws,))  # weights, then bias, (S, D + 1)
    draws = model.conditional(x_new, latents[:, None, :-1], latents[:, -1:])
    found.append(dist.Categorical(draws.probs.mean(0)))
    return found


def score(predicted: dist.Categorical | None, labels: Tensor) -> Tensor:
    """The error (%) and the log score, (2,)."""
    if predicted is None:
        return torch.full((2,), torch.nan)
    wrong = predicted.probs.argmax(1) != labels
    return torch.stack([100 * wrong.double().mean(), predicted.log_prob(labels).mean()]).detach()


def compare_in_the_plane(args: argparse.Namespace) -> Figure:
    features, y = map(torch.from_numpy, load_iris(return_X_y=True))
    features = features[:, :2]  # sepal length and width, cm
    center, spread = features.mean(0), features.std(0)
    x = (features - center) / spread
    generative = GaussianDiscriminant(2, 3).double().maximum_likelihood(x, y)
    softmax = SoftmaxRegression(2, 3).double()
    guide = train(softmax, x, y, args)

    names = {"feature": ["sepal length", "sepal width"], "class": list(SPECIES)[1:]}
    data = from_pyro_svi(softmax, guide, x, y, num_samples=args.draws, coords=names, seed=args.seed)
    print("150 irises of 3 species by the length and width of their sepals, standardised.")
    print("Softmax regression, log odds against setosa, the posterior as ArviZ summarises it:")
    print(az.summary(data, kind="stats"))
    loo = az.loo(data)  # `elpd` and `se` in ArviZ 1.x
    elpd = getattr(loo, "elpd_loo", None) or loo.elpd
    exact = leave_one_out(x, y)
    print("\nleave-one-out log score, nats per row (three even chances would give -1.10):")
    error = exact.std() / len(exact) ** 0.5
    print(f"  generative, own    {exact.mean():.3f} ± {error:.3f}, exact: 150 fits")
    print(f"  softmax, Bayesian  {elpd / 150:.3f} ± {loo.se / 150:.3f}, estimate: az.loo")

    sides = torch.linspace(3.5, 8.5, 200).double(), torch.linspace(1.3, 5.2, 200).double()
    grid = torch.stack(torch.meshgrid(*sides, indexing="xy"), -1)  # (200, 200, 2)
    rows = ((grid - center) / spread).flatten(0, 1)
    latents = [torch.from_numpy(data["posterior"][n].values[0]) for n in ("weights", "bias")]
    draws = softmax.conditional(rows, *(values[:, None] for values in latents)).probs  # (S, B, C)
    classes = [generative.posterior(rows).probs.detach(), draws.mean(0)]
    density = generative.evidence().log_prob(rows).detach()
    disagreement = draws.std(0).amax(1)
    figure = Figure(figsize=(15, 5), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    place = {"extent": (3.5, 8.5, 1.3, 5.2), "origin": "lower", "aspect": "auto"}
    palette = torch.tensor([to_rgb(color) for color in SPECIES.values()]).double()
    for axes, probs in zip(panels, classes, strict=False):
        axes.imshow((0.35 * probs @ palette + 0.65).reshape(200, 200, 3), **place)
        for c in range(3):
            lead = probs[:, c] - probs[:, [k for k in range(3) if k != c]].amax(1)
            axes.contour(*sides, lead.reshape(200, 200), [0.0], colors="k", linewidths=1)
    levels = density.max() - torch.tensor([8.0, 4.0, 2.0, 1.0])
    panels[0].contour(*sides, density.reshape(200, 200), levels, colors="w", linestyles="--")
    image = panels[2].imshow(disagreement.reshape(200, 200), cmap="magma", **place)
    figure.colorbar(image, label="sd of a class's probability over draws (largest)", pad=0.02)
    panels[0].set(title="Generative: p(y | x), and contours of p(x)", ylabel="sepal width (cm)")
    panels[1].set(title="Softmax: p(y | x), mean over draws")
    panels[2].set(title="Softmax: how far draws disagree")
    for axes, edge in zip(panels, "kkw", strict=True):
        axes.set_xlabel("sepal length (cm)")
        for c, (species, color) in enumerate(SPECIES.items()):
            dots = {"color": color, "markeredgecolor": edge, "markersize": 5, "label": species}
            axes.plot(*features[y == c].T, "o", **dots)
    panels[0].legend(loc="lower right")
    return figure


def leave_one_out(x: Tensor, y: Tensor) -> Tensor:
    """log p(y | x) of each row by a model fitted to the others, in nats."""
    found = []
    for n in range(len(x)):
        others = torch.arange(len(x)) != n
        model = GaussianDiscriminant(2, 3).double().maximum_likelihood(x[others], y[others])
        found.append(model.posterior(x[n, None]).log_prob(y[n]))
    return torch.cat(found).detach()


def draw_curves(rows: list[int], table: Tensor) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    mean, error = table.mean(2), table.std(2) / table.shape[2] ** 0.5  # (R, M, 2)
    for i, axes in enumerate(figure.subplots(1, 2)):
        for j, (name, marker) in enumerate(zip(MODELS, "os^D", strict=True)):
            value = mean[:, j, i] * (-1) ** i  # log scores are negative
            axes.errorbar(rows, value, error[:, j, i], marker=marker, capsize=3, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(rows, [str(number) for number in rows])
        axes.set_xlabel("training rows")
    figure.axes[0].set(title="Wrong labels", ylabel="test error (%)")
    figure.axes[1].set(title="Probabilities", ylabel="minus the log score (nats per row)")
    figure.axes[1].set_yscale("log")
    figure.axes[1].set_yticks([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0], minor=False)
    figure.axes[1].yaxis.set_major_formatter("{x:g}")
    figure.axes[0].legend()
    return figure


if __name__ == "__main__":
    main()
