"""Truths that tests share: closed forms, and the data of the reference tables."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from torch import Tensor, nn

from ppl_models import FactorAnalysis, data_plate

DATA_ROOT = Path(os.environ.get("PPL_DATA_ROOT", Path(__file__).parents[3] / "shared" / "data"))


def need_data(name: str) -> Path:
    """Skips the test where a data set is not at hand."""
    if not (DATA_ROOT / name).exists():
        pytest.skip(f"needs {name} in {DATA_ROOT}; set PPL_DATA_ROOT")
    return DATA_ROOT


def linear_gaussian(rows: int = 40, features: int = 5, factors: int = 2):
    """A factor analysis in float64, and rows drawn from it."""
    model = FactorAnalysis(features, factors).double()
    with torch.no_grad():
        model.log_scale.uniform_(-1.0, 0.0)
        model.loc.normal_()
    return model, model(size=rows).detach()


def grey_digits() -> tuple[Tensor, Tensor]:
    """The digits of the reference tables, / 16, in float64: 1500 and 297 rows."""
    x = torch.from_numpy(load_digits().data) / 16
    return x[:1500], x[1500:]


def iris() -> Tensor:
    """The measurements of Fisher's irises, in float64, (150, 4)."""
    return torch.from_numpy(load_iris().data)


LOCS = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


@pyro.infer.config_enumerate
def mixture(x=None, size=None):
    """A mixture of three normals of unit scale, its component enumerated."""
    with data_plate(x, size):
        component = pyro.sample("component", dist.Categorical(WEIGHTS))
        return pyro.sample("x", dist.Normal(LOCS[component], 1.0), obs=x)


def mixture_evidence(x: Tensor) -> Tensor:
    return (WEIGHTS.log() + dist.Normal(LOCS, 1.0).log_prob(x[:, None])).logsumexp(1)


def binary(rows: int = 22, seed: int = 3) -> Tensor:
    """Rows of four zeros and ones, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.bernoulli(torch.full((rows, 4), 0.3), generator=generator)


def with_holes(x: Tensor, share: float = 0.3) -> Tensor:
    """Rows of which that share of all entries was not observed."""
    return torch.where(torch.rand(x.shape) < share, torch.nan, x)


def state(*modules: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    pairs = [(f"{i}.{k}", v) for i, m in enumerate(modules) for k, v in m.state_dict().items()]
    return {name: value.clone() for name, value in pairs}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states are equal, bit for bit."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


class Pull:
    """A toy objective: pulls its own parameter to that of another."""

    def __init__(self, name: str, own: nn.Parameter, target: Callable[[], Tensor]) -> None:
        self.name, self.own, self.target = name, own, target

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        return (self.own - self.target()).square() / 2

    def prepare(self, *batch: Tensor, size: int, data: Any = None) -> None:
        self.loss(*batch, size=size)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield "own", self.own

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def blame(self, *batch: Tensor, size: int) -> str:
        return "nothing"
