r"""What will a user think of a film: a distribution over half stars, and a map of the films.

    python examples/recommender.py --data-root ../shared/data                # two minutes
    python examples/recommender.py --data-root ../shared/data --films 500    # those rated most

Real ratings (MovieLens, ml-latest-small), a tenth of which is held out at random. Two matrix
factorisations learn from the rest, each user and each film a vector of ten factors and a bias:

    normal      stars are numbers with normal noise; coordinate ascent in closed form
    ordered     stars are levels, and each user has cutpoints of their own; gradients from there

Both say how likely each rating is. A normal density is integrated over a quarter star to either
side, so that nats compare. The map shows where films are in the two directions that divide users
most; films near each other are liked by the same people. At the end somebody new rates five films.
"""

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal as NormalLaw
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import FactorizationNormal
from ppl_models import MatrixFactorization, elbo, fit, fit_em, log_evidence
from ppl_models.datasets import MovieLens, movielens
from ppl_models.likelihoods import Ordered
from ppl_models.recommender.factorization import lower

STARS = torch.arange(1, 11) / 2
TASTE = {  # of somebody new
    "Lord of the Rings: The Fellowship of the Ring": 5.0,
    "Star Wars: Episode IV": 5.0,
    "Matrix, The": 4.5,
    "Titanic": 1.5,
    "Pretty Woman": 1.0,
}
DRAWS = 200


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data", help="the folder of MovieLens")
    parser.add_argument("--films", type=int, help="only those rated most; default: all")
    parser.add_argument("--factors", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    data = most_rated(movielens(args.data_root), args.films)
    order = torch.randperm(len(data.ratings), generator=torch.Generator().manual_seed(args.seed))
    held_out, train = order.split([len(order) // 10, len(order) - len(order) // 10])
    users, films = (data.pairs.amax(0) + 1).tolist()
    print(f"MovieLens: {len(data.ratings)} ratings of {films} films by {users} users")
    print(f"{len(held_out)} of them are held out\n")
    known = data.pairs[train], data.ratings[train]
    new = data.pairs[held_out], data.ratings[held_out]

    normal, normal_guide, bound = fit_normal(known, users, films, args)
    ordered, guide = fit_ordered(known, users, films, args)
    evidence = log_evidence(ordered, guide, known[0], known[1], num_samples=1, seed=0)
    print(f"{'held out':28}{'RMSE':>8}{'nats of half stars':>20}{'of the rest: bound':>20}")
    report("biases, normal noise", *biases(known, new, users, films))
    laws = (normal.conditional(new[0], *draw(normal_guide)) for _ in range(DRAWS))
    report("normal", *scores(laws, new[1], half_stars), bound)
    laws = (ordered.conditional(new[0], *draw(guide)) for _ in range(DRAWS))
    report("ordered, own cutpoints", *scores(laws, new[1], chances), evidence.mean)
    print("(the normal bound is one of a density, and does not compare)\n")

    place, spread = places(ordered, guide)
    counts = torch.bincount(known[0][:, 1], minlength=films)
    pictures = {
        "films_map": draw_map(place, spread, counts, data),
        "films_raters": draw_raters(ordered, guide, data),
        "films_new_user": draw_new_user(ordered, guide, data, counts, args),
    }
    print("written:")
    for name, figure in pictures.items():
        figure.savefig(args.outdir / f"{name}.png", dpi=130)
        print(f"  {args.outdir / name}.png")


def most_rated(data: MovieLens, count: int | None) -> MovieLens:
    """The films that were rated most often, numbered anew."""
    if count is None:
        return data
    found = torch.bincount(data.pairs[:, 1]).topk(count).indices.sort().values
    rows = torch.isin(data.pairs[:, 1], found)
    films = torch.searchsorted(found, data.pairs[rows, 1].contiguous())
    users = data.pairs[rows, 0].unique(return_inverse=True)[1]
    chosen = found.tolist()
    return MovieLens(
        torch.stack([users, films], 1),
        data.ratings[rows],
        [data.titles[i] for i in chosen],
        [data.genres[i] for i in chosen],
        data.user_ids[data.pairs[rows, 0].unique()],
        data.film_ids[found],
    )


def fit_normal(
    known: tuple[Tensor, Tensor], users: int, films: int, args: argparse.Namespace
) -> tuple[MatrixFactorization, FactorizationNormal, float]:
    model = MatrixFactorization(users, films, args.factors).double()
    guide = FactorizationNormal(model)
    data = known[0], known[1].double()
    run = fit_em(guide, data, max_steps=100, tolerance=1e-4, seed=args.seed)
    return model, guide, -run.history["loss"][-1]


def fit_ordered(
    known: tuple[Tensor, Tensor], users: int, films: int, args: argparse.Namespace
) -> tuple[MatrixFactorization, FactorizationNormal]:
    torch.manual_seed(args.seed)
    model = MatrixFactorization(users, films, args.factors, Ordered(STARS, own_cutpoints=True))
    guide = FactorizationNormal(model, "diag")
    guide.initialise(*known)
    settings = {"epochs": args.epochs, "batch_size": 4096, "lr": 0.02}
    fit(elbo(model, guide), known, **settings, schedule=CosineAnnealingLR, seed=args.seed)
    return model, guide


# What ratings held out tell


def draw(guide: FactorizationNormal) -> tuple[Tensor, Tensor]:
    """A draw of all users, and of all films."""
    with torch.no_grad():
        return guide.users().sample(), guide.items().sample()


def half_stars(law: NormalLaw, y: Tensor) -> Tensor:
    """Log-probabilities of half stars under normal distributions."""
    above = law.cdf(y + 0.25).masked_fill(y == 5.0, 1.0)
    below = law.cdf(y - 0.25).masked_fill(y == 0.5, 0.0)
    return (above - below).clamp(min=1e-12).log()


def chances(law: Any, y: Tensor) -> Tensor:
    return law.log_prob(y)


@torch.no_grad()
def scores(laws: Any, y: Tensor, log_prob: Callable[[Any, Tensor], Tensor]) -> tuple[float, Tensor]:
    """The RMSE of the mean of some distributions, and the nats of each rating in their mixture."""
    means, logs = zip(*[(law.mean, log_prob(law, y)) for law in laws], strict=True)
    mean = torch.stack(means).mean(0).clamp(0.5, 5)
    nats = np.log(len(logs)) - torch.stack(logs).logsumexp(0)
    return (mean - y).square().mean().sqrt().item(), nats


def report(name: str, rmse: float, nats: Tensor, bound: float | None = None) -> None:
    error = nats.std().item() / len(nats) ** 0.5
    rest = "" if bound is None else f"{bound:20.4f}"
    print(f"{name:28}{rmse:8.4f}{nats.mean().item():12.4f} ± {error:.4f}{rest}")


def biases(
    known: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], users: int, films: int
) -> tuple[float, Tensor]:
    """Means of users and films, shrunk as by five ratings more, and what they leave as noise."""
    (x, y), mean = known, known[1].mean()
    found = [torch.zeros(users), torch.zeros(films)]
    for side in (1, 0) * 10:
        rest = y - mean - found[1 - side][x[:, 1 - side]]
        total = torch.zeros_like(found[side]).index_add(0, x[:, side], rest)
        found[side] = total / (5 + torch.bincount(x[:, side], minlength=len(total)))
    inside, outside = (mean + found[0][p[:, 0]] + found[1][p[:, 1]] for p in (x, new[0]))
    return scores([NormalLaw(outside, (inside - y).std())], new[1], half_stars)


# The map


@torch.no_grad()
def places(model: MatrixFactorization, guide: FactorizationNormal) -> tuple[Tensor, Tensor]:
    """Where films are in the two directions that divide users most, and how sure that is.

    Factors may be turned; what users make of them may not: a unit is a standard deviation of the
    score among users.
    """
    last = model.num_factors + 1
    root = lower(model.user_root)[1:last]  # of what users differ in, (K, F)
    covariance = root @ root.T
    values, vectors = torch.linalg.eigh(covariance)
    whitened = vectors * values.clamp(min=0).sqrt()  # (K, K)
    loc, tril = guide.items.loc[:, 1:], guide.items.tril[:, 1:, 1:]
    at = loc @ whitened  # (I, K)
    axes = torch.linalg.eigh(at.T @ at).eigenvectors[:, [-1, -2]]
    place = at @ axes
    spread = (tril.mT @ (whitened @ axes)).square().sum(1).sqrt()  # (I, 2)
    sign = place.sum(0).sign()  # the more on the right
    return place * sign, spread


def name_of(title: str) -> str:
    """A title as people say it, without the year, and not too long."""
    name = title.split(" (")[0].removeprefix("Star Wars: ")
    first, *rest = name.split(": ", 1)
    for article in ("The", "A", "An"):
        for part in (first, *rest):
            if part.endswith(f", {article}"):
                name = f"{article} {name.replace(f', {article}', '')}"
    return name if len(name) <= 26 else name[:24].rstrip() + "..."


GENRES = ("Horror", "Animation", "Sci-Fi", "Romance", "Comedy", "Crime", "Drama")


def draw_map(place: Tensor, spread: Tensor, counts: Tensor, data: MovieLens) -> Figure:
    """Films that many have rated: colour is the first genre of a list, size how many ratings."""
    figure = Figure(figsize=(13, 10), layout="constrained")
    axes = figure.subplots()
    order = counts.argsort(descending=True)[:400]
    kind = [
        next((k for k, g in enumerate(GENRES) if g in data.genres[i]), len(GENRES)) for i in order
    ]
    colors = np.array([*matplotlib.colormaps["Set2"].colors[: len(GENRES)], (0.75, 0.75, 0.75)])
    x, y = place[order].T.numpy()
    size = counts[order].numpy() / 2
    axes.scatter(x, y, s=size, c=colors[kind], alpha=0.75, linewidths=0)
    for k, name in enumerate((*GENRES, "other")):
        axes.scatter([], [], s=60, color=colors[k], label=name)
    width, height = (np.ptp(place[order].numpy(), axis=0) / (26, 62)).tolist()
    written: list[tuple[float, float, float]] = []
    for film in order.tolist():
        name, at = name_of(data.titles[film]), place[film].tolist()
        half = width * len(name) / 8 + width / 2
        if all(abs(at[1] - b) > height or abs(at[0] - a) > half + c for a, b, c in written):
            written.append((at[0], at[1], half))
            axes.annotate(name, at, ha="center", va="center", fontsize=7.5)
    typical = spread[order[:100]].mean(0).tolist()
    corner = float(x.min()), float(y.min())
    axes.errorbar(*corner, typical[1], typical[0], color="0.4", capsize=3)
    axes.annotate("  how sure a place is (sd)", corner, fontsize=8, color="0.4", va="bottom")
    axes.set(
        xlabel="what divides users most (sd of the score among users)",
        ylabel="what divides them next",
        title="400 films by who likes them: those near each other please the same people",
    )
    figure.legend(loc="outside lower center", ncols=8, title="the first of these that a film is")
    return figure


# Users


@torch.no_grad()
def stars_of(model: MatrixFactorization, guide: FactorizationNormal, x: Tensor) -> Tensor:
    """The predictive probabilities of all half stars for some pairs, (B, 10)."""
    total = torch.zeros(len(x), len(STARS))
    for _ in range(DRAWS):
        total += model.conditional(x, *draw(guide)).logits.exp()
    return total / DRAWS


def draw_raters(model: MatrixFactorization, guide: FactorizationNormal, data: MovieLens) -> Figure:
    """How six users use the scale, and how the model says that they do."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    users, counts = data.pairs[:, 0], torch.bincount(data.pairs[:, 0])
    often = (counts >= counts.median()).nonzero()[:, 0]
    halves = torch.stack([(data.ratings[users == u] % 1 == 0.5).float().mean() for u in often])
    spread = torch.stack([data.ratings[users == u].std() for u in often])
    chosen = [*halves.argsort()[[0, -1, len(often) // 2]], *spread.argsort()[[0, -1]]]
    chosen = [int(often[i]) for i in chosen] + [int(counts.argmax())]
    panels = figure.subplots(2, 3, sharex=True, sharey=True).flat
    for axes, user in zip(panels, chosen, strict=True):
        own = users == user
        given = torch.stack([(data.ratings[own] == s).float().mean() for s in STARS])
        axes.bar(STARS, given, width=0.4, color="0.8", label="given")
        found = stars_of(model, guide, data.pairs[own]).mean(0)
        axes.plot(STARS, found, "o-", color="C0", markersize=4, label="the model")
        axes.set_title(f"user {int(data.user_ids[user])}: {int(own.sum())} ratings", fontsize=10)
    panels = figure.axes
    panels[0].legend()
    for axes in panels[3:]:
        axes.set_xlabel("stars")
    for axes in panels[::3]:
        axes.set_ylabel("share of ratings")
    figure.suptitle("Everybody has a scale of their own")
    return figure


def draw_new_user(
    model: MatrixFactorization,
    guide: FactorizationNormal,
    data: MovieLens,
    counts: Tensor,
    args: argparse.Namespace,
) -> Figure:
    """Five ratings of somebody new, and what they tell of films that many have seen."""
    named = {title: i for i, title in enumerate(data.titles)}
    rated = {
        i: stars
        for start, stars in TASTE.items()
        if (i := next((named[t] for t in named if t.startswith(start)), None)) is not None
    }
    later = guide.for_new_users(1)
    x = torch.tensor([[0, film] for film in rated])
    settings = {"steps": 20 * args.epochs, "lr": 0.02, "schedule": CosineAnnealingLR}
    fit(elbo(later.model, later), (x, torch.tensor(list(rated.values()))), **settings, seed=0)
    films = [i for i in counts.argsort(descending=True)[:150].tolist() if i not in rated]
    stars = stars_of(later.model, later, torch.tensor([[0, film] for film in films]))
    mean = stars @ STARS
    order = mean.argsort(descending=True).tolist()
    shown = [*order[:10], *order[-5:]]
    liked = ", ".join(f"{name_of(data.titles[i])} {s:g}" for i, s in rated.items())
    print(f"somebody new rates {liked}")
    print("of the films that most have seen, they will like most (expected stars):")
    for n in order[:5]:
        print(f"  {mean[n].item():.2f}  {data.titles[films[n]]}")
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(stars[shown], cmap="Blues", aspect="auto", vmin=0)
    axes.plot(mean[shown] * 2 - 1, range(len(shown)), "o", color="C1", label="expected stars")
    axes.axhline(9.5, color="k", linewidth=0.8)
    axes.set_xticks(range(10), [f"{s:g}" for s in STARS.tolist()])
    axes.set_yticks(range(len(shown)), [name_of(data.titles[films[n]]) for n in shown])
    axes.set(xlabel="stars", title=textwrap.fill(f"after {liked}", 70))
    axes.title.set_fontsize(9)
    figure.suptitle("What somebody new will give: ten films they will like best, and five least")
    axes.legend(loc="lower right")
    figure.colorbar(image, ax=axes, label="probability")
    return figure


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
