r"""
Blocks of a karate club
=======================

Who took whose side, told from friendships alone? A club of 34 members split in two after a quarrel
of its instructor and its officer [1]_.

In a stochastic block model each member is in a block, and whether two are friends depends on their
blocks only:

.. math::
    \pi &\sim \mathrm{Dirichlet}(1, \ldots, 1), \qquad b_i \sim \mathrm{Categorical}(\pi) \\
    \rho_{rs} &\sim \mathrm{Beta}(1, 1), \qquad
    A_{ij} \mid b \sim \mathrm{Bernoulli}(\rho_{b_i b_j})

Corrected for degrees [2]_, members of one block may have many friends or few:

.. math::
    \theta_i &\sim \mathrm{Gamma}(1, 1), \qquad \rho_{rs} \sim \mathrm{Gamma}(1, 1) \\
    A_{ij} \mid b &\sim \mathrm{Poisson}(\theta_i \theta_j \rho_{b_i b_j})

In a third model [3]_ members have places, and those near each other are friends:

.. math::
    z_i \sim \mathcal{N}(0, I), \qquad
    A_{ij} \mid z \sim \mathrm{Bernoulli}(\sigma(a - g \, \lvert z_i - z_j \rvert))

Takes 15 seconds on two cores: ``python examples/graphs.py``. Pictures go into ``outputs/``.
American college football is looked at, too, where ``data/Graphs/football.gml`` is:

.. code-block:: sh

    python examples/graphs.py --data-root data

.. [1] An Information Flow Model for Conflict and Fission in Small Groups (Zachary, 1977),
       https://doi.org/10.1086/jar.33.4.3629752
.. [2] Stochastic Blockmodels and Community Structure in Networks (Karrer & Newman, 2011),
       https://doi.org/10.1103/PhysRevE.83.016107
.. [3] Latent Space Approaches to Social Network Analysis (Hoff et al., 2002),
       https://doi.org/10.1198/016214502388618906
"""

# %%
# The data
# --------
# The club comes with networkx. A row is a pair of members, and whether they are friends. Which
# faction a member joined in the end is kept for the last: no model is told.

import argparse
import warnings
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Ellipse
from pyro.infer.autoguide import AutoNormal
from sklearn.metrics import adjusted_rand_score, roc_auc_score

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

try:
    import networkx as nx
except ImportError:
    raise SystemExit("error: graphs need networkx: pip install 'ppl-models[graphs]'") from None

parser = argparse.ArgumentParser(description="Blocks and places in graphs.")
parser.add_argument("--data-root", type=Path, help="the folder with Graphs/football.gml")
parser.add_argument("--steps", type=int, default=1500, help="of the latent positions")
parser.add_argument("--samples", type=int, default=500, help="draws from each posterior")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")

source, club = karate()
graph = read_graph(source)
pairs, edges = graph.pairs()
print(f"karate club: {graph.num_nodes} members, {len(graph.edges)} friendships")

# %%
# Four explanations
# -----------------
# The mean-field posterior of blocks is found by coordinate ascent, from many starts of which the
# best is kept: ``BlockPosterior`` has nothing left to fit. The places have a guide of Pyro's, and
# are fitted by gradients. How well each model explains who knows whom is one number, the evidence
# of all 561 pairs, here a lower bound from weighted draws of the guide. Where few draws carry the
# weight, a bound may be lower than need be, which is worth a warning; here it is the last column.


def show(name, model, guide, num_samples):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the last column says it
        evidence = log_evidence(model, guide, pairs, edges, num_samples=num_samples, seed=args.seed)
    draws = f"{evidence.effective_draws.item():.1f} of {num_samples}"
    print(f"{name:30}{evidence.value.item():8.2f}  {evidence.kind:12}{draws:>16}")


candidates = {
    "one block": StochasticBlockModel(34, 1),
    "two blocks": StochasticBlockModel(34, 2),
    "two blocks, degrees": StochasticBlockModel(34, 2, degree_corrected=True),
}
print(f"{'log evidence of all 561 pairs':30}{'nats':>8}  {'kind':12}{'effective draws':>16}")
guides = {}
for name, model in candidates.items():
    guides[name] = BlockPosterior(model, pairs, edges, seed=args.seed)
    show(name, model, guides[name], args.samples)

torch.manual_seed(args.seed)
places = LatentPositions(34, 2)
map_guide = AutoNormal(places, init_scale=0.1)
fit(elbo(places, map_guide), (pairs, edges), steps=args.steps, lr=0.02, seed=args.seed)
show("places, by distance", places, map_guide, 2 * args.samples)
print("(the model of degrees is one of counts, which an edge of 0 or 1 is)")

# %%
# Two blocks explain the club better than one by far. But which blocks?

# %%
# What the blocks are
# -------------------

found = {name: guide.labels.argmax(1) for name, guide in guides.items()}
hubs = found["two blocks"].nonzero().flatten().tolist()
print(f"two blocks: members {hubs} against the rest")
apart = int((found["two blocks, degrees"] != club).sum())
print(f"corrected for degrees: {min(apart, 34 - apart)} of 34 members are not in the faction")
print("that they joined")

# sphinx_gallery_thumbnail_number = 1
place = nx.kamada_kawai_layout(source, weight=None)
figure, panels = plt.subplots(1, 2, figsize=(11, 5.2))
for axes, name in zip(panels, ("two blocks", "two blocks, degrees"), strict=True):
    nx.draw_networkx_edges(source, place, ax=axes, edge_color="0.75", width=0.9)
    for side, (marker, faction) in enumerate((("o", "instructor"), ("s", "officer"))):
        nodes = (club == side).nonzero().flatten().tolist()
        colors = [f"C{int(found[name][i])}" for i in nodes]
        sizes = [120 + 18 * source.degree(i) for i in nodes]
        shape = {"node_shape": marker, "edgecolors": "k", "linewidths": 0.6}
        nx.draw_networkx_nodes(source, place, nodes, sizes, colors, ax=axes, **shape)
        axes.scatter([], [], marker=marker, c="w", edgecolors="k", label=faction)
    nx.draw_networkx_labels(source, place, font_size=8, font_color="w", ax=axes)
    axes.set_title(name)
    axes.axis("off")
panels[0].legend(title="joined (not told)", loc="upper left")
figure.suptitle("Blocks that are found (colours), and the factions (shapes)")
figure.savefig(args.outdir / "graphs-blocks.png")

# %%
# Two plain blocks are the members whom all know, and all others: both leaders are in one block.
# That is no mistake. It is what tells friendships best, if a block has one density. Once members
# may differ in how many friends they have, what is left to explain is the quarrel.
#
# The same in the matrix of friendships, with the members in the order of their blocks: a dark
# square is a friendship, and lines are the borders of blocks.

matrix = np.zeros((graph.num_nodes, graph.num_nodes))
matrix[tuple(graph.edge_index.numpy())] = 1
figure, panels = plt.subplots(1, 2, figsize=(10, 5.4))
for axes, name in zip(panels, ("two blocks", "two blocks, degrees"), strict=True):
    order = found[name].argsort(stable=True).numpy()
    axes.imshow(matrix[np.ix_(order, order)])
    border = int((found[name] == 0).sum()) - 0.5
    axes.axhline(border, color="C1")
    axes.axvline(border, color="C1")
    axes.set_xticks(range(34), order, fontsize=6, rotation=90)
    axes.set_yticks(range(34), order, fontsize=6)
    axes.set(xlabel="member", ylabel="member", title=name)
figure.suptitle("Who knows whom, members in the order of their blocks")
figure.savefig(args.outdir / "graphs-matrix.png")

# %%
# How dense friendships are
# -------------------------
# Draws of the posterior go to ArviZ, as from any model: the shares of pairs that are friends,
# within the block of the many, between both blocks, and among the few.

plain = candidates["two blocks"], guides["two blocks"]
data = from_pyro_svi(*plain, pairs, edges, num_samples=args.samples, seed=args.seed)
print("densities within and between blocks, from draws, by ArviZ:")
print(az.summary(data, var_names=["density"], kind="stats"))

# %%
# A map of the club
# -----------------
# The third model sees the same split as a distance. Places are latents, each with a posterior of
# its own: the ellipses hold the middle half of it along each axis.

with torch.no_grad():
    middle = map_guide.median()["z"].numpy()
    low, high = (q.numpy() for q in map_guide.quantiles([0.25, 0.75])["z"])
figure, axes = plt.subplots(figsize=(7, 6))
for i, j in graph.edges.tolist():
    axes.plot(*middle[[i, j]].T, color="0.6", linewidth=0.8, zorder=0)
for i, at in enumerate(middle):
    size, color = (high - low)[i], f"C{int(club[i])}"
    axes.add_patch(Ellipse(at, *size, color=color, alpha=0.1, linewidth=0, zorder=-1))
    axes.annotate(str(i), at, color="w", fontsize=7, ha="center", va="center")
for side, (marker, faction) in enumerate((("o", "instructor"), ("s", "officer"))):
    some = middle[club == side]
    axes.scatter(*some.T, c=f"C{side}", marker=marker, s=130, label=faction, edgecolors="k")
axes.set(xlabel="$z_1$, in standard deviations of the prior", ylabel="$z_2$", aspect="equal")
axes.set_title("Places of the members, with the middle half of each posterior")
axes.legend(title="joined (not told)")
figure.savefig(args.outdir / "graphs-places.png")

# %%
# Friendships that were not seen
# ------------------------------
# A fifth of the friendships is held out, with as many pairs that are no friends. Both are left out
# of the rows, which makes them missing. The area under the curve is the chance that a friendship
# has a higher probability than a pair without one.

links = hold_out(graph, valid=0.0, test=0.2, seed=args.seed)
model = StochasticBlockModel(graph.num_nodes, 2, degree_corrected=True)
guide = BlockPosterior(model, *links.train, seed=args.seed)
held_out, truth = links.test
drawn = predict(model, guide, held_out, num_samples=args.samples, seed=args.seed)
area = roc_auc_score(truth, drawn["predictions"]["edges"].values.mean((0, 1)))
print(f"{len(truth)} pairs held out, area under the curve: {area:.3f}")

# %%
# American college football
# -------------------------
# Twelve conferences of 115 teams, who mostly play teams of their own [4]_. With a learned prior,
# the model knows that densities between any two blocks are alike. The adjusted Rand index is 1
# where blocks are the conferences, and 0 by chance.
#
# .. [4] Community Structure in Social and Biological Networks (Girvan & Newman, 2002),
#        https://doi.org/10.1073/pnas.122653799


def draw_football(source, label):
    """Writes the block of each team where the team is."""
    place = nx.spring_layout(source, seed=1, iterations=200)
    figure, axes = plt.subplots(figsize=(8, 7))
    nx.draw_networkx_edges(source, place, ax=axes, edge_color="0.85", width=0.6)
    for team, block in zip(source, label.tolist(), strict=True):
        box = {"boxstyle": "circle,pad=0.15", "facecolor": f"C{block % 7}", "edgecolor": "w"}
        style = {"color": "w", "fontsize": 8, "ha": "center", "va": "center"}
        axes.text(*place[team], "ABCDEFGHIJKL"[block], bbox=box, **style)
    axes.set_title("Teams that play each other, and the blocks that are found (letters)")
    axes.axis("off")
    return figure


if args.data_root is None:
    print("football: left out, without --data-root")
else:
    try:
        games, conference = football(args.data_root)
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
    teams = read_graph(games)
    model = StochasticBlockModel(teams.num_nodes, 12, learn_prior=True)
    label = BlockPosterior(model, *teams.pairs(), seed=args.seed).labels.argmax(1)
    index = adjusted_rand_score(conference, label)
    print(f"football: 12 conferences, 12 blocks; adjusted Rand index {index:.3f}")
    draw_football(games, label).savefig(args.outdir / "graphs-football.png")

# %%
# To try next
# -----------
# - Three blocks, or four: what do the plain ones find, and what is it worth in nats?
# - ``StochasticBlockModel(34, 2, learn_prior=True)``: what does a learned prior change?
# - ``LatentPositions(34, 2, similarity="inner product")`` puts the best known members far out,
#   not in the middle.
# - :doc:`/families/graphs` derives these models, and those of graphs with features of nodes.
