"""Bounds of the log evidence from both sides, and what guides of each family miss.

python -m benchmarks.truth.bounds    # some five minutes on one core; --steps 200 --epochs 60: one

Both sides: factor analysis, whose evidence is known, with a guide that is off in mean, scales and
correlations; a variational autoencoder of binary digits with 8 latents. Rows are draws of the
models. Gaps: the best member of each family for each row, on a factor analysis whose posterior is
correlated.
"""

import argparse
import math
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from guides import AmortizedLowRankNormal, AmortizedMultivariateNormal, AmortizedNormal
from ppl_models import VAE, FactorAnalysis, data_plate, elbo, fit, inference_gap, sandwich
from ppl_models.datasets import digits


def linear(rows: int) -> tuple[FactorAnalysis, Tensor]:
    """A factor analysis with 4 correlated latents, and rows."""
    torch.manual_seed(0)
    model = FactorAnalysis(6, 4).double()
    with torch.no_grad():
        model.log_scale.fill_(-0.5)
    return model, model(size=rows).detach()


def off(model: FactorAnalysis) -> Callable:
    """The posterior without its correlations, wider and moved."""

    def guide(x: Tensor, size: int | None = None) -> None:
        exact = model.posterior(x)
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(exact.mean + 0.1, 1.2 * exact.stddev).to_event(1))

    return guide


def both_sides(rows: int, epochs: int, numbers: list[int], chains: int) -> None:
    print(f"Both sides, nats per row, {rows} rows, {chains} chains of each")
    print(f"{'model':16}{'steps':>6}{'lower':>10}{'upper':>10}{'apart':>18}{'exact':>10}{'s':>7}")
    model, x = linear(rows)
    vae, guide = VAE(64, 8), AmortizedNormal(64, 8)
    train, test = digits(binary=True)
    fit(elbo(vae, guide), train, epochs=epochs, batch_size=64, lr=1e-3, seed=0, progress=False)
    programs = {"factor analysis": (model, off(model), x), "VAE of digits": (vae, guide, test)}
    for name, (program, its_guide, data) in programs.items():
        for steps in numbers:
            began = time.perf_counter()
            settings = {"simulate": True, "num_steps": steps, "num_chains": chains, "seed": 0}
            found = sandwich(program, its_guide, data[:rows], **settings)
            known = program is model
            exact = model.evidence().log_prob(found.rows[0]).mean().item() if known else math.nan
            apart = f"{found.gap:.4f} ± {found.gap_error:.4f}"
            print(
                f"{name:16}{steps:6}{found.lower.mean:10.3f}{found.upper.mean:10.3f}{apart:>18}"
                f"{exact:10.3f}{time.perf_counter() - began:7.0f}"
            )


def gaps(rows: int) -> None:
    print(f"\nThe best member of each family, nats per row, {rows} rows")
    print(f"{'family':12}{'approximation gap':>20}{'Monte Carlo error':>20}")
    model, x = linear(rows)
    kinds = {
        "diagonal": AmortizedNormal,
        "low rank": lambda *sizes: AmortizedLowRankNormal(*sizes, rank=1),
        "full": AmortizedMultivariateNormal,
    }
    for name, kind in kinds.items():
        torch.manual_seed(0)
        found = inference_gap(model, kind(6, 4).double(), x, steps=1000, seed=0)
        error = found.best.variance.sum().sqrt().item() / rows
        print(f"{name:12}{found.approximation.mean().item():20.4f}{error:20.4f}")
    precision = torch.linalg.inv(model.posterior(x).covariance_matrix[0])
    known = (precision.diagonal().log().sum() - precision.logdet()).item() / 2
    print(f"known of the diagonal one: {known:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--chains", type=int, default=8)
    args = parser.parse_args()
    both_sides(args.rows, args.epochs, args.steps, args.chains)
    gaps(min(args.rows, 20))


if __name__ == "__main__":
    main()
