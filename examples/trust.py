r"""Can this posterior be trusted? A VAE of digits, asked every question that there is.

    python examples/trust.py    # 8x8 digits, a minute or two

The programs are looked at before the fit, and the fit at its end. Then the guide: how heavy the
tails of its importance weights are, how many nats it costs, and whether it is calibrated. A guide
with half the scale is asked the same, to see that the questions notice. Last the model itself: does
it draw rows like those of the data, and which rows are unlike any that it draws?

What each answer means, and which fault it can see, is in docs/trust.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.poutine.messenger import Messenger
from torch import Tensor

from guides import AmortizedNormal
from ppl_models import (
    VAE,
    Khat,
    PredictivePvalues,
    check,
    convergence,
    elbo,
    fit,
    inference_gap,
    khat,
    log_evidence,
    predictive_pvalues,
    sandwich,
    sbc,
)
from ppl_models.datasets import digits
from ppl_models.likelihoods import Bernoulli

LATENTS = 8
SHOWN = 10  # digits in a row


class Narrow(Messenger):
    """Halves the scale of a guide: a fault that is planted."""

    def _pyro_sample(self, message: dict) -> None:
        if message["name"] == "z":
            normal = message["fn"].base_dist
            message["fn"] = dist.Normal(normal.loc, normal.scale / 2).to_event(1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--rows", type=int, default=297, help="test rows")
    parser.add_argument("--simulations", type=int, default=1000, help="of the calibration")
    parser.add_argument("--samples", type=int, default=1000, help="draws of each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    train, test = digits(binary=True)
    test = test[: args.rows]

    torch.manual_seed(args.seed)
    vae, guide = VAE(64, LATENTS, Bernoulli()), AmortizedNormal(64, LATENTS)

    def narrow(x: Tensor, size: int | None = None) -> Any:
        with Narrow():
            return guide(x, size=size)

    print("Are the programs what they seem?")
    print(f"  {check(vae, guide, train[:100])}")
    run = fit(elbo(vae, guide), train, epochs=args.epochs, batch_size=100, lr=2e-3, seed=args.seed)
    print("Has it converged?")
    print(f"  {convergence(run)}")

    options = {"num_samples": args.samples, "seed": args.seed}
    print("What is the evidence of test rows, and how well is it known?")
    print(f"  {log_evidence(vae, guide, test, **options)}")
    print("Where does the guide fail? The guide, and one with half its scale:")
    tails = {"guide": khat(vae, guide, test, **options)}
    tails["half its scale"] = khat(vae, narrow, test, **options)
    for found in tails.values():
        print(f"  {found}")
    print("How many nats does it cost, and what for?")
    print(f"  {inference_gap(vae, guide, test[:100], seed=args.seed)}")
    print("Where is the evidence? Bounds from both sides, of rows that the model drew:")
    print(f"  {sandwich(vae, guide, test[:SHOWN], simulate=True, seed=args.seed)}")
    print("Is the posterior calibrated, on average over what the model draws?")
    calibrations = {
        name: sbc(vae, program, num_simulations=args.simulations, seed=args.seed)
        for name, program in {"guide": guide, "half its scale": narrow}.items()
    }
    for calibration in calibrations.values():
        print(f"  {calibration}")
    print("Is the model right? Test rows, and ten of them upside down:")
    rows = torch.cat([test, test[:SHOWN].flip(1)])
    places = predictive_pvalues(vae, guide, rows, num_samples=50, seed=args.seed)
    print(f"  {places}")

    figures = {"tails": draw_tails(tails), "unlike": draw_rows(rows, places)}
    for name, calibration in calibrations.items():
        figures[f"calibration-{name.replace(' ', '-')}"] = calibration.plot()
    print("\nwritten:")
    for name, figure in figures.items():
        file = args.outdir / f"trust-{name}.png"
        figure.savefig(file, dpi=120)
        print(f"  {file}")


def draw_tails(tails: dict[str, Khat]) -> Figure:
    """The shapes of the rows' tails in rising order, and the threshold."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, found in tails.items():
        share = (torch.arange(len(found.value)) + 0.5) / len(found.value)
        axes.plot(share, found.value.sort().values, label=name)
    limit = next(iter(tails.values())).threshold
    axes.axhline(limit, color="0.4", linestyle="--", label="too few draws above")
    axes.set(xlabel="share of the rows", ylabel=r"Pareto's $\hat k$")
    axes.legend()
    return figure


def draw_rows(rows: Tensor, places: PredictivePvalues) -> Figure:
    """The rows with the least p-values, and those with the largest."""
    order = places.value.argsort()
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    panels = figure.subplots(2, SHOWN)
    for line, which in zip(panels, (order[:SHOWN], order[-SHOWN:]), strict=True):
        for axes, row in zip(line, which.tolist(), strict=True):
            axes.imshow(rows[row].view(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"p {places.value[row]:.2g}", fontsize="small")
    panels[0, 0].set_ylabel("least")
    panels[1, 0].set_ylabel("most")
    return figure


if __name__ == "__main__":
    main()
