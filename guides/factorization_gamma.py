r"""A mean-field posterior of positive parts of users and items.

.. math::
    q(\theta, \beta) = \prod_{uk} \mathrm{Gamma}(\theta_{uk} \mid a_{uk}, b_{uk})
    \prod_{ik} \mathrm{Gamma}(\beta_{ik} \mid c_{ik}, d_{ik})

Shapes: `U` users, `I` items, `K` factors.

References:
    | Scalable Recommendation with Hierarchical Poisson Factorization (Gopalan et al., 2015)
    | https://arxiv.org/abs/1311.1704
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from guides.factorization import FactorizationGuide


class FactorizationGamma(FactorizationGuide):
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

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.users = _Gammas(model.num_users, model.num_factors)
        self.items = _Gammas(model.num_items, model.num_factors)
        for parameter in model.parameters():
            self.to(parameter.device, parameter.dtype)

    def _like(self, model: Any) -> "FactorizationGamma":
        return FactorizationGamma(model)


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
