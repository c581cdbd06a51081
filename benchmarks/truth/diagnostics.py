r"""Faults that are planted in a guide, and which diagnostics see them: k, SBC, TARP and the gap.

Factor analysis knows its posterior and its evidence. Here the posterior of its two factors has a
correlation of -0.9; each guide is that posterior with one fault. The gap is the exact evidence
minus the ELBO, in nats per row.

Beside it: the time of both for an autoencoder of digits, and posteriors of eight schools that are
made for each data set, by NUTS and by AutoNormal (`--schools`, which takes minutes).

python -m benchmarks.truth.diagnostics
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from guides import AmortizedNormal
from ppl_models import VAE, FactorAnalysis, data_plate, elbo, fit, khat, nuts, sbc, tarp
from ppl_models.datasets import digits

SEEDS = 20
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])  # of eight schools
Posterior = Callable[[dist.MultivariateNormal], dist.TorchDistribution]


def correlated() -> FactorAnalysis:
    """Two factors that data tell apart badly: their posterior has a correlation of -0.9."""
    model = FactorAnalysis(num_features=5, num_factors=2).double().requires_grad_(False)
    with torch.no_grad():
        precision = torch.linalg.inv(torch.tensor([[1.0, -0.9], [-0.9, 1.0]]).double() * 0.5)
        root = torch.linalg.cholesky(precision - torch.eye(2))  # W'W = P - I, unit noise
        rows = torch.linalg.qr(
            torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
        )
        model.loadings.copy_(rows.Q @ root.T)
        model.log_scale.zero_()
    return model


def scaled(scale: float) -> Posterior:
    return lambda p: dist.MultivariateNormal(p.loc, scale_tril=scale * p.scale_tril)


def shifted(deviations: float) -> Posterior:
    """By so many standard deviations of the first latent, along its correlation."""
    return lambda p: dist.MultivariateNormal(
        p.loc + deviations * p.scale_tril[..., 0], scale_tril=p.scale_tril
    )


def independent(p: dist.MultivariateNormal) -> dist.TorchDistribution:
    return dist.Normal(p.loc, p.variance.sqrt()).to_event(1)


def prior(p: dist.MultivariateNormal) -> dist.TorchDistribution:
    return dist.Normal(torch.zeros_like(p.loc), 1.0).to_event(1)


FAULTS: dict[str, Posterior] = {
    "none: the exact posterior": lambda p: p,
    "half the scale": scaled(0.5),
    "twice the scale": scaled(2.0),
    "shifted by 1 sd": shifted(1.0),
    "shifted by 2 sd": shifted(2.0),
    "shifted by 3 sd": shifted(3.0),
    "a correlation of 0.9 ignored": independent,
    "the prior": prior,
}


def faulty(model: FactorAnalysis, fault: Posterior) -> Callable[..., Tensor]:
    """A guide that is the posterior with a fault."""

    def guide(x: Tensor, size: int | None = None) -> Tensor:
        with data_plate(x, size):
            return pyro.sample("z", fault(model.posterior(x)))

    return guide


def gap(model: FactorAnalysis, guide: Callable[..., Tensor], x: Tensor) -> float:
    """The evidence minus the ELBO, nats per row."""
    many = x.repeat(100, 1)  # draws
    with torch.no_grad():
        return (model.evidence().log_prob(x).mean() + elbo(model, guide).loss(many)).item()


def said(p: float) -> str:
    return f"{p:.1g}" if p > 1e-100 else "< 1e-100"


def faults() -> None:
    model = correlated()
    torch.manual_seed(0)
    x = model(size=1000)
    print("| fault | k, median of 1000 rows | k above | SBC, p | its worst | TARP, p | gap |")
    print("|---|---|---|---|---|---|---|")
    for name, fault in FAULTS.items():
        guide = faulty(model, fault)
        found, ranks = khat(model, guide, x, seed=0), sbc(model, guide, seed=0)
        print(
            f"| {name} | {found.value.median():.2f} | {len(found.failing) / len(x):.0%} "
            f"| {said(ranks.p_value)} | {ranks.worst} "
            f"| {said(tarp(model, guide, seed=0).p_value)} | {gap(model, guide, x):.3g} |"
        )


def false_alarms() -> None:
    model = correlated()
    guide = faulty(model, FAULTS["none: the exact posterior"])
    for name, check in (("SBC", sbc), ("TARP", tarp)):
        p = torch.tensor([check(model, guide, seed=seed).p_value for seed in range(SEEDS)])
        print(f"{name}, exact posterior: p > 0.01 in {int((p > 0.01).sum())} of {SEEDS} seeds")


def autoencoder(epochs: int) -> None:
    """How long it takes, and what it says of a guide that is fitted well and not perfectly."""
    train, _ = digits(binary=True)
    vae, guide = VAE(64, 8), AmortizedNormal(64, 8)
    fit(elbo(vae, guide), train, epochs=epochs, batch_size=64, lr=1e-3, seed=0, progress=False)
    for check in (sbc, tarp):
        began = time.perf_counter()
        found = check(vae, guide, num_simulations=1000, num_draws=100, seed=0)
        print(f"digits, {epochs} epochs: {time.perf_counter() - began:.1f} s. {found}")


def schools(sigma: Tensor, y: Tensor | None = None) -> Tensor:
    """Effects of coaching in eight schools, as deviations from their mean in units of tau."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("schools", len(sigma)):
        deviation = pyro.sample("deviation", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(mu + tau * deviation, sigma / 5), obs=y)


def by_nuts(model: Callable[..., Any], sigma: Tensor, y: Tensor) -> Any:
    return nuts(model, sigma, y, draws=300, tune=300, chains=2, progress=False)


def by_auto_normal(model: Callable[..., Any], sigma: Tensor, y: Tensor) -> Any:
    guide = AutoNormal(model)
    fit(elbo(model, guide), (sigma, y), steps=500, lr=0.02, progress=False)
    return guide


def made_for_each(number: int, jobs: int) -> None:
    for refit in (by_nuts, by_auto_normal):
        began = time.perf_counter()
        found = sbc(
            schools, None, SIGMA, num_simulations=number, refit=refit, num_jobs=jobs, seed=0
        )
        print(f"eight schools, {refit.__name__}, {time.perf_counter() - began:.0f} s: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60, help="of the autoencoder")
    parser.add_argument("--schools", type=int, default=0, help="how many are simulated")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    if args.schools:
        made_for_each(args.schools, args.jobs)
        return
    faults()
    false_alarms()
    autoencoder(args.epochs)


if __name__ == "__main__":
    main()
