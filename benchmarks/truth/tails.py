r"""Pareto's k beside known tails, and Monte Carlo errors beside the spread of repeats.

python -m benchmarks.truth.tails

With :math:`p(z \mid x) = \mathcal{N}(m, s^2)` and a guide of the scale :math:`c s`, weights have
:math:`k = 1 - c^2`, and no variance where k > 1 / 2.
"""

import time
import warnings

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, elbo, fit, khat, log_evidence
from ppl_models.datasets import binarize, digits
from ppl_models.infer.evidence.pareto import Tails

SCALE = 0.5**0.5  # of the posterior


def model(x: Tensor | None = None, size: int | None = None) -> Tensor:
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        found: Tensor = pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return found


def known_tail(repeats: int = 100, draws: int = 100_000) -> None:
    k = []
    for seed in range(repeats):
        z = torch.randn(
            draws, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        log_weight = dist.Normal(0.0, 2.0).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
        tails = Tails.of(draws, 1)
        tails.add(slice(None), log_weight, torch.full_like(log_weight, 1e-12))
        k.append(tails.smoothed().k.item())
    found = torch.tensor(k)
    print(
        f"q = N(0, 1), p = N(0, 4), {draws} draws: k {found.mean():.3f} ± {found.std():.3f} over "
        f"{repeats} repeats (in the limit 0.75; asked 0.70 ± 0.03)"
    )


def errors(repeats: int = 200, draws: int = 1000) -> None:
    x = torch.tensor([0.7], dtype=torch.float64)
    print(f"Error of the log evidence of a row, {repeats} repeats of {draws} draws:")
    print("  scale of the guide     k   error / spread   flagged   too low by")
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).item()
    for scale in (1.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):

        def guide(x: Tensor, size: int | None = None, scale: float = scale) -> None:
            with data_plate(x, size):
                pyro.sample("z", dist.Normal(x / 2, scale * SCALE))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [
                log_evidence(model, guide, x, num_samples=draws, seed=seed)
                for seed in range(repeats)
            ]
        values = torch.tensor([e.mean for e in found], dtype=torch.float64)
        error = torch.tensor([e.monte_carlo_error for e in found]).mean()
        flagged = sum(e.is_unreliable for e in found) / repeats
        print(
            f"  {scale:18.1f} {1 - scale**2:5.2f} {error / values.std():16.2f} {flagged:9.0%}"
            f" {exact - values.mean():12.4f}"
        )


def digits_vae() -> None:
    train = binarize(digits()[0])
    torch.manual_seed(0)
    vae, guide = VAE(64, 10), AmortizedNormal(64, 10)
    fit(elbo(vae, guide), train, steps=3000, progress=False)
    start = time.perf_counter()
    among = khat(vae, guide, train[:1000], num_samples=1000, seed=0)
    seconds = time.perf_counter() - start
    print(f"VAE of digits: {among}")
    print(f"  1000 rows x 1000 draws: {seconds:.1f} s")
    alone = torch.cat(
        [khat(vae, guide, train[i : i + 1], num_samples=1000, seed=1 + i).value for i in range(100)]
    )
    again = khat(vae, guide, train[:1000], num_samples=1000, seed=1).value[:100]
    first = among.value[:100]
    apart = alone - first
    print(
        f"  100 rows, k alone less k among 1000: {apart.mean():.3f} on average, {apart.std():.3f} "
        f"each; with other draws among 1000: {(again - first).std():.3f} each"
    )


if __name__ == "__main__":
    known_tail()
    errors()
    digits_vae()
