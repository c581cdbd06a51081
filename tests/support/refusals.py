"""What is refused before the first step, and that nothing has moved by then."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guides import AmortizedNormal
from ppl_models import VAE
from ppl_models.likelihoods import Bernoulli


def parameters(*modules: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for m in modules for p in m.parameters()]


class Refused:
    """The block raises before the first step: the modules are untouched, in mode too."""

    def __init__(self, kind: type[Exception], message: str, *modules: nn.Module) -> None:
        self.raises = pytest.raises(kind, match=message)
        self.modules = modules

    def __enter__(self) -> None:
        self.before, self.modes = parameters(*self.modules), self._modes()
        self.raises.__enter__()

    def __exit__(self, *error: Any) -> bool:
        caught = self.raises.__exit__(*error)
        after = parameters(*self.modules)
        assert all(map(torch.equal, self.before, after))
        assert self.modes == self._modes()
        return caught

    def _modes(self) -> list[bool]:
        return [m.training for root in self.modules for m in root.modules()]


def vae(likelihood: Any = None) -> tuple[VAE, AmortizedNormal]:
    return VAE(4, 2, likelihood=likelihood or Bernoulli()), AmortizedNormal(4, 2)


def spoiled(*rows: int, value: float = math.nan, count: int = 9) -> Tensor:
    x = torch.ones(count, 4)
    for row in rows:
        x[row, 1] = value
    return x
