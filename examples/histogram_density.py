r"""Joint, marginal and conditional densities, from counts alone.

.. math::
    p(x) = \frac{\pi_{jk}}{|B_{jk}|}, \qquad \pi_{jk} = \frac{n_{jk}}{N}, \qquad
    p(x_1) = \int p(x) \, dx_2, \qquad p(x_2 \mid x_1) = \frac{p(x_1, x_2)}{p(x_1)}

    python examples/histogram_density.py    # a few seconds

The rows are 442 people with diabetes: their body mass index and their average blood pressure. 300
of them are counted. Prints the rules of probability as they hold for counts, and how many bins
predict the others best; draws the joint density with its marginals and a conditional.

References:
    | Least Angle Regression (Efron et al., 2004), whose data these are
    | https://doi.org/10.1214/009053604000000067
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from torch import Tensor

from ppl_models import Evidence, log_evidence
from ppl_models.densities.bins import bin_edges
from ppl_models.densities.histogram import HistogramDensity

NAMES = ["body mass index (kg/m²)", "blood pressure (mmHg)"]
NUMBERS = [2, 4, 6, 12, 16, 24, 32, 64]  # of bins of each feature, to compare with the rule


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--index", type=float, nargs="+", default=[22.0, 31.0], help="condition on these, in kg/m²"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of people to count")
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)

    rows = torch.from_numpy(load_diabetes(scaled=False).data[:, [2, 3]])  # (N, 2)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed))
    train, test = rows[order[:300]], rows[order[300:]]
    print(f"{len(rows)} people, {len(train)} counted and {len(test)} held out; bins span them all")

    edges = bin_edges(rows)
    model = HistogramDensity(*edges).maximum_likelihood(train)
    shape = tuple(model.proportions.shape)
    widths = [(e[1] - e[0]).item() for e in edges]
    size = f"{widths[0]:.1f} kg/m² × {widths[1]:.1f} mmHg"
    print(f"Scott's rule: {shape[0]} × {shape[1]} bins of {size}")
    print(log_evidence(model, None, train), "(of the people counted)\n")

    print_rules(model, train)
    print_conditionals(model, train)
    table = compare(rows, train, test, shape)

    files = [args.outdir / f"histogram-{name}.png" for name in ("joint", "bins")]
    draw_joint(model, train, args.index).savefig(files[0], dpi=120)
    draw_bins(rows, train, table, shape).savefig(files[1], dpi=120)
    print("\nwritten:", *files, sep="\n  ")


def print_rules(model: HistogramDensity, train: Tensor) -> None:
    """The rules of probability, each with both sides."""
    # The midpoint rule with 100 points along each side of a bin.
    sides = [
        torch.linspace(e[0], e[-1], 100 * (len(e) - 1) + 1, dtype=e.dtype) for e in model.edges
    ]
    points = torch.cartesian_prod(*((e[1:] + e[:-1]) / 2 for e in sides))
    area = (sides[0][1] - sides[0][0]) * (sides[1][1] - sides[1][0])
    integral = model.evidence().log_prob(points).exp().sum() * area
    log_joint = model.evidence().log_prob(train)
    log_marginal = model.marginal(0).evidence().log_prob(train[:, :1])
    log_conditional = torch.stack(
        [model.conditional(0, x[0]).evidence().log_prob(x[1:]) for x in train]
    )
    worst = (log_joint - log_marginal - log_conditional).abs().max().item()
    print("rules of probability")
    print(f"  proportions sum to         {model.proportions.sum():.12f}")
    print(f"  the density integrates to  {integral:.12f}")
    print(f"  log joint = log marginal + log conditional, for each person, up to {worst:.0e}")
    print(f"  mean log-density of those counted {log_joint.mean():.6f} nats")
    print(f"  minus the entropy of the density  {-model.evidence().entropy():.6f} nats\n")


def print_conditionals(model: HistogramDensity, train: Tensor) -> None:
    """The density as probabilities of bins."""
    j, k = divmod(int(model.proportions.argmax()), model.proportions.shape[1])
    (a, b), (c, d) = (e[i : i + 2].tolist() for e, i in zip(model.edges, (j, k), strict=True))
    proportion, area = model.proportions[j, k].item(), (b - a) * (d - c)
    column = model.marginal(0).proportions[j].item()
    print(f"the fullest bin: index {a:.1f} to {b:.1f} kg/m², pressure {c:.1f} to {d:.1f} mmHg")
    print(f"  probability {proportion:.4f} = {proportion * len(train):.0f} of {len(train)} people")
    print(f"              {proportion:.4f} = density {proportion / area:.2e} × area {area:.2f}")
    print(
        f"  given the index, {proportion / column:.4f} = {proportion * len(train):.0f} of the "
        f"{column * len(train):.0f} people with that index\n"
    )

    high = model.edges[1][len(model.edges[1]) // 2].item()
    print(f"index (kg/m²)    people    P(pressure ≥ {high:.1f} mmHg | index)")
    for j, share in enumerate(model.marginal(0).proportions.tolist()):
        a, b = model.edges[0][j : j + 2].tolist()
        above = "no one to say"
        if share > 0:
            given = model.conditional(0, (a + b) / 2)
            above = f"{given.proportions[given.edges[0][:-1] >= high].sum():.2f}"
        print(f"{a:5.1f} to {b:4.1f} {share * len(train):11.0f}    {above}")
    print()


def compare(
    rows: Tensor, train: Tensor, test: Tensor, rule: tuple[int, ...]
) -> dict[tuple[int, ...], tuple[Evidence, Evidence]]:
    """Returns for each number of bins the evidence of those counted, and of those held out."""
    print("log evidence, in nats per person, exact (± the error over people)")
    print("               those counted          those held out")
    print("bins    empty  maximum likelihood     pseudo-count 1      in empty bins")
    table = {}
    for shape in sorted({(n, n) for n in NUMBERS} | {rule}):
        model = HistogramDensity(*bin_edges(rows, shape)).maximum_likelihood(train)
        best, lost = log_evidence(model, None, train), log_evidence(model, None, test).value.isinf()
        empty = (model.proportions == 0).double().mean()
        held_out = log_evidence(model.maximum_likelihood(train, pseudo_count=1.0), None, test)
        print(
            f"{shape[0]:2} × {shape[1]:<2} {empty:6.0%} {best.mean:13.3f} {held_out.mean:21.3f} ± "
            f"{held_out.standard_error:.3f} {lost.sum():10} of {len(test)}"
            + ("  Scott's rule" if shape == rule else "")
        )
        table[shape] = best, held_out
    print("(without the pseudo-count a person in an empty bin has minus infinity)")
    other = max(table.keys() - {rule}, key=lambda shape: table[shape][1].mean)
    gap = table[rule][1].value - table[other][1].value
    error = gap.std() / len(gap) ** 0.5
    print(
        f"held out, Scott's rule minus the best other number of bins ({other[0]} × {other[1]}):",
        end="",
    )
    print(f" {gap.mean():+.3f} ± {error:.3f}")
    return table


def density(model: HistogramDensity) -> Tensor:
    """The density of each bin, from the middle of each; zeros are left out of pictures."""
    middles = [(e[1:] + e[:-1]) / 2 for e in model.edges]
    points = torch.cartesian_prod(*middles).reshape(-1, len(middles))
    return model.evidence().log_prob(points).exp().detach().reshape(model.proportions.shape)


def heat_map(axes: Axes, model: HistogramDensity, train: Tensor) -> QuadMesh:
    values = density(model)
    seen = values.where(values > 0, torch.nan).T.numpy()
    image = axes.pcolormesh(*(e.numpy() for e in model.edges), seen, cmap="Blues", vmin=0)
    axes.plot(*train.T.numpy(), "k.", markersize=2.5, alpha=0.7)
    axes.set_facecolor("0.93")  # no one
    return image


def draw_joint(model: HistogramDensity, train: Tensor, indices: list[float]) -> Figure:
    figure = Figure(figsize=(9.5, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(4, 1.8, 0.15), height_ratios=(1.3, 4))
    joint = figure.add_subplot(grid[1, 0])
    above = figure.add_subplot(grid[0, 0], sharex=joint)
    beside = figure.add_subplot(grid[1, 1], sharey=joint)
    image = heat_map(joint, model, train)
    figure.colorbar(image, cax=figure.add_subplot(grid[1, 2]), label="joint density (grey: no one)")
    joint.set(xlabel=NAMES[0], ylabel=NAMES[1])
    for dim, axes, orientation in ((0, above, "vertical"), (1, beside, "horizontal")):
        alone = model.marginal(dim)
        steps = density(alone).numpy(), alone.edges[0].numpy()
        axes.stairs(*steps, orientation=orientation, fill=True, alpha=0.4, label="marginal")
    for i, index in enumerate(indices):
        joint.axvline(index, color=f"C{i + 1}", linestyle="--", linewidth=2)
        given = model.conditional(0, index)
        steps = density(given).numpy(), given.edges[0].numpy()
        style = {"color": f"C{i + 1}", "linewidth": 2, "label": f"given index {index:g}"}
        beside.stairs(*steps, orientation="horizontal", **style)
    above.set(ylabel="density", title="marginal of the index")
    beside.set(xlabel="density", title="density of the pressure")
    corner = figure.add_subplot(grid[0, 1])
    corner.legend(*beside.get_legend_handles_labels(), loc="center")
    corner.set_axis_off()
    above.tick_params(labelbottom=False)
    beside.tick_params(labelleft=False)
    return figure


def draw_bins(rows: Tensor, train: Tensor, table: dict, rule: tuple[int, ...]) -> Figure:
    figure = Figure(figsize=(12, 7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1))
    maps = {"too few": (2, 2), "Scott's rule": rule, "too many": (32, 32)}
    for axes, (title, shape) in zip(above.subplots(1, 3, sharey=True), maps.items(), strict=True):
        heat_map(axes, HistogramDensity(*bin_edges(rows, shape)).maximum_likelihood(train), train)
        axes.set(title=f"{title}: {shape[0]} × {shape[1]} bins", xlabel=NAMES[0])
        if shape == (2, 2):
            axes.set_ylabel(NAMES[1])
    axes = below.subplots()
    bins = [(a * b) ** 0.5 for a, b in table]
    counted, held_out = zip(*table.values(), strict=True)
    means, errors = [e.mean for e in held_out], [e.standard_error for e in held_out]
    best = [e.mean for e in counted]
    axes.semilogx(bins, best, "o-", base=2, label="those counted, maximum likelihood")
    axes.errorbar(bins, means, errors, fmt="o-", capsize=4, label="held out, pseudo-count 1")
    axes.axvline((rule[0] * rule[1]) ** 0.5, color="k", linestyle=":", label="Scott's rule")
    axes.set(
        xlabel="bins of the index × bins of the pressure", ylabel="log evidence (nats per person)"
    )
    axes.set_xticks(bins, [f"{a}×{b}" for a, b in table])
    axes.minorticks_off()
    axes.legend(loc="upper left")
    return figure


if __name__ == "__main__":
    main()
