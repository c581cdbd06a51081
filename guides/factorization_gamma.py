r"""A mean-field posterior of positive parts of users and items.

.. math::
    q(\theta, \beta) = \prod_{uk} \mathrm{Gamma}(\theta_{uk} \mid a_{uk}, b_{uk})
    \prod_{ik} \mathrm{Gamma}(\beta_{ik} \mid c_{ik}, d_{ik})

Shapes: `U` users, `I` items, `K` factors.

References:
    | Scalable Recommendation with Hierarchical Poisson Factorization (Gopalan et al., 2015)
    | https://arxiv.org/abs/1311.1704
"""

import copy
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_count


class PositiveParts(Protocol):
    """A model of counts with sites `users` and `items`, and steps in closed form."""

    num_users: int
    num_items: int
    num_factors: int

    def start(self, x: Tensor, y: Tensor) -> Any: ...

    def ascend(self, users: Any, items: Any, x: Tensor, y: Tensor, *options: bool) -> Any: ...


class FactorizationGamma(nn.Module):
    r"""A guide of gamma distributions for a `PoissonFactorization`.

    `fit_em(guide, (x, y))` fits it, and the model, by coordinate ascent in closed form: each loss
    is minus the lower bound, in nats per count.

    Arguments:
        model: The model.

    Example:
        >>> from ppl_models import PoissonFactorization, fit_em
        >>> guide = FactorizationGamma(PoissonFactorization(3, 4, num_factors=2).double())
        >>> x = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 2], [2, 2], [2, 3]])
        >>> y = torch.tensor([5.0, 4.0, 4.0, 0.0, 1.0, 9.0]).double()
        >>> run = fit_em(guide, (x, y), max_steps=200, tolerance=1e-3)
    """

    def __init__(self, model: PositiveParts) -> None:
        super().__init__()
        self.model = model
        self.users = _Gammas(model.num_users, model.num_factors)
        self.items = _Gammas(model.num_items, model.num_factors)
        for parameter in model.parameters():  # type: ignore[attr-defined]
            self.to(parameter.device, parameter.dtype)

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> None:
        with pyro.plate("user", self.model.num_users, dim=-1):
            pyro.sample("users", self.users())
        with pyro.plate("item", self.model.num_items, dim=-1):
            pyro.sample("items", self.items())

    @torch.no_grad()
    def initialise(self, x: Tensor, y: Tensor) -> None:
        """Chooses where to start, at random; known items stay as they are."""
        if self._knows_items:
            return
        users, items = self.model.start(x, y)
        self.users.set(users)
        self.items.set(items)

    @torch.no_grad()
    def em_step(self, x: Tensor, y: Tensor) -> Tensor:
        """A step of coordinate ascent; returns the bound before it, in nats per count."""
        before = self.users.get(), self.items.get()
        bound, users, items = self.model.ascend(*before, x, y, self._knows_items)
        self.users.set(users)
        if not self._knows_items:
            self.items.set(items)
        return bound

    def for_new_users(self, num_users: int) -> "FactorizationGamma":
        """A guide, with its `model`, of users who came later; what is known of items is kept."""
        check_count(num_users=num_users)
        model = copy.deepcopy(self.model).requires_grad_(False)  # type: ignore[attr-defined]
        model.num_users = num_users
        guide = FactorizationGamma(model)
        guide.items = copy.deepcopy(self.items).requires_grad_(False)
        return guide

    @property
    def _knows_items(self) -> bool:
        return not self.items.log_rate.requires_grad


class _Gammas(nn.Module):
    """Gamma distributions of `count` vectors."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.log_concentration = nn.Parameter(torch.zeros(count, size))
        self.log_rate = nn.Parameter(torch.zeros(count, size))

    def forward(self) -> dist.TorchDistribution:
        return dist.Gamma(self.log_concentration.exp(), self.log_rate.exp()).to_event(1)

    def get(self) -> tuple[Tensor, Tensor]:
        return self.log_concentration.double().exp(), self.log_rate.double().exp()

    def set(self, gammas: tuple[Tensor, Tensor]) -> None:
        concentration, rate = gammas
        self.log_concentration.copy_(concentration.log())
        self.log_rate.copy_(rate.log())
