r"""Faults that are planted in a guide, and which diagnostics see them: k, SBC, TARP and the gap.

Factor analysis knows its posterior and its evidence. Here the posterior of its two factors has a
correlation of -0.9; each guide is that posterior with one fault. The gap is the exact evidence
minus the ELBO, in nats per row.

python -m benchmarks.truth.diagnostics
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models import FactorAnalysis, data_plate, elbo, khat, sbc, tarp

SEEDS = 20
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
            f"| {ranks.p_value:.1g} | {ranks.worst} "
            f"| {tarp(model, guide, seed=0).p_value:.1g} | {gap(model, guide, x):.3g} |"
        )


def false_alarms() -> None:
    model = correlated()
    guide = faulty(model, FAULTS["none: the exact posterior"])
    for name, check in (("SBC", sbc), ("TARP", tarp)):
        p = torch.tensor([check(model, guide, seed=seed).p_value for seed in range(SEEDS)])
        print(f"{name}, exact posterior: p > 0.01 in {int((p > 0.01).sum())} of {SEEDS} seeds")


def main() -> None:
    faults()
    false_alarms()


if __name__ == "__main__":
    main()
