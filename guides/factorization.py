r"""A normal posterior of each user's vector, and of each item's.

.. math::
    q(w, v) = \prod_u \mathcal{N}(w_u \mid m_u, C_u) \prod_i \mathcal{N}(v_i \mid n_i, D_i)

with full covariances, or diagonal ones (mean-field). Users are independent of items, which makes
it too narrow: the less, the fewer correlations it leaves out.

Shapes: `U` users, `I` items, `F` numbers of a user, `G` of an item.

References:
    | Variational Bayesian Approach to Movie Rating Prediction (Lim & Teh, 2007)
    | https://www.cs.uic.edu/~liub/KDD-cup-2007/proceedings/variational-Lim.pdf
"""

import copy
import math
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_choice, check_count
from ppl_models.prompt.lines import in_a_line

START = 0.1  # the standard deviation to start with


class FactorizationGuide(nn.Module):
    """What guides of the sites `users` and `items` share, whatever their distributions.

    `users` and `items` are modules whose call gives the distributions of all of them, with `get()`
    and `set()` of their parameters as the steps of the model have them.
    """

    model: Any
    users: Any
    items: Any

    __repr__ = in_a_line

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> None:
        """Draws the vectors of all users and items, whatever pairs `x` and ratings `y`."""
        with pyro.plate("user", self.model.num_users, dim=-1):
            pyro.sample("users", self.users())
        with pyro.plate("item", self.model.num_items, dim=-1):
            pyro.sample("items", self.items())

    @torch.no_grad()
    def initialise(self, x: Tensor, y: Tensor) -> None:
        """Chooses where to start, as the model does; known items stay as they are."""
        if self._knows_items:
            return
        users, items = self.model.start(x, y)
        self.users.set(users)
        self.items.set(items)

    @torch.no_grad()
    def em_step(self, x: Tensor, y: Tensor) -> Tensor:
        """A step of coordinate ascent; returns the bound before it, in nats per row."""
        options = {**self._options(), "only_users": self._knows_items}
        before = self.users.get(), self.items.get()
        bound, users, items = self.model.ascend(*before, x, y, **options)
        self.users.set(users)
        if not self._knows_items:
            self.items.set(items)
        return bound

    def for_new_users(self, num_users: int) -> Self:
        """A guide, with its `model`, of users who came later; what is known of items is kept.

        Items and the parameters of the model are frozen: `fit_em(guide, (x, y))` on the rows of
        new users, numbered from 0, folds them in; or `fit(elbo(guide.model, guide), (x, y))`.
        """
        check_count(num_users=num_users)
        model = copy.deepcopy(self.model).requires_grad_(False)
        model.num_users = num_users
        guide = self._like(model)
        guide.items = copy.deepcopy(self.items).requires_grad_(False)
        return guide

    def _like(self, model: Any) -> Any:
        """A guide of this kind, not fitted, of another model."""
        raise NotImplementedError

    def _options(self) -> dict[str, bool]:
        """What the steps of the model are told of the guide."""
        return {}

    @property
    def _knows_items(self) -> bool:
        return not next(self.items.parameters()).requires_grad


class FactorizationNormal(FactorizationGuide):
    r"""A normal guide for the sites `users` and `items` of a `MatrixFactorization`.

    Where ratings are `Normal()`, `fit_em(guide, (x, y))` fits it, and the parameters of the model,
    by coordinate ascent in closed form: each loss is minus the lower bound, in nats per rating.
    Elsewhere, `fit(elbo(model, guide), (x, y))`; where ratings are `Ordered`, after
    `guide.initialise(x, y)`, which starts from coordinate ascent. By gradients a `"diag"` guide
    learns faster: most correlations of items with few ratings are noise to them.

    Arguments:
        model: The model.
        covariance: `"full"` for each user and each item, or `"diag"`.

    Raises:
        ValueError: If `covariance` is neither.

    Example:
        >>> from ppl_models import MatrixFactorization, elbo, fit_em
        >>> model = MatrixFactorization(num_users=3, num_items=4, num_factors=2).double()
        >>> guide = FactorizationNormal(model)
        >>> x = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 2], [2, 2], [2, 3]])
        >>> y = torch.tensor([5.0, 4.0, 4.5, 2.0, 3.0, 1.0]).double()
        >>> run = fit_em(guide, (x, y), max_steps=100, tolerance=1e-3)
        >>> objective = elbo(model, guide)
    """

    def __init__(self, model: Any, covariance: str = "full") -> None:
        super().__init__()
        check_choice("covariance", covariance, ["full", "diag"])
        self.model, self.covariance = model, covariance
        self.users = _Normals(model.num_users, model.user_root, covariance == "diag")
        self.items = _Normals(model.num_items, model.item_root, covariance == "diag")

    def _like(self, model: Any) -> "FactorizationNormal":
        return FactorizationNormal(model, self.covariance)

    def _options(self) -> dict[str, bool]:
        return {"diagonal": self.users.diagonal}


class _Normals(nn.Module):
    """Normal distributions of `count` vectors."""

    def __init__(self, count: int, like: Tensor, diagonal: bool) -> None:
        super().__init__()
        size, self.diagonal = len(like), diagonal
        self.loc = nn.Parameter(like.new_zeros(count, size))
        start = like.new_full((count, size), math.log(START))
        self.root = nn.Parameter(start if diagonal else start.diag_embed())

    def forward(self) -> dist.TorchDistribution:
        if self.diagonal:
            return dist.Normal(self.loc, self.root.exp()).to_event(1)
        return dist.MultivariateNormal(self.loc, scale_tril=self.tril)

    @property
    def tril(self) -> Tensor:
        """Cholesky factors, (M, F, F)."""
        if self.diagonal:
            return self.root.exp().diag_embed()
        diagonal = self.root.diagonal(dim1=-2, dim2=-1)
        return self.root.tril(-1) + diagonal.exp().diag_embed()

    def get(self) -> tuple[Tensor, Tensor]:
        """Means and covariances, in float64."""
        tril = self.tril.double()
        return self.loc.double(), tril @ tril.mT

    def set(self, normals: tuple[Tensor, Tensor]) -> None:
        loc, covariance = normals
        self.loc.copy_(loc)
        if self.diagonal:
            self.root.copy_(covariance.diagonal(dim1=-2, dim2=-1).log() / 2)
            return
        tril = torch.linalg.cholesky(covariance)
        self.root.copy_(tril.tril(-1) + tril.diagonal(dim1=-2, dim2=-1).log().diag_embed())
