r"""A model of one's own: four lines of Pyro, of which the library knows nothing.

.. math::
    \lambda &\sim \mathrm{Gamma}(2, 1) \\
    x_n \mid \lambda &\sim \mathrm{Poisson}(\lambda)

    python examples/own_model.py    # a few seconds

The counts are real: soldiers killed by the kick of a horse, in each of ten Prussian army corps and
each of the twenty years from 1875 to 1894. The exact posterior is known here,
:math:`\mathrm{Gamma}(2 + \sum_n x_n, 1 + N)`, and shows how good the fit is. Prints both; draws the
training, the posterior, and a posterior predictive check by ArviZ.

References:
    | Das Gesetz der kleinen Zahlen (von Bortkiewicz, 1898), as in
    | Statistical Methods for Research Workers (Fisher, 1925)
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_models import data_plate, elbo, fit, from_pyro_svi, log_evidence

# 109 times no death, 65 times one, and so on: 200 counts, in no particular order.
DEATHS = torch.arange(5.0).repeat_interleave(torch.tensor([109, 65, 22, 3, 1]))


def model(x: Tensor | None = None, size: int | None = None) -> Tensor:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--samples", type=int, default=2000, help="draws from the posterior")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    counts = DEATHS
    print(f"{len(counts)} counts of deaths by horse-kick, {counts.sum():.0f} deaths in all")

    # With a constant learning rate the last steps leave a little noise in the posterior; a
    # schedule, such as torch.optim.lr_scheduler.CosineAnnealingLR, would take it away.
    torch.manual_seed(args.seed)
    guide = pyro.infer.autoguide.AutoNormal(model)
    run = fit(elbo(model, guide), counts, epochs=args.epochs, lr=1e-2, seed=args.seed)
    data = from_pyro_svi(model, guide, counts, num_samples=args.samples, seed=args.seed)
    print(f"fitted in {run.seconds:.1f} s; the posterior, as ArviZ summarises it:")
    print(az.summary(data, var_names=["rate"], kind="stats"))

    exact = dist.Gamma(2 + counts.sum(), 1.0 + len(counts))
    rate = data["posterior"]["rate"].values.ravel()
    shift = (rate.mean() - exact.mean) / exact.stddev
    print("\nrate (deaths per corps and year)")
    print(f"  fitted posterior  {rate.mean():.4f} ± {rate.std():.4f}")
    print(f"  exact posterior   {exact.mean:.4f} ± {exact.stddev:.4f}")
    print(f"  difference        {shift:+.2f} standard deviations")

    evidence = log_evidence(model, guide, counts, seed=args.seed)
    print(f"\n{evidence}")
    print(f"exact value: {exact_evidence(counts):.3f} nats")

    files = [args.outdir / f"own-model-{name}.png" for name in ("training", "posterior", "check")]
    floor = -exact_evidence(counts) / len(counts)
    draw_training(run.history["loss"], floor).savefig(files[0], dpi=120)
    draw_posterior(rate, exact).savefig(files[1], dpi=120)
    draw_check(data, files[2])
    print("\nwritten:", *files, sep="\n  ")


def exact_evidence(counts: Tensor) -> float:
    r"""Returns :math:`\log p(x)`, by Bayes' rule at any rate, here at 1."""
    counts, one = counts.double(), torch.ones((), dtype=torch.float64)
    joint = dist.Gamma(2.0, 1.0).log_prob(one) + dist.Poisson(one).log_prob(counts).sum()
    return (joint - dist.Gamma(2 + counts.sum(), 1.0 + len(counts)).log_prob(one)).item()


def draw_training(losses: list[float], floor: float) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, label="one draw of the guide each")
    axes.axhline(floor, color="k", linestyle="--", label="minus the exact log evidence")
    axes.set(xlabel="epoch", ylabel="negative ELBO (nats per count)", title="Training")
    axes.legend()
    return figure


def draw_posterior(rate: np.ndarray, exact: dist.Gamma) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(rate, bins=40, density=True, color="C0", alpha=0.5, label="draws from the guide")
    grid = torch.linspace(rate.min() * 0.9, rate.max() * 1.05, 300)
    axes.plot(
        grid,
        exact.log_prob(grid).exp(),
        "k",
        label=f"exact: Gamma({exact.concentration:.0f}, {exact.rate:.0f})",
    )
    axes.set(xlabel="rate (deaths per corps and year)", ylabel="posterior density")
    axes.legend()
    return figure


def draw_check(data: Any, file: Path) -> None:
    """Draws the counts that the posterior predicts beside those observed."""
    plot = getattr(az, "plot_ppc_rootogram", None) or az.plot_ppc  # ArviZ 1.x, or 0.x
    plot(data)
    figure, axes = plt.gcf(), plt.gca()
    axes.set(xlabel="deaths per corps and year", ylabel="frequency")
    axes.set_title("Observed (black) and predicted")
    figure.savefig(file, dpi=120, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
