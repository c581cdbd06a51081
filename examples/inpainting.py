r"""What lies under a blot: missing pixels of digits, drawn from the posterior.

.. math::
    x_m \sim p(x_m \mid x_o) = \int p(x_m \mid z) \, p(z \mid x_o) \, dz

where :math:`o` are the pixels of a row that were observed and :math:`m` those that are missing.

    python examples/inpainting.py    # 8x8 digits, two minutes

A VAE learns from training rows with holes, three in ten pixels at random, and never sees a whole
one: missing pixels are left out of the likelihood, which integrates them out exactly. Test rows
then lose as many, or their lower half, or the quarter in the middle. There is more than one way to
fill such a hole, and draws show several; what the model holds of the truth is scored in nats.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from guides import AmortizedNormal
from ppl_models import VAE, elbo, fit, log_evidence
from ppl_models.datasets import digits
from ppl_models.infer.evidence.impute import impute
from ppl_models.likelihoods import Bernoulli
from ppl_models.nn import MLP, MissingInput

LATENTS = 8
SHOWN = 12


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--draws", type=int, default=20, help="of the pixels of a row")
    parser.add_argument("--particles", type=int, default=500, help="that they are chosen from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    train, test = digits(binary=True)
    holes = remove("three in ten", train, args.seed)
    print(
        f"digits: {len(train)} training rows, {holes.isnan().double().mean():.0%} of their pixels"
    )
    print(f"missing at random; {len(test)} test rows, {test.shape[1]} binary pixels\n")

    torch.manual_seed(args.seed)
    vae = VAE(64, LATENTS, Bernoulli(), missing="marginalise")
    encoder = MLP(2 * 64, 2 * LATENTS, (200, 200), nn.ELU)
    guide = AmortizedNormal(64, LATENTS, encoder=MissingInput(encoder))
    fit(
        elbo(vae, guide),
        holes,
        epochs=args.epochs,
        batch_size=100,
        lr=5e-3,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR,
        seed=args.seed,
    )

    frequency = (holes.nansum(0) + 1) / ((~holes.isnan()).sum(0) + 2)  # of ink at each pixel
    print("wrong: missing pixels that the likelier value gets wrong, by draws, and by how often a")
    print("pixel has ink in the training rows. NLL: of the missing pixels given those observed, in")
    print("nats a pixel: a difference of two importance-weighted lower bounds, an estimate.")
    print(f"  {'missing':14}{'pixels':>7}{'wrong':>9}{'by frequency':>14}{'NLL':>8}", end="")
    print(f"{'by frequency':>14}")
    pictures = {}
    for kind in ("three in ten", "lower half", "a quarter"):
        seen = remove(kind, test, args.seed + 1)
        options = {"num_particles": args.particles, "seed": args.seed}
        drawn = impute(vae, guide, seen, args.draws, **options)  # (S, B, D)
        gone = seen.isnan()
        score(kind, gone, drawn, test, frequency, conditional(vae, guide, seen, test, args))
        pictures[kind] = draw(seen, drawn, test)
    print("\nwritten:")
    for kind, figure in pictures.items():
        file = args.outdir / f"inpainting-{kind.replace(' ', '-')}.png"
        figure.savefig(file, dpi=120)
        print(f"  {file}")


def remove(kind: str, x: Tensor, seed: int) -> Tensor:
    """The rows with NaN in the place of some pixels."""
    gone = torch.zeros(len(x), 8, 8, dtype=torch.bool)
    if kind == "lower half":
        gone[:, 4:] = True
    elif kind == "a quarter":
        gone[:, 2:6, 2:6] = True  # the middle
    else:
        generator = torch.Generator().manual_seed(seed)
        gone = torch.rand(gone.shape, generator=generator) < 0.3
    return x.where(~gone.flatten(1), torch.nan)


def conditional(
    vae: VAE, guide: AmortizedNormal, seen: Tensor, whole: Tensor, args: argparse.Namespace
) -> float:
    """log p(x_m | x_o) = log p(x) - log p(x_o), in nats of all rows."""
    options = {"num_samples": args.particles, "seed": args.seed}
    parts = [log_evidence(vae, guide, rows, **options).value.sum() for rows in (whole, seen)]
    return (parts[0] - parts[1]).item()


def score(
    kind: str, gone: Tensor, drawn: Tensor, test: Tensor, frequency: Tensor, log_prob: float
) -> None:
    wrong = (drawn.mean(0).round() != test)[gone].double().mean()
    usual = (frequency.round().expand_as(test) != test)[gone].double().mean()
    base = -torch.distributions.Bernoulli(frequency).log_prob(test)[gone].mean()
    nll = -log_prob / int(gone.sum())
    pixels = gone.double().sum(1).mean()
    print(f"  {kind:14}{pixels:7.1f}{wrong:9.1%}{usual:14.1%}{nll:8.3f}{base:14.3f}")


def draw(seen: Tensor, drawn: Tensor, test: Tensor) -> Figure:
    lines = {"truth": test, "observed": seen, "mean of draws": drawn.mean(0)}
    lines |= {f"draw {s + 1}": rows for s, rows in enumerate(drawn[:4])}
    figure = Figure(figsize=(9, 0.75 * len(lines)), layout="constrained")
    for panels, (name, rows) in zip(figure.subplots(len(lines), SHOWN), lines.items(), strict=True):
        for axes, row in zip(panels, rows, strict=False):
            axes.imshow(row.view(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], facecolor="tab:red")  # seen through the holes
        label = {"rotation": 0, "horizontalalignment": "right", "verticalalignment": "center"}
        panels[0].set_ylabel(name, **label)
    return figure


if __name__ == "__main__":
    main()
