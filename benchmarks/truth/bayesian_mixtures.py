"""Bayesian mixtures on data whose truth is known: how many components, and where they are.

python -m benchmarks.truth.bayesian_mixtures    # about ten minutes on one core

Rows come from three normal distributions in the plane, 300 at a time, standardised.

How many: up to 8 components are allowed, and the posterior of the number that have rows should
peak at 3. Where: with 3 components, 90 % intervals of the centers should hold the true ones in
about 90 % of all cases, components x features x data sets. Both where the components are apart and
where they overlap, for several guides from the same start, and for the exact posterior by Gibbs
sampling.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides.mixture import MeanFieldMixture, MixturePosterior
from ppl_models import elbo, fit, from_pyro_svi
from ppl_models.mixtures.bayesian import BayesianGaussianMixture
from ppl_models.mixtures.components import num_active

CENTERS = torch.tensor([[-4.0, 0.0], [3.0, 4.0], [3.0, -4.0]], dtype=torch.float64)
ROOTS = torch.tensor(  # Cholesky factors of the covariances
    [[[1.0, 0.0], [0.5, 0.8]], [[0.7, 0.0], [0.0, 1.2]], [[1.0, 0.0], [-0.6, 0.7]]],
    dtype=torch.float64,
)
DISTANCES = {"apart": 1.0, "overlapping": 0.4}


def simulate(seed: int, distance: float, rows: int = 300) -> tuple[Tensor, Tensor]:
    """Rows, standardised, and the true centers in the same units."""
    torch.manual_seed(seed)
    z = torch.randint(3, (rows,))
    centers = distance * CENTERS
    noise = (ROOTS[z] @ torch.randn(rows, 2, 1, dtype=torch.float64))[..., 0]
    x = centers[z] + noise
    return (x - x.mean(0)) / x.std(0), (centers - x.mean(0)) / x.std(0)


def fitted(model: Callable, guide: Callable, x: Tensor, steps: int) -> Callable:
    settings = {"lr": 0.03, "schedule": CosineAnnealingLR, "seed": 0, "progress": False}
    fit(elbo(model, guide), x, steps=steps, **settings)
    return guide


def how_many(seeds: int, steps: int) -> None:
    print(f"Number of components with rows; 3 are true, 8 allowed, {seeds} seeds")
    print(f"{'prior':16}{'peak at 3':>12}{'P(3), smallest':>16}{'median':>8}{'seconds a fit':>15}")
    for weights in ("dirichlet", "stick-breaking"):
        peaks, probability, seconds = 0, [], 0.0
        for seed in range(seeds):
            x, _ = simulate(seed, DISTANCES["apart"])
            model = BayesianGaussianMixture(2, 8, weights=weights).double()
            began = time.perf_counter()
            guide = fitted(model, MixturePosterior(model, x), x, steps)
            seconds += time.perf_counter() - began
            data = from_pyro_svi(model, guide, x, num_samples=200, seed=seed)
            shares = torch.bincount(torch.as_tensor(num_active(data).values).flatten()) / 200
            peaks += int(shares.argmax()) == 3
            probability.append(shares[3].item())
        middle = torch.tensor(probability).median()
        print(
            f"{weights:16}{peaks:6} of {seeds:2}{min(probability):16.2f}{middle:8.2f}"
            f"{seconds / seeds:15.1f}",
            flush=True,
        )


def where(sets: int, steps: int) -> None:
    print(f"\n90 % intervals of the centers that hold the truth, {sets} data sets each")
    print(f"{'':14}{'posterior':36}{'cover':>8}{'± error':>9}{'width':>8}{'seconds':>9}")
    for name, distance in DISTANCES.items():
        inside: dict[str, list[Tensor]] = {}
        widths: dict[str, list[Tensor]] = {}
        seconds: dict[str, float] = {}
        for seed in range(sets):
            x, truth = simulate(seed, distance)
            model = BayesianGaussianMixture(2, 3).double()
            for kind, centers, spent in posteriors(model, x, steps):
                pairs = torch.cdist(centers.mean(0), truth)
                own = truth[linear_sum_assignment(pairs.numpy())[1]]
                low, high = centers.quantile(torch.tensor([0.05, 0.95]).to(centers), dim=0)
                inside.setdefault(kind, []).append(((low < own) & (own < high)).double().mean())
                widths.setdefault(kind, []).append((high - low).mean())
                seconds[kind] = seconds.get(kind, 0.0) + spent
        exact = torch.stack(widths["exact, by Gibbs sampling"])
        for kind, values in inside.items():
            share = torch.stack(values)
            error = share.std() / sets**0.5
            width = (torch.stack(widths[kind]) / exact).mean()
            print(
                f"{name:14}{kind:36}{share.mean():8.1%}{error:9.1%}{width:8.2f}"
                f"{seconds[kind] / sets:9.1f}",
                flush=True,
            )
    print("width: of the intervals, to those of the exact posterior; seconds: of a fit")


def posteriors(
    model: BayesianGaussianMixture, x: Tensor, steps: int
) -> Iterator[tuple[str, Tensor, float]]:
    """Draws of the centers, (S, K, D), by each method, and the seconds that its fit took."""
    began = time.perf_counter()
    field = MeanFieldMixture(model, x)
    yield "MeanFieldMixture", draws(field), time.perf_counter() - began

    began = time.perf_counter()
    guide = fitted(model, MixturePosterior(model, x), x, steps)
    yield "MixturePosterior (the default)", draws(guide), time.perf_counter() - began

    sticks = field.sticks
    total = torch.cat([sticks[:, 0], sticks[-1:, 1]])
    middle = {
        "weights": total / total.sum(),
        "locs": field.loc,
        "covariances": field.scale[:, 0] / field.df[:, None, None],
    }
    start = init_to_value(values=middle)
    for kind in (AutoNormal, AutoMultivariateNormal):
        began = time.perf_counter()
        hidden = poutine.block(model, hide=["z"])
        guide = fitted(model, kind(hidden, init_loc_fn=start, init_scale=0.05), x, steps)
        yield f"{kind.__name__}, from there", draws(guide, x), time.perf_counter() - began

    began = time.perf_counter()
    yield "exact, by Gibbs sampling", gibbs(model, field, x), time.perf_counter() - began


@torch.no_grad()
def draws(guide: Callable, *x: Tensor, count: int = 300) -> Tensor:
    pyro.clear_param_store()  # else an autoguide that is called by itself has its predecessor's
    with pyro.validation_enabled(False):
        traces = [poutine.trace(guide).get_trace(*x) for _ in range(count)]
    return torch.stack([trace.nodes["locs"]["value"] for trace in traces])


def gibbs(
    model: BayesianGaussianMixture, field: MeanFieldMixture, x: Tensor, sweeps: int = 1000
) -> Tensor:
    """Each row's component given the rest, the rest given those, in turns."""
    posterior, kept = field.shared, []
    for _ in range(sweeps):
        with pyro.validation_enabled(False):
            weights, locs, root = model.sample_shared(posterior)
            rows = dist.MultivariateNormal(locs, scale_tril=root)
        probability = (weights.log() + rows.log_prob(x[:, None])).softmax(1)  # (N, K)
        z = torch.multinomial(probability, 1)[:, 0]
        posterior = model.prior.given(x, torch.nn.functional.one_hot(z, len(locs)).double())
        kept.append(locs)
    return torch.stack(kept[sweeps // 10 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"--seeds": 10, "--sets": 50, "--steps": 300}.items():
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    how_many(args.seeds, args.steps)
    where(args.sets, args.steps)


if __name__ == "__main__":
    main()
