r"""A karate club, and who plays whom: blocks of a graph, places of its nodes, links not seen.

    python examples/graphs.py                                  # the club, half a minute
    python examples/graphs.py --data-root ../shared/data       # American college football, too

Thirty-four members of a club, which split in two after a quarrel of its instructor and its
officer. A stochastic block model with two blocks does not find the factions: it finds the five
members whom all others know. Corrected for degrees, it finds them. The table says how well each
model explains who knows whom, in nats of all 561 pairs of members; the pictures show the blocks,
the matrix of friendships in their order, and the places that a model of distances gives to the
members. Some pairs are then held out, to be predicted.

References:
    | An Information Flow Model for Conflict and Fission in Small Groups (Zachary, 1977)
    | https://doi.org/10.1086/jar.33.4.3629752
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arviz as az
import networkx as nx
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from pyro.infer.autoguide import AutoNormal
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from torch import Tensor

from guides import BlockPosterior
from ppl_models import (
    LatentPositions,
    StochasticBlockModel,
    elbo,
    fit,
    from_pyro_svi,
    hold_out,
    log_evidence,
    predict,
    read_graph,
)
from ppl_models.datasets import football, karate

CLUBS = ["instructor", "officer"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, help="the folder with Graphs/football.gml")
    parser.add_argument("--steps", type=int, default=1500, help="of the latent positions")
    parser.add_argument("--samples", type=int, default=500, help="draws from each posterior")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", "log_evidence: .* draws are as good as", UserWarning)

    source, club = karate()
    graph = read_graph(source)
    pairs, edges = graph.pairs()
    print(f"karate club: {graph.num_nodes} members, {len(graph.edges)} friendships\n")
    print(f"{'log evidence of all 561 pairs':32}{'nats':>9}  kind")
    guides = {}
    for name, model in candidates().items():
        guide = BlockPosterior(model, pairs, edges, seed=args.seed)
        show(name, log_evidence(model, guide, pairs, edges, num_samples=args.samples, seed=0))
        guides[name] = model, guide
    places, map_guide = fit_places(pairs, edges, args)
    show("places, by distance", log_evidence(places, map_guide, pairs, edges, seed=0))
    print("(the model of degrees is one of counts, which an edge of 0 or 1 is)\n")

    found = {name: guide.labels.argmax(1) for name, (_, guide) in guides.items()}
    hubs = found["two blocks"].nonzero().flatten().tolist()
    print(f"two blocks: members {hubs} against the rest")
    apart = int((found["two blocks, degrees"] != club).sum())
    print(f"corrected for degrees: {min(apart, 34 - apart)} of 34 members are not in the faction")
    print("that they joined\n")

    model, guide = guides["two blocks"]
    data = from_pyro_svi(model, guide, pairs, edges, num_samples=args.samples, seed=args.seed)
    print("densities within and between the blocks, from draws that ArviZ summarises:")
    print(az.summary(data, var_names=["density"], kind="stats"), end="\n\n")
    print(f"links held out, area under the curve: {predicted(graph, args):.3f}")

    files = [draw_blocks(source, club, found, args), draw_matrix(graph, found, args)]
    files.append(draw_places(map_guide, graph.edges, club, args))
    if args.data_root is not None:
        files.append(draw_football(*football(args.data_root), args))
    print("\nwritten:", *files, sep="\n  ")


def candidates() -> dict[str, StochasticBlockModel]:
    return {
        "one block": StochasticBlockModel(34, 1),
        "two blocks": StochasticBlockModel(34, 2),
        "two blocks, degrees": StochasticBlockModel(34, 2, degree_corrected=True),
    }


def show(name: str, evidence: Any) -> None:
    print(f"{name:32}{evidence.value.item():9.2f}  {evidence.kind}")


def fit_places(
    pairs: Tensor, edges: Tensor, args: argparse.Namespace
) -> tuple[LatentPositions, AutoNormal]:
    torch.manual_seed(args.seed)
    model = LatentPositions(34, 2)
    guide = AutoNormal(model, init_scale=0.1)
    fit(elbo(model, guide), (pairs, edges), steps=args.steps, lr=0.02, seed=args.seed)
    return model, guide


def predicted(graph: Any, args: argparse.Namespace) -> float:
    """How well the blocks and degrees tell pairs with an edge from others, none of them seen."""
    links = hold_out(graph, valid=0.0, test=0.2, seed=args.seed)
    model = StochasticBlockModel(graph.num_nodes, 2, degree_corrected=True)
    guide = BlockPosterior(model, *links.train, seed=args.seed)
    pairs, edges = links.test
    drawn = predict(model, guide, pairs, num_samples=args.samples, seed=args.seed)
    return float(roc_auc_score(edges, drawn["predictions"]["edges"].values.mean((0, 1))))


def draw_blocks(
    source: Any, club: Tensor, found: dict[str, Tensor], args: argparse.Namespace
) -> Path:
    place = nx.spring_layout(source, seed=3, weight=None)
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    names = [name for name in found if name != "one block"]
    for axes, name in zip(figure.subplots(1, 2), names, strict=True):
        nx.draw_networkx_edges(source, place, ax=axes, edge_color="0.75", width=0.9)
        for side, marker in enumerate("os"):
            nodes = (club == side).nonzero().flatten().tolist()
            colors = [f"C{int(found[name][i])}" for i in nodes]
            sizes = [120 + 35 * source.degree(i) for i in nodes]
            options = {"node_shape": marker, "edgecolors": "k", "linewidths": 0.6}
            nx.draw_networkx_nodes(source, place, nodes, sizes, colors, ax=axes, **options)
            axes.scatter([], [], marker=marker, c="w", edgecolors="k", label=CLUBS[side])
        nx.draw_networkx_labels(source, place, font_size=8, font_color="w", ax=axes)
        axes.set_title(name)
        axes.axis("off")
    figure.axes[0].legend(title="joined (not told)", loc="lower left")
    figure.suptitle("The blocks that are found (colours), and the factions (shapes)")
    return save(figure, "graphs-blocks.png", args)


def draw_matrix(graph: Any, found: dict[str, Tensor], args: argparse.Namespace) -> Path:
    figure = Figure(figsize=(10, 5.8), layout="compressed")
    matrix = np.zeros((graph.num_nodes, graph.num_nodes))
    matrix[tuple(graph.edge_index.numpy())] = 1
    names = [name for name in found if name != "one block"]
    for axes, name in zip(figure.subplots(1, 2), names, strict=True):
        order = found[name].argsort(stable=True).numpy()
        axes.imshow(1 - matrix[np.ix_(order, order)], cmap="gray")
        border = int((found[name] == 0).sum()) - 0.5
        axes.axhline(border, color="C3")
        axes.axvline(border, color="C3")
        axes.set_xticks(range(34), order, fontsize=6, rotation=90)
        axes.set_yticks(range(34), order, fontsize=6)
        axes.set_title(name)
    figure.suptitle("Who knows whom, members in the order of their blocks")
    return save(figure, "graphs-matrix.png", args)


@torch.no_grad()
def draw_places(guide: AutoNormal, edges: Tensor, club: Tensor, args: argparse.Namespace) -> Path:
    middle = guide.median()["z"].numpy()
    low, high = (q.numpy() for q in guide.quantiles([0.25, 0.75])["z"])
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axes = figure.subplots()
    for i, j in edges.tolist():
        axes.plot(*middle[[i, j]].T, color="0.6", linewidth=0.8, zorder=0)
    for i, (x, y) in enumerate(middle):
        color = f"C{int(club[i])}"
        axes.add_patch(Ellipse((x, y), *(high - low)[i], color=color, alpha=0.12, lw=0, zorder=-1))
        axes.annotate(str(i), (x, y), color="w", fontsize=7, ha="center", va="center")
    for side, name in enumerate(CLUBS):
        axes.scatter(*middle[club == side].T, c=f"C{side}", s=150, label=name, edgecolors="k")
    axes.set_aspect("equal")
    axes.set(title="Places of the members, with the middle half of each posterior")
    axes.legend(title="joined (not told)")
    return save(figure, "graphs-places.png", args)


def draw_football(source: Any, y: Tensor, args: argparse.Namespace) -> Path:
    graph = read_graph(source)
    model = StochasticBlockModel(graph.num_nodes, 12, learn_prior=True)
    guide = BlockPosterior(model, *graph.pairs(), seed=args.seed)
    label = guide.labels.argmax(1)
    index = adjusted_rand_score(y, label)
    print(f"football: 12 conferences, 12 blocks; adjusted Rand index {index:.3f}")
    place = nx.spring_layout(source, seed=1, iterations=200)
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots()
    nx.draw_networkx_edges(source, place, ax=axes, edge_color="0.85", width=0.6)
    colors = [f"C{int(b)}" if b < 10 else ["k", "gold"][int(b) - 10] for b in label]
    nx.draw_networkx_nodes(source, place, ax=axes, node_color=colors, node_size=60)
    above = {team: (x, y + 0.02) for team, (x, y) in place.items()}
    nx.draw_networkx_labels(source, above, ax=axes, font_size=5)
    axes.set_title("Teams that play one another, and the blocks that are found")
    axes.axis("off")
    return save(figure, "graphs-football.png", args)


def save(figure: Figure, name: str, args: argparse.Namespace) -> Path:
    figure.savefig(args.outdir / name, dpi=120)
    return args.outdir / name


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
