r"""Priors of latent vectors, to learn together with what is made of them.

A prior is a module whose call, without arguments, gives a distribution over vectors of length `K`.
The best one for a given guide is the mean of its posteriors over the data,

.. math::
    \max_p \frac{1}{N} \sum_n \mathbb{E}_{q(z \mid x_n)} [\log p(z)]
    \quad \text{at} \quad p(z) = \frac{1}{N} \sum_n q(z \mid x_n)

which `VampPrior` has the shape of, with a few rows of its own in the place of all.

Shapes: `B` rows, `D` features, `K` latents, `C` components.

References:
    | VAE with a VampPrior (Tomczak & Welling, 2018)
    | https://arxiv.org/abs/1705.07120
    | Neural Spline Flows (Durkan et al., 2019)
    | https://arxiv.org/abs/1906.04032
"""

import math
from collections.abc import Sequence
from typing import Protocol

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_models.checks import check_count
from ppl_models.prompt.lines import in_a_line

__all__ = ["FlowPrior", "MixturePrior", "StandardNormal", "VampPrior"]


def __dir__() -> list[str]:
    return __all__


class HasPosterior(Protocol):
    """A guide with `posterior(x)`: a distribution over the latents of the rows `x`."""

    def posterior(self, x: Tensor) -> dist.TorchDistribution: ...


class StandardNormal(nn.Module):
    r"""The prior :math:`\mathcal{N}(0, I)`, with nothing to learn.

    Arguments:
        num_latents: The length of a latent vector, `K`.

    Example:
        >>> StandardNormal(num_latents=3)().log_prob(torch.zeros(3))
        tensor(-2.7568)
    """

    loc: Tensor

    __repr__ = in_a_line

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        check_count(num_latents=num_latents)
        self.num_latents = num_latents
        self.register_buffer("loc", torch.zeros(num_latents), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Returns the distribution of a latent vector."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


class MixturePrior(nn.Module):
    r"""A mixture of Gaussians with diagonal covariances.

    .. math:: p(z) = \sum_c \pi_c \, \mathcal{N}(z \mid \mu_c, \mathrm{diag}(\sigma_c^2))

    Arguments:
        num_latents: The length of a latent vector, `K`.
        num_components: The number of Gaussians, `C`.

    Raises:
        ValueError: If there are none.

    Example:
        >>> MixturePrior(num_latents=3, num_components=10)().sample((5,)).shape
        torch.Size([5, 3])
    """

    __repr__ = in_a_line

    def __init__(self, num_latents: int, num_components: int) -> None:
        super().__init__()
        check_count(num_components=num_components)
        self.num_latents, self.num_components = num_latents, num_components
        self.logits = nn.Parameter(torch.zeros(num_components))  # log pi, up to a constant, (C,)
        # Drawn, not zero: components that are alike would stay alike.
        self.locs = nn.Parameter(torch.randn(num_components, num_latents))  # mu, (C, K)
        self.log_scales = nn.Parameter(torch.zeros(num_components, num_latents))  # log sigma

    def forward(self) -> dist.TorchDistribution:
        """Returns the distribution of a latent vector."""
        parts = dist.Normal(self.locs, self.log_scales.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)


class VampPrior(nn.Module):
    r"""The mean of the guide's posteriors at a few learned rows, the pseudo-inputs.

    .. math:: p(z) = \frac{1}{C} \sum_c q_\phi(z \mid u_c)

    It shares the encoder with the guide: what one learns the other has.

    Arguments:
        pseudo_inputs: Where the pseudo-inputs :math:`u_c` start, `(C, D)`: rows of the data.
        guide: A module with `posterior(x)`, such as `AmortizedNormal`, whose guide this prior's
            model is trained with.

    Raises:
        TypeError: If the guide has no `posterior`, or the pseudo-inputs are no such rows.
        ValueError: If there are none, or they are not finite.

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import VAE
        >>> x, guide = torch.rand(100, 64).round(), AmortizedNormal(64, 8)
        >>> vae = VAE(64, 8, prior=VampPrior(x[:20], guide))
        >>> vae(size=5).shape
        torch.Size([5, 64])
    """

    __repr__ = in_a_line

    def __init__(self, pseudo_inputs: Tensor, guide: HasPosterior) -> None:
        super().__init__()
        if not isinstance(guide, nn.Module) or not hasattr(guide, "posterior"):
            raise TypeError(
                f"VampPrior: expected a module with posterior(x), got {guide!r}. "
                f"Try the guide that the model is trained with, such as AmortizedNormal(64, 8)."
            )
        if not isinstance(pseudo_inputs, Tensor) or not pseudo_inputs.is_floating_point():
            raise TypeError(
                f"VampPrior: expected rows of floating-point numbers to start from, got "
                f"{getattr(pseudo_inputs, 'dtype', type(pseudo_inputs).__name__)}. Try x[:100]."
            )
        if pseudo_inputs.ndim < 2 or not len(pseudo_inputs) or not pseudo_inputs.isfinite().all():
            raise ValueError(
                f"VampPrior: expected one or more rows of finite numbers to start from, got the "
                f"shape {tuple(pseudo_inputs.shape)} with {int((~pseudo_inputs.isfinite()).sum())} "
                f"numbers that are not finite. Try x[:100]."
            )
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.clone())  # u, (C, D)
        self.guide = guide

    def forward(self) -> dist.TorchDistribution:
        """Returns the distribution of a latent vector."""
        parts = self.guide.posterior(self.pseudo_inputs)  # batch shape (C,)
        even = dist.Categorical(logits=self.pseudo_inputs.new_zeros(len(self.pseudo_inputs)))
        return dist.MixtureSameFamily(even, parts)


class FlowPrior(nn.Module):
    r"""A normalising flow: an invertible network makes the latents of standard normal numbers.

    .. math:: p(z) = \mathcal{N}(f(z) \mid 0, I) \, |\det \partial f / \partial z|

    The network is an autoregressive one of splines, from zuko. A density takes one pass through
    each transform, and a draw `K` of them.

    Arguments:
        num_latents: The length of a latent vector, `K`.
        num_transforms: The number of transforms.
        hidden: The width of each hidden layer of a transform's network.

    Raises:
        ImportError: If zuko is not installed.

    Example:
        >>> prior = FlowPrior(num_latents=3)
        >>> prior().sample((5,)).shape
        torch.Size([5, 3])
    """

    __repr__ = in_a_line

    def __init__(
        self, num_latents: int, num_transforms: int = 3, hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        self.num_latents, self.num_transforms = num_latents, num_transforms
        validate = torch.distributions.Distribution._validate_args
        try:
            import zuko  # here, because it may not be installed
        except ImportError as error:
            raise ImportError(
                "FlowPrior: its flow is that of zuko, which is not installed. Try pip install "
                "'ppl-models[flows]'."
            ) from error
        finally:
            # Its import switches the checks of all distributions off.
            torch.distributions.Distribution.set_default_validate_args(validate)
        self.flow = zuko.flows.NSF(num_latents, transforms=num_transforms, hidden_features=hidden)

    def forward(self) -> dist.TorchDistribution:
        """Returns the distribution of a latent vector."""
        return _Flow(self.flow())


class _Flow(dist.TorchDistribution):
    """A distribution of zuko for Pyro; that of `pyro.contrib.zuko` cannot be sampled by itself."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: torch.distributions.Distribution) -> None:
        self.flow = flow
        super().__init__(flow.batch_shape, flow.event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "_Flow":
        return _Flow(self.flow.expand(torch.Size(batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.flow.log_prob(value)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        return self.flow.rsample(torch.Size(sample_shape))


def check_prior(prior: nn.Module, num_latents: int) -> None:
    """Raises unless a module gives a distribution over vectors of `num_latents` numbers.

    Raises:
        TypeError: If it is no module, or its call gives no distribution.
        ValueError: If that is one over something else.
    """
    known = "MixturePrior(num_latents, num_components), VampPrior(x[:100], guide)"
    if not isinstance(prior, nn.Module):
        raise TypeError(
            f"prior: expected a module whose call gives a distribution, got {prior!r}. Try {known}."
        )
    with torch.no_grad():
        density = prior()
    if not isinstance(density, TorchDistributionMixin):
        raise TypeError(
            f"prior: expected the call of {type(prior).__name__} to give a distribution of Pyro, "
            f"got {type(density).__name__}. Try {known}."
        )
    if (density.batch_shape, density.event_shape) != ((), (num_latents,)):
        raise ValueError(
            f"prior: expected a distribution over vectors of {num_latents} latents, with batch "
            f"shape () and event shape ({num_latents},), got {tuple(density.batch_shape)} and "
            f"{tuple(density.event_shape)}. Try num_latents={math.prod(density.event_shape)} of "
            f"the model, or .to_event(1)."
        )
