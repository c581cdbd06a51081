r"""
From counts to a density
========================

How far do plain counts get? A histogram of two features is a density: it has marginals,
conditionals and an evidence, and they obey the rules of probability to the last digit.

Of :math:`N` rows, :math:`n_{jk}` fall into the bin :math:`B_{jk}`, whose area is :math:`|B_{jk}|`.
Counts become proportions, and proportions a density [1]_:

.. math::
    p(x) = \frac{\pi_{jk}}{|B_{jk}|} \quad \text{for } x \in B_{jk}, \qquad
    \pi_{jk} = \frac{n_{jk}}{N}

.. math::
    p(x_1) = \int p(x_1, x_2) \, dx_2, \qquad p(x_2 \mid x_1) = \frac{p(x_1, x_2)}{p(x_1)}

The rows are 442 people with diabetes [2]_: their body mass index :math:`x_1` and their average
blood pressure :math:`x_2`.

Takes 10 seconds on two cores: ``python examples/histogram_density.py``. Pictures go into
``outputs/``.

.. [1] Multivariate Density Estimation (Scott, 2015), chapter 3,
       https://doi.org/10.1002/9781118575574
.. [2] Least Angle Regression (Efron et al., 2004), whose data these are,
       https://doi.org/10.1214/009053604000000067
"""

# %%
# The data
# --------
# 300 people are counted. The others are kept for the question of how many bins there should be.

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes

from ppl_models import HistogramDensity, bin_edges, log_evidence

parser = argparse.ArgumentParser(description="Joint, marginal and conditional densities.")
parser.add_argument(
    "--index", type=float, nargs="+", default=[22.0, 31.0], help="condition on these, in kg/m²"
)
parser.add_argument("--seed", type=int, default=0, help="of the choice of people to count")
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")

NAMES = ["body mass index (kg/m²)", "blood pressure (mmHg)"]
rows = torch.from_numpy(load_diabetes(scaled=False).data[:, [2, 3]])  # (N, 2)
order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed))
train, test = rows[order[:300]], rows[order[300:]]
print(f"{len(rows)} people, {len(train)} counted and {len(test)} held out; bins span them all")

# %%
# The fit
# -------
# Fitting is counting: no other proportions give those counted a greater likelihood. The width of
# the bins follows Scott's rule, which is for rows that are nearly Gaussian:
#
# .. math:: h_d = \sigma_d \left( 48 \pi / N \right)^{1 / 4}
#
# The evidence is exact: it is the density itself, for there are no latents.

edges = bin_edges(rows)
model = HistogramDensity(*edges).maximum_likelihood(train)
shape = tuple(model.proportions.shape)
widths = [(e[1] - e[0]).item() for e in edges]
print(f"Scott's rule: {shape[0]} × {shape[1]} bins", end=" ")
print(f"of {widths[0]:.1f} kg/m² × {widths[1]:.1f} mmHg")
print(log_evidence(model, None, train), "(of the people counted)")

# %%
# The joint density
# -----------------
# Each dot is a person; the darker a bin, the greater its density, and in a grey one is no one. The
# marginals stand on the sides. Beside that of the pressure are two conditionals: the density of the
# pressure of people whose index is on one of the dashed lines.


def density(model):
    """The density of each bin, read in its middle."""
    middles = [(e[1:] + e[:-1]) / 2 for e in model.edges]
    points = torch.cartesian_prod(*middles).reshape(-1, len(middles))
    return model.evidence().log_prob(points).exp().detach().reshape(model.proportions.shape)


def heat_map(axes, model):
    values = density(model)
    seen = values.where(values > 0, torch.nan).T  # empty bins stay grey
    image = axes.pcolormesh(*model.edges, seen, cmap="Blues", vmin=0)
    axes.plot(*train.T, "k.", markersize=2.5, alpha=0.7, clip_on=False)
    axes.set_facecolor("0.93")
    axes.set_xlabel(NAMES[0])
    return image


# sphinx_gallery_thumbnail_number = 1
figure = plt.figure(figsize=(8.5, 6.5))
grid = figure.add_gridspec(2, 3, width_ratios=(4, 1.8, 0.15), height_ratios=(1.3, 4))
joint = figure.add_subplot(grid[1, 0])
above = figure.add_subplot(grid[0, 0], sharex=joint)
beside = figure.add_subplot(grid[1, 1], sharey=joint)
image = heat_map(joint, model)
figure.colorbar(image, cax=figure.add_subplot(grid[1, 2]), label="joint density (m²/kg/mmHg)")
joint.set_ylabel(NAMES[1])

for feature, axes, orientation in ((0, above, "vertical"), (1, beside, "horizontal")):
    alone = model.marginal(feature)
    steps = {"orientation": orientation, "fill": True, "alpha": 0.4, "label": "marginal"}
    axes.stairs(density(alone), alone.edges[0], **steps)
for i, index in enumerate(args.index):
    given = model.conditional(0, index)
    joint.axvline(index, color=f"C{i + 1}", linestyle="--", linewidth=2)
    steps = {"color": f"C{i + 1}", "linewidth": 2, "label": f"given index {index:g} kg/m²"}
    beside.stairs(density(given), given.edges[0], orientation="horizontal", **steps)
above.set(ylabel="density (m²/kg)", title="Marginal of the index")
beside.set(xlabel="density (1/mmHg)", title="Density of the pressure")
above.tick_params(labelbottom=False)
beside.tick_params(labelleft=False)
corner = figure.add_subplot(grid[0, 1])
corner.legend(*beside.get_legend_handles_labels(), loc="center")
corner.set_axis_off()
figure.savefig(args.outdir / "histogram-joint.png")

# %%
# The rules of probability
# ------------------------
# Both sides of each. The integral is numerical, by the midpoint rule with 100 points along each
# side of a bin. The last two lines are the same number: at the maximum of the likelihood the mean
# log-density of the rows is minus the entropy of the model.

sides = [torch.linspace(e[0], e[-1], 100 * (len(e) - 1) + 1, dtype=e.dtype) for e in edges]
points = torch.cartesian_prod(*((e[1:] + e[:-1]) / 2 for e in sides))
area = (sides[0][1] - sides[0][0]) * (sides[1][1] - sides[1][0])
integral = model.evidence().log_prob(points).exp().sum() * area
log_joint = model.evidence().log_prob(train)
log_marginal = model.marginal(0).evidence().log_prob(train[:, :1])
log_conditional = torch.stack(
    [model.conditional(0, x[0]).evidence().log_prob(x[1:]) for x in train]
)
worst = (log_joint - log_marginal - log_conditional).abs().max().item()
print(f"proportions sum to         {model.proportions.sum():.12f}")
print(f"the density integrates to  {integral:.12f}")
print(f"log joint = log marginal + log conditional, for each person, up to {worst:.0e}")
print(f"mean log-density of those counted {log_joint.mean():.6f} nats")
print(f"minus the entropy of the density  {-model.evidence().entropy():.6f} nats")

# %%
# A density is no probability
# ---------------------------
# The probability of a bin is its density times its area. A conditional divides by the people in the
# same column; where there is no one, it cannot be asked for. The last table reads conditionals as
# probabilities: on the whole, the greater the index, the more often pressure is high.

j, k = divmod(int(model.proportions.argmax()), shape[1])
(a, b), (c, d) = edges[0][j : j + 2].tolist(), edges[1][k : k + 2].tolist()
proportion, area = model.proportions[j, k].item(), (b - a) * (d - c)
column = model.marginal(0).proportions[j].item()
print(f"the fullest bin: index {a:.1f} to {b:.1f} kg/m², pressure {c:.1f} to {d:.1f} mmHg")
print(f"  probability {proportion:.4f} = {proportion * len(train):.0f} of {len(train)} people")
print(f"              {proportion:.4f} = density {proportion / area:.2e} × area {area:.2f}")
print(
    f"  given the index, {proportion / column:.4f} = {proportion * len(train):.0f} of the "
    f"{column * len(train):.0f} people with that index\n"
)

high = edges[1][len(edges[1]) // 2].item()
print(f"index (kg/m²)    people    P(pressure ≥ {high:.1f} mmHg | index)")
for j, share in enumerate(model.marginal(0).proportions.tolist()):
    a, b = edges[0][j : j + 2].tolist()
    above = "no one to say"
    if share > 0:
        given = model.conditional(0, (a + b) / 2)
        above = f"{given.proportions[given.edges[0][:-1] >= high].sum():.2f}"
    print(f"{a:5.1f} to {b:4.1f} {share * len(train):11.0f}    {above}")

# %%
# How many bins?
# --------------
# The more bins, the better for those counted: around each of them a bin may be as narrow, and its
# density as great, as one likes. The people held out say where to stop. One of them in an empty bin
# has no density at all, so each bin gets one person more, a pseudo-count, before they are asked.

print("log evidence, in nats per person, exact (± the error over people)")
print("               those counted          those held out")
print("bins    empty  maximum likelihood     pseudo-count 1      in empty bins")
table = {}
for bins in sorted({(n, n) for n in (2, 4, 6, 12, 16, 24, 32, 64)} | {shape}):
    other = HistogramDensity(*bin_edges(rows, bins)).maximum_likelihood(train)
    empty = (other.proportions == 0).double().mean()
    counted, lost = (log_evidence(other, None, x) for x in (train, test))
    held_out = log_evidence(other.maximum_likelihood(train, pseudo_count=1.0), None, test)
    print(
        f"{bins[0]:2} × {bins[1]:<2} {empty:6.0%} {counted.mean:13.3f} {held_out.mean:21.3f} ± "
        f"{held_out.standard_error:.3f} {lost.value.isinf().sum():10} of {len(test)}"
        + ("  Scott's rule" if bins == shape else "")
    )
    table[bins] = counted, held_out
print("(without the pseudo-count a person in an empty bin has minus infinity)")

best = max(table.keys() - {shape}, key=lambda bins: table[bins][1].mean)
gap = table[shape][1].value - table[best][1].value
print(
    f"held out, Scott's rule minus the best other number of bins ({best[0]} × {best[1]}): "
    f"{gap.mean():+.3f} ± {gap.std() / len(gap) ** 0.5:.3f}"
)

# %%
# Scott's rule is as good as the best of the others: their difference is within its error. In the
# upper pictures, too few bins hide how pressure goes with the index, and too many show each person.

figure = plt.figure(figsize=(9, 6.5))
maps, curves = figure.subfigures(2, 1)
chosen = {"too few": (2, 2), "Scott's rule": shape, "too many": (32, 32)}
panels = maps.subplots(1, 3, sharey=True)
for axes, (title, bins) in zip(panels, chosen.items(), strict=True):
    heat_map(axes, HistogramDensity(*bin_edges(rows, bins)).maximum_likelihood(train))
    axes.set_title(f"{title}: {bins[0]} × {bins[1]} bins")
panels[0].set_ylabel(NAMES[1])

axes = curves.subplots()
number = [(a * b) ** 0.5 for a, b in table]
counted, held_out = zip(*table.values(), strict=True)
axes.semilogx(
    number, [e.mean for e in counted], "o-", base=2, label="those counted, maximum likelihood"
)
means, errors = [e.mean for e in held_out], [e.standard_error for e in held_out]
label = "held out, pseudo-count 1 (± standard error)"
axes.errorbar(number, means, errors, fmt="s-", capsize=4, label=label)
axes.axvline((shape[0] * shape[1]) ** 0.5, color="k", linestyle=":", label="Scott's rule")
axes.set(xlabel="bins of the index × bins of the pressure", ylabel="log evidence (nats per person)")
axes.set_xticks(number, [f"{a}×{b}" for a, b in table])
axes.minorticks_off()
axes.legend(loc="upper left", bbox_to_anchor=(0.4, 1))
figure.savefig(args.outdir / "histogram-bins.png")

# %%
# To try next
# -----------
# - ``--index 25 37``: what is known of the pressure of people with an index of 37?
# - Other pseudo-counts, such as 0.1: does the best number of bins change?
# - A mixture of Gaussians of the same rows, :doc:`/gallery/gaussian_mixture`: how many nats per
#   person does it gain on those held out?
# - :doc:`/families/densities` says why counting is maximum likelihood.
