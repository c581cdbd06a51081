"""Runs that tests share: without a bar, with all that a checkpoint must hold."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, fit
from tests.support.oracles import binary

quiet = functools.partial(fit, progress=False)


def dropout_vae(features: int = 4) -> tuple[VAE, AmortizedNormal]:
    """The same parameters at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoder = nn.Sequential(nn.Linear(features, 8), nn.Dropout(0.3), nn.Linear(8, 4))
        decoder = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, features)
        )
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
