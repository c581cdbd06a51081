"""Does Bayesian factor analysis find the number of factors? Three, out of at most eight.

python -m benchmarks.truth.factors_found                  # ten seeds, a few minutes
python -m benchmarks.truth.factors_found --steps 3000     # longer fits

Simulated rows, standardised: 200 to 500 of them, 12 to 20 features, loadings from N(0, 0.6^2),
noise variances from 0.3 to 0.9. Fitted with the latent of each row summed out (what the library
does), by `FactorNormal` and by Pyro's `AutoNormal`; and with that latent kept as a site, by
`AutoNormal`. Beside them the number of factors with which scikit-learn's maximum likelihood is
best in five-fold cross-validation.
"""

import argparse
import math
import time
import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal, init_to_value
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides.factor_normal import FactorNormal
from ppl_models import data_plate, elbo, fit, from_pyro_svi
from ppl_models.factors.bayesian import BayesianFactorAnalysis

TRUTH, MOST = 3, 8


class LatentsKept(BayesianFactorAnalysis):
    """The same model with the latent of each row as a site."""

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        scale = self.prior_scale
        loc = pyro.sample("loc", dist.Normal(self.prior_loc, scale).to_event(1))
        ones = scale.new_ones(self.num_factors)
        spread = pyro.sample("factor_scale", dist.HalfCauchy(ones).to_event(1))
        prior = dist.Normal(0.0, scale[:, None] * spread).to_event(2)
        loadings = pyro.sample("loadings", prior)
        noise = dist.InverseGamma(torch.full_like(scale, 1.1), 0.05 * scale**2).to_event(1)
        noise_variance = pyro.sample("noise_variance", noise)
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0 * ones, 1.0).to_event(1))
            row = dist.Normal(loc + z @ loadings.T, noise_variance.sqrt()).to_event(1)
            return pyro.sample("x", row, obs=x)


def simulate(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows to fit, 1000 others, and the true mean and covariance in their units."""
    torch.manual_seed(1000 + seed)
    num_rows, num_features = (200, 300, 500)[seed % 3], (12, 16, 20, 14)[seed % 4]
    loadings = 0.6 * torch.randn(num_features, TRUTH, dtype=torch.float64)
    noise = 0.3 + 0.6 * torch.rand(num_features, dtype=torch.float64)
    covariance = loadings @ loadings.T + noise.diag()
    true = dist.MultivariateNormal(torch.zeros_like(noise), covariance)
    x, new = true.sample((num_rows,)), true.sample((1000,))
    mean, sd = x.mean(0), x.std(0)
    return (x - mean) / sd, (new - mean) / sd, -mean / sd, covariance / sd / sd[:, None]


def measure(x: Tensor, new: Tensor, loc: Tensor, covariance: Tensor, how: str, steps: int) -> list:
    kind = LatentsKept if how.startswith("z") else BayesianFactorAnalysis
    model = kind(x.shape[1], MOST).double()
    start = model.initial_values(x)
    names = ("loc", "loadings", "noise_variance")
    if kind is LatentsKept:
        start["z"] = model.posterior(x, *(start[name] for name in names)).mean
    init = init_to_value(values=start)
    guide = (
        FactorNormal(start)
        if how.endswith("FactorNormal")
        else AutoNormal(model, init_loc_fn=init, init_scale=0.01)
    )
    options = {"lr": 0.05, "schedule": CosineAnnealingLR, "seed": 0, "progress": False}
    run = fit(elbo(model, guide), x, steps=steps, **options)
    posterior = from_pyro_svi(model, guide, x, num_samples=300, seed=1)["posterior"]
    draws = {name: torch.from_numpy(posterior[name].values[0]) for name in names}
    parts = draws["loadings"], draws["noise_variance"]

    number = model.num_relevant(*parts)
    found = model.covariance(*parts)
    low, high = (found.quantile(level, 0) for level in (0.055, 0.945))
    inside = ((low < covariance) & (covariance < high))[torch.ones_like(covariance).triu() > 0]
    rows = dist.LowRankMultivariateNormal(draws["loc"][:, None], *(p[:, None] for p in parts))
    ours = rows.log_prob(new).logsumexp(0) - math.log(len(number))
    truth = dist.MultivariateNormal(loc, covariance).log_prob(new)
    return [
        float(number.mode().values == TRUTH),
        (number == TRUTH).double().mean().item(),
        -sum(run.history["loss"][-20:]) / 20,
        (ours - truth).mean().item(),
        inside.double().mean().item(),
        run.seconds,
    ]


def cross_validated(x: Tensor) -> tuple[int, float]:
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = {k: cross_val_score(FactorAnalysis(k), x).mean() for k in range(1, MOST + 1)}
    return max(scores, key=lambda k: scores[k]), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)

    ways = ["summed out, FactorNormal", "summed out, AutoNormal", "z kept, AutoNormal"]
    results: dict[str, list[list]] = {way: [] for way in ways}
    picked = []
    print("probability of three factors, their true number, out of at most eight")
    print(f"seed  rows  features  {'  '.join(ways)}  cross-validation picks")
    for seed in range(args.seeds):
        data = simulate(seed)
        for way in ways:
            results[way].append(measure(*data, way, args.steps))
        picked.append(cross_validated(data[0].numpy()))
        shape = f"{seed:4d}{len(data[0]):6d}{data[0].shape[1]:10d}"
        cells = [f"{results[way][-1][1]:{len(way) + 2}.0%}" for way in ways]
        print(shape, *cells, f"{picked[-1][0]:10d}", flush=True)

    print(f"\nmeans over {args.seeds} seeds, {args.steps} steps; nats per row")
    print(f"{'':28}  found     ELBO  held out - truth  89% intervals hold  seconds")
    for way in ways:
        found, _, bound, gap, inside, seconds = torch.tensor(results[way]).T
        print(
            f"{way:27}{int(found.sum()):4d}/{len(found)}{bound.mean():10.3f}{gap.mean():15.3f}"
            f"{inside.mean():17.0%}{seconds.mean():14.1f}"
        )
    right = sum(number == TRUTH for number, _ in picked)
    seconds = sum(seconds for _, seconds in picked) / len(picked)
    print(f"{'cross-validation':27}{right:4d}/{len(picked)}{seconds:56.1f}")
    print(
        "(the ELBO is a lower bound on the log evidence; the intervals are those of the covariance)"
    )


if __name__ == "__main__":
    main()
