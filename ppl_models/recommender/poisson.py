r"""Poisson factorisation: counts whose rates are sums of positive parts, one for each factor.

.. math::
    \theta_{uk} &\sim \mathrm{Gamma}(a, a), \qquad \beta_{ik} \sim \mathrm{Gamma}(a, d) \\
    y_{ui} \mid \theta, \beta &\sim \mathrm{Poisson}(\textstyle\sum_k \theta_{uk} \beta_{ik})

Were the part of each factor in a count known, the posterior of these would be gamma distributions;
a mean field has them in closed form. A shape `a` below 1 leaves most parts near zero. The rate `d`
is learned: that of users is not, as a scale can be moved from users to items.

Shapes: `B` counts, `U` users, `I` items, `K` factors.

References:
    | Bayesian Inference for Nonnegative Matrix Factorisation Models (Cemgil, 2009)
    | https://doi.org/10.1155/2009/785152
    | Scalable Recommendation with Hierarchical Poisson Factorization (Gopalan et al., 2015)
    | https://arxiv.org/abs/1311.1704
"""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppl_models.checks import check_count, check_positive
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line
from ppl_models.recommender.ratings import check_once, check_pairs, check_ratings, total


class Gammas(NamedTuple):
    """What is believed of the parts of users, or of items."""

    concentration: Tensor  # (M, K)
    rate: Tensor  # (M, K)

    @property
    def mean(self) -> Tensor:
        return self.concentration / self.rate

    @property
    def geometric(self) -> Tensor:
        """exp(E[log]), (M, K)."""
        return (self.concentration.digamma() - self.rate.log()).exp()


class PoissonFactorization(nn.Module):
    r"""Counts of items by users, with positive latent sites `users` `(U, K)` and `items` `(I, K)`.

    It is a model of counts `y`, `(B,)`, given pairs `x`, `(B, 2)`, of a user and an item; a pair
    that is not among the rows says nothing: where it stands for a count of 0, pass that.

    Arguments:
        num_users: The number of users, `U`.
        num_items: The number of items, `I`.
        num_factors: The number of parts of a rate, `K`.
        shape: `a`, of all priors.

    Example:
        >>> model = PoissonFactorization(num_users=3, num_items=4, num_factors=2)
        >>> model(torch.tensor([[0, 1], [2, 3]])).shape
        torch.Size([2])
    """

    __repr__ = in_a_line

    def __init__(
        self, num_users: int, num_items: int, num_factors: int, shape: float = 0.3
    ) -> None:
        super().__init__()
        check_count(num_users=num_users, num_items=num_items, num_factors=num_factors)
        check_positive(shape=shape)
        self.num_users, self.num_items, self.num_factors = num_users, num_items, num_factors
        self.shape = shape
        self.log_rate = nn.Parameter(torch.zeros(()))  # log d

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores `y`, `(B,)`, of users and items `x`, `(B, 2)`, of `size` in all, or draws it."""
        check_pairs(x, self.num_users, self.num_items, "PoissonFactorization")
        check_ratings(y, len(x), "PoissonFactorization")
        of_users, of_items = self.priors
        with pyro.plate("user", self.num_users, dim=-1):
            prior = of_users.expand([self.num_factors]).to_event(1)
            users = pyro.sample("users", prior, infer={"event_dims": ["factor"]})
        with pyro.plate("item", self.num_items, dim=-1):
            prior = of_items.expand([self.num_factors]).to_event(1)
            items = pyro.sample("items", prior, infer={"event_dims": ["factor"]})
        with data_plate(x, size):
            return pyro.sample("y", self.conditional(x, users, items), obs=y)

    def check_data(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raises where a user or an item is unknown, or a pair comes twice."""
        check_pairs(x, self.num_users, self.num_items, "PoissonFactorization")
        check_ratings(y, len(x), "PoissonFactorization")
        check_once(x, "PoissonFactorization")
        if y is not None and ((y < 0) | (y != y.round())).any():
            raise ValueError(
                "PoissonFactorization: y lies outside the support of a Poisson: expected counts, "
                "whole numbers of 0 or more. Try 2 * y for half stars, or MatrixFactorization."
            )

    @property
    def priors(self) -> tuple[dist.Gamma, dist.Gamma]:
        """Those of a part of a user, and of an item."""
        shape = torch.full_like(self.log_rate, self.shape)
        return dist.Gamma(shape, shape), dist.Gamma(shape, self.log_rate.exp())

    def conditional(self, x: Tensor, users: Tensor, items: Tensor) -> dist.Poisson:
        """Returns p(y | users, items) of pairs `(B, 2)`, with batch shape `(B,)`."""
        of_user, of_item = users.index_select(-2, x[:, 0]), items.index_select(-2, x[:, 1])
        return dist.Poisson((of_user * of_item).sum(-1))

    def start(self, x: Tensor, y: Tensor) -> tuple[Gammas, Gammas]:
        """Sets the rate so that counts are what they are on average; parts start near their means.

        Returns:
            What may be believed of users and of items, to start from.
        """
        self.check_data(x, y)
        mean = (y.double().mean() / self.num_factors).clamp(min=1e-12)  # of a part of an item
        self.log_rate.copy_((self.shape / mean).log())
        near = [1 + 0.3 * torch.rand(n, self.num_factors) for n in (self.num_users, self.num_items)]
        users, items = (value.to(y.device, torch.float64) for value in near)
        return Gammas(users, torch.ones_like(users)), Gammas(items, 1 / mean.expand_as(items))

    def ascend(
        self,
        users: tuple[Tensor, Tensor],
        items: tuple[Tensor, Tensor],
        x: Tensor,
        y: Tensor,
        only_users: bool = False,
    ) -> tuple[Tensor, Gammas, Gammas]:
        r"""A step of coordinate ascent on the lower bound: users, then items, then their rate.

        Arguments:
            users: What is believed of them.
            items: And of these.
            x: All pairs, `(N, 2)`.
            y: All counts, `(N,)`.
            only_users: Whether the rest stays as it is.

        Returns:
            The bound before the step, in nats per count, and what is believed after it.
        """
        users, items, y = Gammas(*users), Gammas(*items), y.double()
        bound = self._bound(users, items, x, y)
        users = self._posterior(x[:, 0], users, x[:, 1], items, y, self.shape)
        if only_users:
            return bound, users, items
        rate = self.log_rate.double().exp()
        items = self._posterior(x[:, 1], items, x[:, 0], users, y, rate)
        self.log_rate.copy_((self.shape / items.mean.mean()).log())
        return bound, users, items

    def _posterior(
        self,
        owners: Tensor,
        own: Gammas,
        others: Tensor,
        of: Gammas,
        y: Tensor,
        rate: float | Tensor,
    ) -> Gammas:
        """The best gamma distributions of owners, their counts divided among the factors."""
        parts = own.geometric[owners] * of.geometric[others]  # (N, K)
        ratio = y / parts.sum(1)
        count = own.geometric * total(of.geometric, others, owners, len(own.rate), ratio)
        exposure = total(of.mean, others, owners, len(own.rate))
        return Gammas(self.shape + count, rate + exposure)

    def _bound(self, users: Gammas, items: Gammas, x: Tensor, y: Tensor) -> Tensor:
        """In nats per count, where counts are divided among the factors as is best."""
        parts = (users.geometric[x[:, 0]] * items.geometric[x[:, 1]]).sum(1)
        expected = (users.mean[x[:, 0]] * items.mean[x[:, 1]]).sum()
        value = torch.xlogy(y, parts).sum() - expected - (y + 1).lgamma().sum()
        for own, prior in zip((users, items), self.priors, strict=True):
            prior = dist.Gamma(prior.concentration.double(), prior.rate.double())
            value = value - kl_divergence(dist.Gamma(*own), prior).sum()
        return value / len(y)
