r"""Matrix factorisation: what a user says of an item, from a vector of each.

.. math::
    w_u &\sim \mathcal{N}(0, S), \qquad v_i \sim \mathcal{N}(0, T) \\
    s_{ui} &= \mu + b_u + c_i + p_u^\top q_i, \qquad w_u = (b_u, p_u), \quad v_i = (c_i, q_i) \\
    y_{ui} \mid w, v &\sim p(y \mid s_{ui})

A vector holds a bias and `K` factors. The covariances `S` and `T` of the priors are learned, with
the mean :math:`\mu` and the likelihood: so are the scales of the factors, and those that are not
needed shrink. Where the likelihood has more outputs than one (a noise, or cutpoints, of the user's
own), the others are numbers of the user, too: :math:`w_u = (b_u, p_u, g_u)`.

Shapes: `B` ratings, `U` users, `I` items, `K` factors.

References:
    | Bayesian Probabilistic Matrix Factorization (Salakhutdinov & Mnih, 2008)
    | https://doi.org/10.1145/1390156.1390267
    | OrdRec: An Ordinal Model for Predicting Personalized Item Rating Distributions
    | (Koren & Sill, 2011), https://doi.org/10.1145/2043932.2043956
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_count
from ppl_models.likelihoods import Likelihood, Normal, Ordered, check_likelihood
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line
from ppl_models.recommender.coordinate import (
    Gaussians,
    Regressions,
    divergence,
    log_density,
    regressions,
    spectral,
)
from ppl_models.recommender.ratings import check_once, check_pairs, check_ratings

STEPS = 20  # of coordinate ascent, from which ordered levels start


class MatrixFactorization(nn.Module):
    r"""Ratings of items by users, with latent sites `users`, `(U, K + 1)`, and `items`, alike.

    It is a model of ratings `y`, `(B,)`, given pairs `x`, `(B, 2)`, of a user and an item:
    `model(x)` samples ratings, `model(x, y)` scores them. With the likelihood `Normal()`, and the
    items known, a user's posterior and evidence have closed forms.

    Arguments:
        num_users: The number of users, `U`.
        num_items: The number of items, `I`.
        num_factors: The length of their vectors beside the bias, `K`.
        likelihood: What :math:`s_{ui}` means, one of `ppl_models.likelihoods`: `Normal()`,
            `Normal(own_scale=True)` for a noise of each user's own, `Ordered(levels)`,
            `Ordered(levels, own_cutpoints=True)`, `Poisson()`, or your own. Default: `Normal()`.

    Raises:
        TypeError: If `likelihood` is none.

    Example:
        >>> model = MatrixFactorization(num_users=3, num_items=4, num_factors=2)
        >>> model(torch.tensor([[0, 1], [2, 3]])).shape  # two ratings
        torch.Size([2])
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_users: int,
        num_items: int,
        num_factors: int,
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        check_count(num_users=num_users, num_items=num_items, num_factors=num_factors)
        self.likelihood = Normal() if likelihood is None else likelihood
        check_likelihood(self.likelihood)
        self.num_users, self.num_items, self.num_factors = num_users, num_items, num_factors
        outputs = self.likelihood.num_outputs
        self.offset = nn.Parameter(torch.zeros(outputs))  # mu, and those of the other outputs
        self.user_root = nn.Parameter(_root(num_factors + outputs))  # of S
        self.item_root = nn.Parameter(_root(num_factors + 1))  # of T

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores `y`, `(B,)`, of users and items `x`, `(B, 2)`, of `size` in all, or draws it."""
        check_pairs(x, self.num_users, self.num_items, "MatrixFactorization")
        check_ratings(y, len(x), "MatrixFactorization")
        with pyro.plate("user", self.num_users, dim=-1):
            prior = _zero_mean(self.user_root)
            users = pyro.sample("users", prior, infer={"event_dims": ["of_user"]})
        with pyro.plate("item", self.num_items, dim=-1):
            prior = _zero_mean(self.item_root)
            items = pyro.sample("items", prior, infer={"event_dims": ["of_item"]})

        with data_plate(x, size):
            return pyro.sample("y", self.conditional(x, users, items), obs=y)

    def check_data(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raises where a user or an item is unknown, or a pair comes twice."""
        check_pairs(x, self.num_users, self.num_items, "MatrixFactorization")
        check_ratings(y, len(x), "MatrixFactorization")
        check_once(x, "MatrixFactorization")

    def conditional(self, x: Tensor, users: Tensor, items: Tensor) -> dist.TorchDistribution:
        """Returns p(y | users, items) of pairs `(B, 2)`, with batch shape `(B,)`.

        Draws `(S, U, K + 1)` and `(S, I, K + 1)` give `(S, B)`.
        """
        w, v = users.index_select(-2, x[:, 0]), items.index_select(-2, x[:, 1])  # (*, B, K + 1)
        last = self.num_factors + 1
        product = (w[..., 1:last] * v[..., 1:]).sum(-1)
        score = (w[..., 0] + v[..., 0] + product)[..., None]
        outputs = torch.cat([score, w[..., last:]], -1) + self.offset  # (*, B, num_outputs)
        # Ratings as the features of one row: what remains of it is a distribution for each.
        law = self.likelihood(outputs.flatten(-2))
        if not isinstance(law, torch.distributions.Independent):
            raise TypeError(
                f"MatrixFactorization: expected a likelihood whose features are independent, with "
                f".to_event(1), got {type(law).__name__}. Try Normal() or Ordered(levels)."
            )
        return law.base_dist

    def user_posterior(self, items: Tensor, x: Tensor, y: Tensor) -> dist.MultivariateNormal:
        """Returns each user's posterior, where the items `(I, K + 1)` are known: Normal ratings.

        Raises:
            ValueError: If the likelihood is not `Normal()`.
        """
        found, noise = self._of_users(Gaussians(items, _none(items)), x, y)
        loc, covariance = found.posterior(self._prior(self.user_root), noise, diagonal=False)
        return dist.MultivariateNormal(loc.to(items), covariance.to(items))

    def user_evidence(self, items: Tensor, x: Tensor, y: Tensor) -> Tensor:
        r"""Returns the log evidence of each user's ratings, where the items are known, `(U,)`.

        .. math:: \log p(y_u \mid v) = \log \mathcal{N}(y_u \mid \mu + c, \,
            \tilde{V} S \tilde{V}^\top + \sigma^2 I)

        In nats, for Normal ratings.
        """
        known = Gaussians(items, _none(items))
        found, noise = self._of_users(known, x, y)
        prior = self._prior(self.user_root)
        root = torch.linalg.cholesky(found.precision(prior, noise))
        rest = y.double() - self.offset.double() - items.double()[x[:, 1], 0]
        squares = rest.new_zeros(self.num_users).index_add(0, x[:, 0], rest.square())
        scaled = torch.linalg.solve_triangular(root, found.cross[..., None] / noise, upper=False)
        counts = torch.bincount(x[:, 0], minlength=self.num_users)
        logdet = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + prior.logdet()
        constant = counts * (2 * torch.pi * noise).log() + logdet
        return -(constant + squares / noise - scaled.square().sum((-2, -1))) / 2

    def start(self, x: Tensor, y: Tensor) -> tuple[Gaussians, Gaussians]:
        """Sets the parameters to what ratings suggest: `Normal()` ones, or `Ordered` levels.

        Ordered ones start from coordinate ascent as if they were numbers with normal noise.

        Returns:
            What may be believed of users and of items, to start from.
        """
        self.check_data(x, y)
        if not y.std() > 0:
            raise ValueError(
                f"MatrixFactorization: expected ratings that differ, got {len(y)} of "
                f"{y[0].item():g}. Try more of them."
            )
        if isinstance(self.likelihood, Ordered):
            users, items = self._start_as_numbers(self.likelihood, x, y)
        else:
            y = y.double()
            self._set_noise(y.var(correction=0))
            self.offset.fill_(y.mean())
            sizes = self.num_users, self.num_items
            users, items = spectral(x, y - y.mean(), sizes, self.num_factors)
        _set_root(self.user_root, users)
        _set_root(self.item_root, items)
        return users, items

    def _start_as_numbers(
        self, likelihood: Ordered, x: Tensor, y: Tensor
    ) -> tuple[Gaussians, Gaussians]:
        """Coordinate ascent for normal ratings, in the units of the scores of levels."""
        twin = MatrixFactorization(self.num_users, self.num_items, self.num_factors)
        twin = twin.to(x.device, torch.float64)
        users, items = twin.start(x, y)
        for _ in range(STEPS):
            _, users, items = twin.ascend(users, items, x, y)
        unit = likelihood.start(twin.offset[0], twin._noise().sqrt())
        return users.scaled(unit, len(self.user_root)), items.scaled(unit, len(self.item_root))

    def ascend(
        self,
        users: tuple[Tensor, Tensor],
        items: tuple[Tensor, Tensor],
        x: Tensor,
        y: Tensor,
        diagonal: bool = False,
        only_users: bool = False,
    ) -> tuple[Tensor, Gaussians, Gaussians]:
        r"""A step of coordinate ascent on the lower bound: users, items, and the parameters.

        Arguments:
            users: What is believed of them.
            items: And of these.
            x: All pairs, `(N, 2)`.
            y: All ratings, `(N,)`.
            diagonal: Whether users and items are to be without correlations.
            only_users: Whether the rest stays as it is.

        Returns:
            The bound before the step, in nats per rating, and what is believed after it.
        """
        users, items = Gaussians(*users), Gaussians(*items)
        found, noise = self._of_users(items, x, y)
        bound = log_density(found.residual(users), noise, len(y))
        bound = bound - divergence(users, self._prior(self.user_root))
        bound = bound - divergence(items, self._prior(self.item_root))

        users = found.posterior(self._prior(self.user_root), noise, diagonal)
        if only_users:
            return bound / len(y), users, items
        rest = y.double() - self.offset.double()
        found = regressions(x[:, 1], x[:, 0], rest, users, self.num_items)
        items = found.posterior(self._prior(self.item_root), noise, diagonal)
        _set_root(self.user_root, users)
        _set_root(self.item_root, items)
        shift = found.error(items) / len(y)
        self.offset.add_(shift)
        self._set_noise(found.residual(items) / len(y) - shift.square())
        return bound / len(y), users, items

    def _of_users(self, items: Gaussians, x: Tensor, y: Tensor) -> tuple[Regressions, Tensor]:
        """The regressions of users on items, and the variance of the noise."""
        noise = self._noise()
        rest = y.double() - self.offset.double()
        items = Gaussians(items.loc.double(), items.covariance.double())
        return regressions(x[:, 0], x[:, 1], rest, items, self.num_users), noise

    def _noise(self) -> Tensor:
        """The variance of the noise, of Normal ratings."""
        return (self._normal.min_scale + self._normal.log_scale.double().exp()).square()

    def _set_noise(self, variance: Tensor) -> None:
        scale = variance.clamp(min=0).sqrt() - self._normal.min_scale
        self._normal.log_scale.fill_(scale.clamp(min=1e-6).log())

    @property
    def _normal(self) -> Normal:
        """The likelihood, where there are closed forms."""
        kind = self.likelihood
        if not isinstance(kind, Normal) or kind.num_outputs > 1:
            raise ValueError(
                f"MatrixFactorization: there are closed forms for the likelihood Normal() only, "
                f"got {type(kind).__name__}. Try fit(elbo(model, guide), (x, y))."
            )
        return kind

    def _prior(self, root: Tensor) -> Tensor:
        """A covariance of a prior, (F, F)."""
        tril = lower(root.double())
        return tril @ tril.mT


def lower(root: Tensor) -> Tensor:
    """A Cholesky factor, whose diagonal is given by its logarithm."""
    return root.tril(-1) + root.diagonal(dim1=-2, dim2=-1).exp().diag_embed()


def _root(size: int) -> Tensor:
    """That of a covariance of standard deviations of 0.3: most ratings are within 1 of the mean."""
    return math.log(0.3) * torch.eye(size)


def _set_root(root: Tensor, own: Gaussians) -> None:
    """Sets a prior to the covariance that is best for what is believed."""
    tril = torch.linalg.cholesky(own.second.mean(0))
    root.copy_(tril.tril(-1) + tril.diagonal().log().diag())


def _zero_mean(root: Tensor) -> dist.MultivariateNormal:
    return dist.MultivariateNormal(root.new_zeros(len(root)), scale_tril=lower(root))


def _none(items: Tensor) -> Tensor:
    """The covariance of what is certain."""
    return items.new_zeros(len(items), items.shape[1], items.shape[1])
