r"""What was learned elsewhere: a network without labels, beliefs of yesterday, and where it looks.

    python examples/transfer.py                                 # 8x8 digits, two minutes
    python examples/transfer.py --data mnist --data-root data --epochs 5

Three kinds of transfer, and a picture of each:

    of weights    a vision transformer fills in hidden patches of digits without labels; then it
                  is the start of a classifier that has few, all of it tuned, or frozen
    of beliefs    patients come day by day, and p(theta | D_1) is the prior of the second day:
                  log p(D_1, D_2) = log p(D_1) + log p(D_2 | D_1)
    attention     where a transformer that was tuned to all labels looks
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoLaplaceApproximation
from sklearn.datasets import load_diabetes
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from ppl_models import (
    Classifier,
    LinearRegression,
    datasets,
    elbo,
    fit,
    freeze,
    log_evidence,
    posterior_as_prior,
    reconstruction,
    warm_start,
)
from ppl_models.nn import MaskedPatches, VisionTransformer

COUNTS = (1, 2, 5, 20)  # labels of each class
KINDS = ("from scratch", "warm start, all tuned", "warm start, frozen")
PATIENTS = (15, 30, 60)  # of each day
NOISE = 0.8  # of the progression given the body mass, in standard deviations


def warm_up_and_cool_down(optimizer: torch.optim.Optimizer, steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=optimizer.defaults["lr"], total_steps=steps, pct_start=0.2)


learn = partial(fit, schedule=warm_up_and_cool_down)


class Data(NamedTuple):
    """Images with their labels, those of the test, and the sizes of the networks."""

    x: Tensor
    y: Tensor
    test: Tensor
    test_labels: Tensor
    side: int
    patch: int  # of those that are hidden
    fine: int  # of those that are looked at


class Day(NamedTuple):
    """The patients of a day, and the beliefs after it: slope and intercept."""

    x: Tensor
    y: Tensor
    mean: Tensor
    covariance: Tensor
    exact: torch.distributions.MultivariateNormal  # of all days so far together


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--data-root", default="data", help="the folder of MNIST")
    parser.add_argument("--epochs", type=int, default=60, help="without labels, and half with all")
    parser.add_argument("--steps", type=int, default=200, help="on few labels, and thrice a day")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    data = load(args)
    print(f"{args.data}: {len(data.x)} training rows, {len(data.test)} test rows\n")

    masked = pretrain(data, args)
    scores = few_labels(data, masked, args)
    days = day_by_day(args)
    figures = {
        "patches": draw_patches(masked, data),
        "labels": draw_scores(scores),
        "days": draw_days(days),
        "attention": draw_attention(tuned(data, args), data),
    }
    print("\nwritten:")
    for name, figure in figures.items():
        file = args.outdir / f"transfer-{args.data}-{name}.png"
        figure.savefig(file, dpi=120)
        print(f"  {file}")


def load(args: argparse.Namespace) -> Data:
    if args.data == "digits":
        (x, y), (test, labels) = datasets.digits(labels=True)
        return Data(x, y, test, labels, side=8, patch=2, fine=1)
    (x, y), (test, labels) = datasets.mnist(args.data_root, labels=True)
    return Data(x, y, test, labels, side=28, patch=7, fine=4)


def network(data: Data) -> VisionTransformer:
    return VisionTransformer(data.side, patch=data.patch, width=32, num_layers=3)


def pretrain(data: Data, args: argparse.Namespace) -> MaskedPatches:
    torch.manual_seed(args.seed)
    masked = MaskedPatches(network(data))
    options = {"epochs": args.epochs, "batch_size": 64, "lr": 3e-3, "seed": args.seed}
    errors = learn(reconstruction(masked), data.x, **options).history["loss"]
    mean = (data.x - data.x.mean(0)).square().sum(1).mean() * masked.num_hidden
    print(
        f"{masked.num_hidden} of {masked.num_patches} patches hidden: squared error of a row "
        f"{errors[0]:.2f}, then {errors[-1]:.2f}; of the mean picture "
        f"{mean / masked.num_patches:.2f}. It is no evidence: its kind is none."
    )
    return masked


def few_labels(
    data: Data, masked: MaskedPatches, args: argparse.Namespace
) -> dict[str, list[float]]:
    """The test accuracies of each kind, for each number of labels."""
    print("\ntest accuracy, and exact nats of a test label, by the labels of each class:")
    print(f"  {'':24}" + "".join(f"{count:>16}" for count in COUNTS))
    order = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(args.seed))
    scores: dict[str, list[float]] = {}
    for kind in KINDS:
        line = f"  {kind:24}"
        for count in COUNTS:
            some = torch.cat([order[data.y[order] == c][:count] for c in range(10)])
            torch.manual_seed(args.seed)
            model = Classifier(data.x.shape[1], 10, 32, network(data))
            if kind != KINDS[0]:
                warm_start(model.network, from_=masked.transformer)
            if kind == KINDS[2]:
                freeze(model, "network")
            rate = 2e-2 if kind == KINDS[2] else 2e-3
            options = {"steps": args.steps, "batch_size": min(64, len(some)), "lr": rate}
            learn(elbo(model), (data.x[some], data.y[some]), seed=args.seed, **options)
            right = (model.predict(data.test) == data.test_labels).double().mean().item()
            evidence = log_evidence(model, None, data.test, data.test_labels)
            scores.setdefault(kind, []).append(right)
            line += f"{right:8.1%} {-evidence.mean:7.2f}"
        print(line)
    return scores


def day_by_day(args: argparse.Namespace) -> list[Day]:
    """The beliefs after each day, each the prior of the next, and the evidence of each day."""
    table = load_diabetes()
    given = torch.from_numpy(table.data[:, 2:3]).float()  # body mass
    target = torch.from_numpy(table.target).float()
    given, target = ((v - v.mean(0)) / v.std(0) for v in (given, target))
    regression = LinearRegression(1, noise=NOISE, bias_scale=1.0)
    model, days, start, before = regression, [], 0, 0.0
    print("\npatients day by day: log evidence of a day given those before, nats of the whole day")
    print(f"  {'day':>5}{'patients':>10}{'by guides':>12}{'exact':>10}   off the exact posterior")
    for number, count in enumerate(PATIENTS):
        x, y = given[start : start + count], target[start : start + count]
        torch.manual_seed(args.seed)
        peak = AutoLaplaceApproximation(model)
        learn(elbo(model, peak), (x, y), steps=args.steps, lr=0.1, seed=args.seed)
        guide = peak.laplace_approximation(x, y)  # exact here: the posterior is a Gaussian
        found = log_evidence(model, guide, x, y, num_samples=2000, seed=args.seed)
        start += count
        whole = regression.marginal(given[:start]).log_prob(target[:start].double()).item()
        belief = guide.get_posterior()
        exact = regression.posterior(given[:start], target[:start])
        off = ((belief.mean - exact.mean) / exact.stddev).abs().max().item()
        print(
            f"  {number + 1:5}{count:10}{found.value.item():12.3f}{whole - before:10.3f}"
            f"   {off:.3f} standard deviations"
        )
        days.append(Day(x, y, belief.mean.detach(), belief.covariance_matrix.detach(), exact))
        model, before = posterior_as_prior(model, guide), whole
    print(f"  all {start} patients at once: {whole:.3f} nats, exact")
    return days


def tuned(data: Data, args: argparse.Namespace) -> VisionTransformer:
    """A transformer of finer patches, trained with all labels."""
    torch.manual_seed(args.seed)
    fine = VisionTransformer(data.side, patch=data.fine, width=32, num_layers=2)
    model = Classifier(data.x.shape[1], 10, 32, fine)
    epochs = max(1, args.epochs // 2)
    learn(elbo(model), (data.x, data.y), epochs=epochs, batch_size=64, lr=3e-3, seed=args.seed)
    right = (model.predict(data.test) == data.test_labels).double().mean()
    print(f"\nall labels, patches of {data.fine} x {data.fine}: {right:.1%} of test rows right")
    return fine


def rollout(attention: Tensor) -> Tensor:
    """How much of each patch the class token holds in the end: `(B, L, A, T, T)` to `(B, P)`.

    Each layer is half of its attention, the mean over heads, and half of what was there.
    """
    mixed = (attention.mean(2) + torch.eye(attention.shape[-1])) / 2  # (B, L, T, T)
    found = mixed[:, 0]
    for layer in mixed.unbind(1)[1:]:
        found = layer @ found
    share = found[:, 0, 1:]
    return share / share.sum(1, keepdim=True)


def draw_patches(masked: MaskedPatches, data: Data, columns: int = 12) -> Figure:
    rows = data.test[:columns]
    torch.manual_seed(0)
    hidden = masked.hide(rows)
    with torch.no_grad():
        filled = masked.filled(rows, hidden)
    size = (data.side, data.side)
    holes = hidden.view(-1, data.side // data.patch, data.side // data.patch)
    holes = holes.repeat_interleave(data.patch, 1).repeat_interleave(data.patch, 2)
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    figure.suptitle("Half of the patches are hidden, and filled in")
    lines = {"test row": rows, "seen": rows, "filled in": filled}
    for panels, (name, images) in zip(figure.subplots(3, columns), lines.items(), strict=True):
        for axes, image, hole in zip(panels, images, holes, strict=True):
            axes.imshow(image.view(size), cmap="gray_r", vmin=0, vmax=1)
            if name == "seen":
                shade = torch.where(hole, 1.0, torch.nan)
                axes.imshow(shade, cmap="Oranges", vmin=0, vmax=2, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        panels[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def draw_scores(scores: dict[str, list[float]]) -> Figure:
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for (kind, values), marker in zip(scores.items(), "osD", strict=True):
        axes.plot(COUNTS, [100 * value for value in values], marker=marker, label=kind)
    axes.set(xscale="log", xlabel="labels of each class", ylabel="test rows in the right class, %")
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.minorticks_off()
    axes.set(ylim=(0, 100), title="A transformer with few labels, started from hidden patches")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def draw_days(days: list[Day]) -> Figure:
    figure = Figure(figsize=(12.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = matplotlib.colormaps["viridis"](torch.linspace(0.85, 0.1, len(days)).numpy())
    at = torch.linspace(-2.5, 3.5, 50)
    design = torch.stack([at, torch.ones_like(at)], 1)
    circle = torch.linspace(0, 2 * torch.pi, 200)
    circle = torch.stack([circle.cos(), circle.sin()])
    for number, (day, colour) in enumerate(zip(days, colours, strict=True), start=1):
        left.scatter(day.x[:, 0], day.y, s=12, color=colour, label=f"day {number}")
        mean = design @ day.mean
        spread = (design @ day.covariance * design).sum(1).sqrt()
        left.plot(at, mean, color=colour)
        left.fill_between(at, mean - 2 * spread, mean + 2 * spread, color=colour, alpha=0.15)
        ring = day.mean[:, None] + 2 * torch.linalg.cholesky(day.covariance) @ circle
        exact = day.exact.mean[:, None] + 2 * day.exact.scale_tril @ circle
        right.plot(*ring, color=colour, lw=4, alpha=0.4, label=f"guide after day {number}")
        name = "exact, of all days so far" if number == len(days) else None
        right.plot(*exact, "k--", lw=1, label=name)
    left.set(xlabel="body mass", ylabel="progression of diabetes", title="Lines that are believed")
    left.legend(loc="upper left")
    right.set(xlabel="slope", ylabel="intercept", title="Beliefs, each the prior of the next day")
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_attention(transformer: VisionTransformer, data: Data, columns: int = 8) -> Figure:
    first = [int((data.test_labels == c).nonzero()[0]) for c in range(columns)]
    rows, side = data.test[first], data.side // data.fine
    attention = transformer.attention(rows)  # (B, L, A, T, T)
    heads = attention[:, -1, :, 0, 1:]  # what the class looks at in the last layer, (B, A, P)
    shares = torch.cat([rollout(attention).unsqueeze(1), heads], 1)
    names = ["all layers", *(f"head {n}" for n in range(1, heads.shape[1] + 1))]
    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle(
        "Where the class token looks (bright), through all layers and in the last by head; "
        "white: the edge of the ink"
    )
    panels = figure.subplots(1 + len(names), columns)
    for axes, row in zip(panels[0], rows, strict=True):
        axes.imshow(row.view(data.side, data.side), cmap="gray_r", vmin=0, vmax=1)
    whole = (-0.5, data.side - 0.5, data.side - 0.5, -0.5)
    for k, name in enumerate(names):
        for axes, row, share in zip(panels[k + 1], rows, shares[:, k], strict=True):
            axes.imshow(share.view(side, side), cmap="magma", extent=whole)
            axes.contour(row.view(data.side, data.side), [0.4], colors="white", linewidths=1)
        panels[k + 1][0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    return figure

    return figure


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
