"""The library beside truths that are known: closed forms first, then bounds, then statistics.

python -m benchmarks.truth.oracles
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import ExactPosterior
from ppl_models import FactorAnalysis, ProbabilisticPCA, data_plate, elbo, fit, log_evidence
from ppl_models.datasets import digits

PPCA = {  # nats per row, train and test, by scikit-learn
    2: (-0.015612, -0.122549),
    5: (9.084194, 7.582845),
    10: (17.587164, 15.994818),
    20: (27.492278, 24.930613),
}


def exact_posterior() -> None:
    model = FactorAnalysis(64, 10).double()
    train, _ = (x.double() for x in digits())
    exact = -model.evidence().log_prob(train)
    objective = elbo(model, ExactPosterior(model))
    whole = (objective.loss(train) - exact.mean()).abs().item()
    rows = torch.randperm(len(train))[:64]
    part = (objective.loss(train[rows], size=1500) - exact[rows].mean()).abs().item()
    print(f"ELBO with the exact posterior - evidence, digits: {whole:.1e}; 64 of 1500: {part:.1e}")


def closed_form_optimum() -> None:
    train, test = (x.double() for x in digits())
    for num_factors, reference in PPCA.items():
        model = ProbabilisticPCA(64, num_factors).double().maximum_likelihood(train)
        got = [log_evidence(model, None, x).mean for x in (train, test)]
        worst = max(abs(a - b) for a, b in zip(got, reference, strict=True))
        elbo(model, ExactPosterior(model)).loss(train).backward()
        slope = max(p.grad.abs().max().item() for p in model.parameters())
        print(
            f"PPCA, {num_factors:2d} factors: train {got[0]:.6f}, test {got[1]:.6f} "
            f"(table: within {worst:.0e}); largest gradient there {slope:.1e}"
        )


def importance_weights() -> None:
    model = FactorAnalysis(5, 2).double()
    x = model(size=500).detach()

    def guide(x: torch.Tensor, size: int | None = None) -> None:
        exact = model.posterior(x)
        scale = 2 * exact.variance.sqrt()
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(exact.mean + scale / 2, scale).to_event(1))

    print(f"a wrong guide; {log_evidence(model, None, x)}")
    for num_samples in (1, 10, 100, 1000, 10_000):
        print(f"  {log_evidence(model, guide, x, num_samples=num_samples, method='importance')}")


def rows_keep_their_identity() -> None:
    model = FactorAnalysis(5, 2).requires_grad_(False)
    x = model(size=110)
    guide = AutoNormal(model, init_scale=0.3)
    fit(
        elbo(model, guide),
        x,
        epochs=200,
        batch_size=20,
        lr=0.05,
        seed=0,
        schedule=CosineAnnealingLR,
        progress=False,
    )
    pair = torch.stack([guide.locs.z.flatten(), model.posterior(x).mean.flatten()])
    correlation = torch.corrcoef(pair.detach())[0, 1]
    print("AutoNormal for each of 110 rows, shuffled batches of 20 (the last of 10): correlation")
    print(f"  of its means with the exact ones {correlation:.4f}")


def main() -> None:
    torch.manual_seed(0)
    exact_posterior()
    closed_form_optimum()
    importance_weights()
    rows_keep_their_identity()


if __name__ == "__main__":
    main()
