r"""What the output of a decoder means: callables from output to a distribution over a row.

A likelihood says how many outputs a feature needs (`num_outputs`) and maps outputs of shape
`(B, D * num_outputs)` to a distribution over rows of shape `(B, D)`, with one event dimension. The
outputs of a feature lie beside one another, those of the first feature first.
Any callable with these two things is a likelihood.

Shapes: `B` rows, `D` features, `L` levels.
"""

from typing import Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from ppl_models.checks import check_at_least, check_count


@runtime_checkable
class Likelihood(Protocol):
    """A callable from decoder outputs to a distribution over a row."""

    num_outputs: int

    def __call__(self, outputs: Tensor) -> dist.TorchDistribution: ...


def check_likelihood(likelihood: object) -> None:
    """Raises a TypeError that lists the likelihoods, unless `likelihood` is one."""
    if isinstance(likelihood, type) or not isinstance(likelihood, Likelihood):
        got = (
            f"the class {likelihood.__name__}"
            if isinstance(likelihood, type)
            else f"{likelihood!r}"
        )
        raise TypeError(
            f"likelihood: expected an object, one of Bernoulli(), Normal(), "
            f"Normal(own_scale=True), Categorical(levels), LogisticMixture(levels, "
            f"num_components), or your own callable with an attribute num_outputs; got {got}."
        )


def check_outputs(
    outputs: Tensor, num_features: int, likelihood: Likelihood | None, where: str
) -> Tensor:
    """Returns the outputs of a decoder, after a look at their shape: one would be spread over all.

    Raises:
        ValueError: If there are not `likelihood.num_outputs` for each feature; without a
            likelihood, one.
    """
    each = 1 if likelihood is None else likelihood.num_outputs
    if outputs.shape[-1] != num_features * each:
        raise ValueError(
            f"{where}: expected the decoder to give {each} output(s) for each of {num_features} "
            f"features, with shape (B, {num_features * each}), got {tuple(outputs.shape)}. Try "
            f"a decoder with {num_features * each} outputs, or another likelihood."
        )
    return outputs


class Bernoulli:
    r"""Binary features, :math:`x_d \in \{0, 1\}`; the outputs are the logits.

    .. math:: p(x_d = 1) = 1 / (1 + e^{-o_d})

    Example:
        >>> Bernoulli()(torch.zeros(2, 3)).log_prob(torch.ones(2, 3))  # 3 log(1/2)
        tensor([-2.0794, -2.0794])
    """

    num_outputs = 1

    def __call__(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=outputs).to_event(1)


class Normal(nn.Module):
    r"""Real features; the outputs are the means, and the scale is learned.

    .. math:: x_d \sim \mathcal{N}(o_d, (\sigma_{\min} + \sigma_d)^2)

    Arguments:
        own_scale: Whether each pixel of each row has a scale of its own, a second output of the
            decoder. By default one scale is shared by all.
        min_scale: The floor :math:`\sigma_{\min}`, in the units of the data. Without one the
            density of a constant feature grows without bound.

    Example:
        >>> Normal()(torch.zeros(2, 3)).event_shape
        torch.Size([3])
    """

    def __init__(self, own_scale: bool = False, min_scale: float = 1e-3) -> None:
        super().__init__()
        self.num_outputs = 2 if own_scale else 1
        self.min_scale = min_scale
        if not own_scale:
            self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        if self.num_outputs == 1:
            scale = self.min_scale + self.log_scale.exp()
            return dist.Normal(outputs, scale).to_event(1)
        mean, log_scale = outputs.unflatten(-1, (-1, 2)).unbind(-1)  # (B, D) each
        return dist.Normal(mean, self.min_scale + log_scale.exp()).to_event(1)


class Categorical:
    r"""Discretised features: grey levels :math:`x_d \in \{0, 1/(L-1), \dots, 1\}`.

    .. math:: p(x_d = l / (L - 1)) = \mathrm{softmax}(o_d)_l

    Images are numbers in [0, 1] under every likelihood, so that the same data serve all. The
    probabilities are of levels: evidences are in nats per row and in bits per dimension.

    Arguments:
        levels: The number of levels, :math:`L`.

    Example:
        >>> Categorical(levels=17)(torch.zeros(1, 64 * 17)).log_prob(torch.zeros(1, 64))
        tensor([-181.3257])
    """

    def __init__(self, levels: int) -> None:
        check_at_least(2, levels=levels)
        self.num_outputs = self.levels = levels

    def __call__(self, outputs: Tensor) -> dist.TorchDistribution:
        logits = outputs.unflatten(-1, (-1, self.levels))  # (B, D, L)
        return Levels(logits).to_event(1)


class LogisticMixture:
    r"""Discretised features under a mixture of logistics: near levels have near probabilities.

    .. math::
        p(x_d = l / (L - 1)) = \sum_{k=1}^{K} \pi_k
        \left[ \sigma((b_l - \mu_k) / s_k) - \sigma((a_l - \mu_k) / s_k) \right]

    where :math:`[a_l, b_l]` is what lies nearest to level `l` on the grid from -1 to 1, open to
    minus infinity at the first level and to infinity at the last, and :math:`\sigma` is the
    sigmoid. So there are `3 K` outputs for a feature whatever the number of levels: the weights (as
    logits), :math:`\mu` and :math:`\log s` of the components.

    Arguments:
        levels: The number of levels, :math:`L`: 17 for digits of scikit-learn, 256 for bytes.
        num_components: The number of logistics, :math:`K`.

    References:
        | PixelCNN++ (Salimans et al., 2017)
        | https://arxiv.org/abs/1701.05517

    Example:
        >>> likelihood = LogisticMixture(levels=17, num_components=3)
        >>> every = torch.arange(17).unsqueeze(1) / 16  # 17 rows of one feature
        >>> likelihood(torch.randn(1, 9)).log_prob(every).exp().sum().round(decimals=3)
        tensor(1.)
    """

    def __init__(self, levels: int, num_components: int) -> None:
        check_at_least(2, levels=levels)
        check_count(num_components=num_components)
        self.levels, self.num_outputs = levels, 3 * num_components

    def __call__(self, outputs: Tensor) -> dist.TorchDistribution:
        logits, loc, log_scale = outputs.unflatten(-1, (-1, 3, self.num_outputs // 3)).unbind(-2)
        return LogisticLevels(logits, loc, log_scale, self.levels).to_event(1)  # from (B, D, K)


class _Grid(constraints.Constraint):
    """The grid `{0, 1 / (levels - 1), ..., 1}`, up to rounding."""

    is_discrete = True

    def __init__(self, levels: int) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        index = value * (self.levels - 1)
        return (value >= 0) & (value <= 1) & ((index - index.round()).abs() < 1e-2)

    def __repr__(self) -> str:
        return f"{self.levels} grey levels from 0 to 1"


class Levels(dist.TorchDistribution):
    r"""A categorical distribution over the grey levels :math:`\{0, 1/(L-1), \dots, 1\}`.

    Arguments:
        logits: The unnormalised log-probabilities, with shape `(*, L)`.
    """

    arg_constraints = {"logits": constraints.real_vector}

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.levels = logits.shape[-1]
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _Grid(self.levels)

    @property
    def mean(self) -> Tensor:
        grid = torch.linspace(0, 1, self.levels, dtype=self.logits.dtype)
        return self.logits.exp() @ grid.to(self.logits.device)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Levels":
        shape = torch.Size(batch_shape) + self.logits.shape[-1:]
        return Levels(self.logits.expand(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        index = (value * (self.levels - 1)).round().long().unsqueeze(-1)
        shape = torch.broadcast_shapes(index.shape[:-1], self.batch_shape)
        logits = self.logits.expand(*shape, self.levels)
        return logits.gather(-1, index.expand(*shape, 1)).squeeze(-1)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        with torch.no_grad():
            index = torch.distributions.Categorical(logits=self.logits).sample(
                torch.Size(sample_shape)
            )
            return index.to(self.logits.dtype) / (self.levels - 1)


class LogisticLevels(dist.TorchDistribution):
    r"""A mixture of logistics, discretised to the grey levels :math:`\{0, 1/(L-1), \dots, 1\}`.

    Arguments:
        logits: The unnormalised log-weights of the components, with shape `(*, K)`.
        loc: Their locations, on the grid from -1 to 1.
        log_scale: The logarithms of their scales, on that grid too; from -7 to 7.
        levels: The number of levels.
    """

    arg_constraints = {
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "log_scale": constraints.real_vector,
    }

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        log_scale: Tensor,
        levels: int,
        validate_args: bool | None = None,
    ) -> None:
        self.levels = levels
        self.logits, self.loc = logits.log_softmax(-1), loc
        # A narrower logistic is on one level, a wider one on the two ends: beyond, only rounding.
        self.log_scale = log_scale.clamp(-7.0, 7.0)
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _Grid(self.levels)

    @property
    def mean(self) -> Tensor:
        # E[l] is the sum over the edges of the probability to lie above; one edge at a time, as
        # images of 256 levels would not fit into memory otherwise.
        weights, slope = self.logits.exp(), (-self.log_scale).exp()
        above = torch.zeros_like(weights[..., 0])
        for level in range(self.levels - 1):
            edge = (2 * level + 1) / (self.levels - 1) - 1
            above = above + (weights * ((self.loc - edge) * slope).sigmoid()).sum(-1)
        return above / (self.levels - 1)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "LogisticLevels":
        shape = torch.Size(batch_shape) + self.logits.shape[-1:]
        logits, loc, log_scale = (p.expand(shape) for p in (self.logits, self.loc, self.log_scale))
        return LogisticLevels(logits, loc, log_scale, self.levels, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Returns the log-probability, in nats.

        With the edges :math:`a < b` of a level in units of the scale, the sigmoid
        :math:`\sigma` obeys
        :math:`\sigma(b) - \sigma(a) = \sigma(b) \sigma(-a) (1 - e^{a - b})`: no cancellation.
        """
        if self._validate_args:
            self._validate_sample(value)
        index = (value * (self.levels - 1)).round().unsqueeze(-1)
        half = 1 / (self.levels - 1)
        slope = (-self.log_scale).exp()  # (*, K)
        centred = 2 * half * index - 1 - self.loc
        below_upper = F.logsigmoid((centred + half) * slope)  # log sigma(b)
        above_lower = F.logsigmoid((half - centred) * slope)  # log sigma(-a)
        inside = below_upper + above_lower + torch.log(-torch.expm1(-2 * half * slope))
        log_prob = torch.where(index == 0, below_upper, inside)
        log_prob = torch.where(index == self.levels - 1, above_lower, log_prob)
        return (self.logits + log_prob).logsumexp(-1)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape)
            component = torch.distributions.Categorical(logits=self.logits).sample(shape)
            component = component.unsqueeze(-1)  # (*, 1)
            wide = (*component.shape[:-1], self.logits.shape[-1])
            loc = self.loc.expand(wide).gather(-1, component).squeeze(-1)
            scale = self.log_scale.expand(wide).gather(-1, component).squeeze(-1).exp()
            tiny = torch.finfo(loc.dtype).tiny
            u = torch.rand_like(loc).clamp(tiny, 1 - torch.finfo(loc.dtype).eps)
            latent = loc + scale * (u.log() - torch.log1p(-u))  # on the grid from -1 to 1
            index = ((latent + 1) / 2 * (self.levels - 1)).round()
            return index.clamp(0, self.levels - 1) / (self.levels - 1)
