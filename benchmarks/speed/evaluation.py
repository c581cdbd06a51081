"""The time of draws from fitted guides: one by one, side by side, and by Pyro's `Predictive`.

python -m benchmarks.speed.evaluation                 # about two minutes
python -m benchmarks.speed.evaluation --draws 5000 --only Poisson
python -m benchmarks.speed.evaluation --device cuda --json evaluation.json

Medians over rounds, the ways in turns, after a warm-up. Guides are not trained: draws take as long
from any. `log_evidence` and `from_pyro_svi` take all draws; `Predictive` draws latents and new rows
only, without densities, the prior and the groups of ArviZ, so that it is less work.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.speed.steps import regression
from guides import AmortizedNormal, FactorNormal, MeanFieldMixture
from ppl_models import (
    VAE,
    BayesianFactorAnalysis,
    BayesianGaussianMixture,
    data_plate,
    elbo,
    fit,
    from_pyro_svi,
    log_evidence,
)
from ppl_models.infer.compiled import side_by_side

Work = Callable[[], Any]


class Case(NamedTuple):
    """A program and its guide, and how `Predictive` calls both without the observed rows."""

    name: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: tuple[Tensor, ...]
    unobserved: Callable[[Predictive], Any] | None


def poisson(x: Tensor | None = None, size: int | None = None) -> Tensor:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


@pyro.infer.config_enumerate
def mixture(x: Tensor | None = None, size: int | None = None) -> Tensor:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(5)))
    with pyro.plate("components", 5):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(4), 3.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(4), 0.5).to_event(1))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def eight_schools(error: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
    center = pyro.sample("center", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with data_plate(error, size):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(center + spread * offset, error), obs=y)


def cases(device: str) -> Iterator[Case]:
    torch.manual_seed(0)

    def ready(
        name: str, model: Any, guide: Any, *data: Tensor, given: int = 0, by_row: bool = False
    ) -> Case:
        model, guide = (m.to(device) if isinstance(m, nn.Module) else m for m in (model, guide))
        data = tuple(x.to(device) for x in data)
        if not isinstance(guide, MeanFieldMixture):  # which needs no fit
            fit(elbo(model, guide), data, steps=2, progress=False, seed=0, compile=False)
        call = partial(lambda p, x, n: p(*x[:given], size=n), x=data, n=len(data[0]))
        return Case(name, model, guide, data, None if by_row else call)

    counts = torch.poisson(torch.full((200,), 3.0))
    yield ready("Poisson, 200 rows", poisson, AutoNormal(poisson), counts)
    x = torch.randn(256, 8)
    guide = AutoNormal(regression)
    yield ready("regression, 8 weights, 256 rows", regression, guide, x, x.sum(1), given=1)
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    guide = AutoNormal(eight_schools)
    yield ready("eight schools", eight_schools, guide, errors, y, given=1)
    rows = torch.randn(256, 4)
    guide = AutoNormal(poutine.block(mixture, hide=["z"]))
    yield ready("mixture, K=5, D=4, 256 rows", mixture, guide, rows)
    model = BayesianGaussianMixture(4, 5)
    guide = MeanFieldMixture(model, rows)
    yield ready("BayesianGaussianMixture, the same", model, guide, rows)
    marks = torch.randn(256, 2) @ torch.randn(2, 8) + torch.randn(256, 8)
    factors = BayesianFactorAnalysis(8, 4)
    guide = FactorNormal(factors.initial_values(marks))
    yield ready("BayesianFactorAnalysis, K=4, D=8", factors, guide, marks)
    images = torch.bernoulli(torch.rand(64, 64))
    yield ready(
        "VAE, 64 rows (latents of rows)", VAE(64, 8), AmortizedNormal(64, 8), images, by_row=True
    )


def one_by_one() -> Any:
    """The way before draws went side by side."""
    return mock.patch.object(side_by_side, "_together", return_value=None)


def ways(case: Case, draws: int) -> Iterator[tuple[str, str, Work]]:
    """Each way by the number that it computes and by name."""

    def call(function: Callable[..., Any], apart: bool) -> Any:
        options = {"method": "importance"} if function is log_evidence else {}
        with one_by_one() if apart else nullcontext():
            return function(
                case.model, case.guide, *case.data, num_samples=draws, seed=0, **options
            )

    for function in (log_evidence, from_pyro_svi):
        for apart in (True, False) if case.unobserved else (False,):
            name = "one by one" if apart else "side by side" if case.unobserved else "rows tiled"
            yield function.__name__, name, partial(call, function, apart)

    call_predictive = case.unobserved
    if call_predictive is None:
        return

    def predict(parallel: bool) -> Any:
        predictive = Predictive(case.model, guide=case.guide, num_samples=draws, parallel=parallel)
        with torch.no_grad(), pyro.get_param_store().scope():  # in which guides share names
            return call_predictive(predictive)

    for parallel in (False, True):
        name = "in parallel" if parallel else "in turn"
        yield "pyro.infer.Predictive", name, partial(predict, parallel)


def difference(case: Case) -> float | None:
    """How far log-densities of draws side by side are from those of the same draws alone.

    Relatively; None where no draws go side by side.
    """
    found: list[float] = []
    original = side_by_side._same

    def same(value: Tensor, other: Tensor, tolerance: float) -> bool:
        found.append(((value - other).abs() / (1 + other.abs())).max().item())
        return original(value, other, tolerance)

    with mock.patch.object(side_by_side, "_same", same):
        log_evidence(case.model, case.guide, *case.data, num_samples=100, method="importance")
    return max(found, default=None)


def timed(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    print(f"\n{case.name}, {args.draws} draws")
    works = {(kind, name): work for kind, name, work in ways(case, args.draws)}
    for key, work in list(works.items()):
        try:
            work()
        except Exception as error:  # Pyro's, of programs that do not broadcast
            print(f"  {key[0]:22} {key[1]:13} fails: {str(error).splitlines()[0][:60]}")
            del works[key]
    times: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for _ in range(args.rounds):
        for key, work in works.items():
            times[key].append(measure.seconds(work, args.device))
    medians = {key: statistics.median(values) for key, values in times.items()}
    for (kind, name), value in medians.items():
        base = next(v for (k, _), v in medians.items() if k == kind)
        print(f"  {kind:22} {name:13}{1e3 * value:9.1f} ms  {base / value:7.1f} x")
    apart = difference(case)
    if apart is not None:
        print(f"  log-densities of a draw, side by side and alone: within {apart:.0e}, relatively")
    seconds_of = {" ".join(key): value for key, value in medians.items()}
    return {"name": case.name, "seconds": seconds_of, "difference": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # of ArviZ about ArviZ, and of Pyro about shapes

    if args.device != "cpu":
        torch.set_default_device(args.device)
    print(measure.heading(args.device))
    found = []
    for case in cases(args.device):
        if case.name.startswith(tuple(args.only)):
            found.append(timed(case, args))
            measure.write(args.json, args.device, draws=args.draws, rows=found)


if __name__ == "__main__":
    main()
