r"""Posteriors of what all rows of a Bayesian Gaussian mixture share: weights, centers, covariances.

`MeanFieldMixture` is of the family of the prior,

.. math::
    q(\beta, \mu, \Sigma) = \prod_k \mathrm{Beta}(\beta_k \mid a_k, b_k) \,
    \mathrm{InverseWishart}(\Sigma_k \mid \nu_k, \Psi_k) \,
    \mathcal{N}(\mu_k \mid m_k, \Sigma_k / \kappa_k)

with weights broken from sticks :math:`\beta`, a Dirichlet where the prior is one. It knows nothing
of the doubt in which component a row belongs, and is too narrow where there is much of it.
`MixturePosterior` starts there. It is one normal distribution, with all correlations, over the
components that have rows, in unconstrained space; the empty ones stay as they are.

Shapes: `N` rows, `D` features, `K` components, `M` of them with rows.

References:
    | Pattern Recognition and Machine Learning (Bishop, 2006), chapter 10.2
    | https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/
    | Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference
    | (Roeder et al., 2017), https://arxiv.org/abs/1703.09194
"""

from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.nn.functional import logsigmoid

from ppl_models.prompt.lines import in_a_line

DRAWS = 4000  # of the mean field, by which the joint normal starts


class ConjugateMixtureModel(Protocol):
    """A mixture whose shared latents have a mean-field posterior of the family of their prior."""

    num_components: int
    stick_breaking: bool
    prior: Any

    def mean_field(self, x: Tensor, restarts: int = 1) -> Any: ...

    def sample_shared(self, parameters: Any) -> Any: ...


class MeanFieldMixture(nn.Module):
    r"""The mean-field posterior of a Bayesian Gaussian mixture, found by coordinate ascent.

    There is nothing to fit. It is exact for a single component, and close where components are
    well apart.

    Arguments:
        model: A `BayesianGaussianMixture`.
        x: The rows, `(N, D)`.
        restarts: The number of runs of k-means for each number of clusters, 1 to `K`.

    Example:
        >>> from ppl_models import elbo
        >>> from ppl_models.mixtures.bayesian import BayesianGaussianMixture
        >>> model = BayesianGaussianMixture(num_features=2, num_components=1).double()
        >>> x = torch.randn(50, 2).double()
        >>> objective = elbo(model, MeanFieldMixture(model, x))
        >>> torch.allclose(objective.loss(x), objective.loss(x))  # of any draw: it is exact
        True
    """

    strength: Tensor
    sticks: Tensor

    __repr__ = in_a_line

    def __init__(self, model: ConjugateMixtureModel, x: Tensor, restarts: int = 1) -> None:
        super().__init__()
        self.model = model
        found = model.mean_field(x, restarts)
        self._kind = type(found)
        for name, value in found._asdict().items():
            self.register_buffer(name, value.clone())

    @property
    def shared(self) -> Any:
        """The parameters, as the model's `prior` has them."""
        return self._kind(*[getattr(self, name) for name in self._kind._fields])

    def forward(self, x: Tensor | None = None, size: int | None = None) -> None:
        """Draws what rows share, whatever the rows `x`."""
        self.model.sample_shared(self.shared)


class MixturePosterior(nn.Module):
    r"""The posterior of a Bayesian Gaussian mixture, a joint normal over the components with rows.

    Fitted by `fit(elbo(model, guide), x, steps=500, lr=0.03)`: what is fitted is relative to the
    mean field, so that this learning rate does for all data. A joint normal of `M` full
    covariances has about :math:`M^2 D^4 / 8` parameters.

    Arguments:
        model: A `BayesianGaussianMixture`.
        x: The rows, `(N, D)`, or enough of them to start from.
        restarts: The number of runs of k-means for each number of clusters, 1 to `K`.

    Attributes:
        num_occupied: The number of components with rows, `M`. They come first, by size.

    Example:
        >>> from ppl_models import elbo, fit
        >>> from ppl_models.mixtures.bayesian import BayesianGaussianMixture
        >>> model = BayesianGaussianMixture(num_features=2, num_components=4).double()
        >>> x = torch.randn(60, 2).double() + 6 * (torch.arange(60) % 2)[:, None]  # two clusters
        >>> guide = MixturePosterior(model, x)
        >>> run = fit(elbo(model, guide), x, steps=3, lr=0.03)
        >>> guide.num_occupied
        2
    """

    center: Tensor
    spread: Tensor

    __repr__ = in_a_line

    def __init__(self, model: ConjugateMixtureModel, x: Tensor, restarts: int = 1) -> None:
        super().__init__()
        self.model = model
        self.mean_field = MeanFieldMixture(model, x, restarts)
        rows = self.mean_field.strength - model.prior.strength  # (K,)
        self.num_occupied = max(1, int((rows > 1).sum()))
        size = self._unconstrained(num_draws=1).shape[1]  # P
        if size >= DRAWS:
            raise ValueError(
                f"MixturePosterior: {self.num_occupied} components have {size} free numbers, too "
                f"many for one normal distribution with all correlations. Try "
                f"covariance='diag' in the model, or MeanFieldMixture."
            )
        draws = self._unconstrained(DRAWS)  # (S, P)
        # In the mean field sticks and components are independent: the rest is chance.
        numbers = torch.arange(self.num_occupied)
        sticks, *parts = self._sizes
        owners = [numbers.repeat_interleave(size // self.num_occupied) for size in parts]
        owner = torch.cat([-1 - torch.arange(sticks), *owners]).to(draws.device)  # (P,)
        covariance = draws.T.cov() * (owner[:, None] == owner)
        self.register_buffer("center", draws.mean(0))
        self.register_buffer("spread", torch.linalg.cholesky(covariance))
        self.loc = nn.Parameter(torch.zeros_like(self.center))
        self.log_scale = nn.Parameter(torch.zeros_like(self.center))
        self.lower = nn.Parameter(torch.zeros_like(self.spread))  # below the diagonal

    def forward(self, x: Tensor | None = None, size: int | None = None) -> None:
        """Draws what rows share, whatever the rows `x`."""
        with poutine.block():
            drawn = poutine.trace(self.mean_field).get_trace().nodes
        root = self.lower.tril(-1) + self.log_scale.exp().diag()
        joint = _StickingTheLanding(
            self.center + self.spread @ self.loc, scale_tril=self.spread @ root
        )
        draw = pyro.sample("_joint", joint, infer={"is_auxiliary": True})  # (P,)
        sticks, covariances, locs = draw.split(self._sizes)
        if self.model.num_components > 1:
            self._sample_weights(sticks, drawn)
        with pyro.plate("component", self.model.num_components, dim=-1):
            self._sample_parts("covariances", covariances, drawn["covariances"])
            self._sample_parts("locs", locs, drawn["locs"])

    def _sample_weights(self, free: Tensor, drawn: Any) -> None:
        """Samples the sticks, of which the first have logits `free`, or the weights they leave."""
        first, known = free.sigmoid(), len(free)
        jacobian = (logsigmoid(free) + logsigmoid(-free)).sum()
        if self.model.stick_breaking:
            fn, sticks = drawn["sticks"]["fn"].base_dist, drawn["sticks"]["value"]
            density = fn.log_prob(sticks)[known:].sum() - jacobian
            sticks = torch.cat([first, sticks[known:]])
            pyro.sample("sticks", dist.Delta(sticks, density, event_dim=1))
            return
        a, b = self.mean_field.sticks[known:].unbind(1)
        rest = dist.Dirichlet(torch.cat([a, b[-1:]])) if len(a) else None
        within = free.new_ones(1) if rest is None else rest.sample()  # what is left, divided
        log_left = torch.cat([free.new_zeros(1), logsigmoid(-free).cumsum(0)])  # before each stick
        jacobian = jacobian + log_left[:-1].sum() + (len(within) - 1) * log_left[-1]
        density = -jacobian if rest is None else rest.log_prob(within) - jacobian
        left = log_left.exp()
        weights = torch.cat([first * left[:-1], within * left[-1]])
        pyro.sample("weights", dist.Delta(weights, density, event_dim=1))

    def _sample_parts(self, name: str, free: Tensor, rest: Any) -> None:
        """Samples a site of which the components with rows are given, unconstrained."""
        fn, value, occupied = rest["fn"], rest["value"], self.num_occupied
        transform = biject_to(fn.support)
        free = free.reshape(occupied, *transform.inverse_shape(value.shape)[1:])
        first = transform(free)
        jacobian = transform.log_abs_det_jacobian(free, first)
        if jacobian.ndim > 1:  # of the identity, by element
            jacobian = jacobian.flatten(1).sum(1)
        density = torch.cat([-jacobian, fn.log_prob(value)[occupied:]])  # (K,)
        value = torch.cat([first, value[occupied:]])
        pyro.sample(name, dist.Delta(value, density, event_dim=fn.event_dim))

    def _unconstrained(self, num_draws: int) -> Tensor:
        """Draws of the mean field, as `forward` takes them."""
        with torch.no_grad(), poutine.block(), pyro.plate("draws", num_draws, dim=-2):
            drawn = poutine.trace(self.mean_field).get_trace().nodes
        a, b = self.mean_field.sticks[: self.num_occupied - 1].unbind(1)
        sticks = dist.Beta(a, b, validate_args=False).sample((num_draws,))  # perhaps none
        parts = [sticks.logit(torch.finfo(sticks.dtype).eps)]
        for name in ("covariances", "locs"):
            fn, value = drawn[name]["fn"], drawn[name]["value"][:, : self.num_occupied]
            parts.append(biject_to(fn.support).inv(value).flatten(1))
        self._sizes = [part.shape[1] for part in parts]
        return torch.cat(parts, 1)


class _StickingTheLanding(dist.MultivariateNormal):
    """A normal distribution whose density has a gradient only by the draw.

    The rest of it is zero on average, and all noise where the guide is right.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        fixed = dist.MultivariateNormal(self.loc.detach(), scale_tril=self.scale_tril.detach())
        return fixed.log_prob(value)
