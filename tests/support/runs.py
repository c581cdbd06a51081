"""Runs that tests share: without a bar, with all that a checkpoint must hold."""

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, elbo, fit
from tests.support.oracles import binary, state

quiet = functools.partial(fit, progress=False)


def dropout_vae(
    features: int = 4, norm: Callable[[int], nn.Module] = nn.BatchNorm1d
) -> tuple[VAE, AmortizedNormal]:
    """The same parameters at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoder = nn.Sequential(nn.Linear(features, 8), nn.Dropout(0.3), nn.Linear(8, 4))
        decoder = nn.Sequential(nn.Linear(2, 8), norm(8), nn.Dropout(0.3), nn.Linear(8, features))
        return VAE(features, 2, decoder=decoder), AmortizedNormal(features, 2, encoder=encoder)


class Drawn(Dataset):
    """Draws from torch's generator itself, as augmentation does."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, i: int) -> Tensor:
        return torch.bernoulli(0.2 + 0.6 * binary()[i])


def loader(**options: Any) -> DataLoader:
    return DataLoader(Drawn(), batch_size=5, shuffle=True, **options)


SOURCES: dict[str, Callable[[], Any]] = {
    "tensor": binary,
    "dataset": Drawn,
    "loader": loader,
    "loader with a generator": lambda: loader(generator=torch.Generator()),
    "ordered loader": lambda: DataLoader(TensorDataset(binary()), batch_size=5),
}


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, steps)


def everything(source: str, **options: Any) -> dict[str, Any]:
    return {
        "data": SOURCES[source](),
        "batch_size": None if "loader" in source else 5,
        "lr": 1e-2,
        "schedule": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.97),
        "clip": 0.05,
        "validation": binary(7),
        "seed": 0,
    } | options


def trained(data: Any, **options: Any) -> tuple[dict[str, Tensor], Any]:
    pair = dropout_vae()
    options = {"epochs": 2, "batch_size": 5, "lr": 1e-2, "seed": 0} | options
    run = quiet(elbo(*pair), data, **options)
    return state(*pair), run


class Seen(nn.Module):
    """A model that notes the batches of its training."""

    def __init__(self, labels: bool = False) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.batches: list[list[float]] = []
        self.sizes: list[int | None] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> None:
        if torch.is_grad_enabled():
            self.batches.append(x.tolist())
            self.sizes.append(size)
            self.modes.append(self.training)
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)
            if y is not None:
                pyro.sample("y", dist.Normal(self.loc + x, 1.0), obs=y)


class Rows(Dataset):
    """A data set of somebody's own, which gives one row at a time."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors_ = tensors

    def __len__(self) -> int:
        return len(self.tensors_[0])

    def __getitem__(self, i: int) -> Any:
        values = tuple(x[i] for x in self.tensors_)
        return values if len(values) > 1 else values[0]
