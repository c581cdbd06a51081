r"""Distributions over the grey levels of an image, :math:`\{0, 1/(L-1), \dots, 1\}`.

Levels that are numbers in [0, 1], and not indices, serve all likelihoods alike.

Shapes: `L` levels, `K` components, `*` rows and features in front.

References:
    | PixelCNN++ (Salimans et al., 2017), on mixtures of logistics
    | https://arxiv.org/abs/1701.05517
"""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

END = 1e3  # a score so far away has no probability beyond, nor a gradient, in any precision


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


class _Among(constraints.Constraint):
    """One of some numbers, up to rounding."""

    is_discrete = True

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        nearest = self.levels[_nearest(value, self.levels)]
        return (value - nearest).abs() <= 1e-5 * (1 + nearest.abs())

    def __repr__(self) -> str:
        return f"{len(self.levels)} levels from {self.levels[0]:g} to {self.levels[-1]:g}"


class OrderedLevels(dist.TorchDistribution):
    r"""A distribution over levels that are ordered: which interval a score with noise lies in.

    .. math:: p(x = l) = F(c_{l + 1} - s) - F(c_l - s), \qquad c_0 = -\infty, c_L = \infty

    where `F` is the logistic function, or that of the standard normal distribution.

    Arguments:
        score: :math:`s`, with shape `(*)`.
        cutpoints: :math:`c_1 < \dots < c_{L-1}`, with shape `(*, L - 1)`.
        levels: What the levels are called, ascending, `(L,)`.
        link: `"logit"` or `"probit"`.
    """

    arg_constraints = {"score": constraints.real, "cutpoints": constraints.real_vector}

    def __init__(
        self,
        score: Tensor,
        cutpoints: Tensor,
        levels: Tensor,
        link: str = "logit",
        validate_args: bool | None = None,
    ) -> None:
        self.score, self.cutpoints, self.levels, self.link = score, cutpoints, levels, link
        shape = torch.broadcast_shapes(score.shape, cutpoints.shape[:-1])
        super().__init__(shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _Among(self.levels)

    @property
    def logits(self) -> Tensor:
        """The log-probabilities of all levels, `(*, L)`."""
        edges = self._edges - self.score[..., None]
        return _log_between(edges[..., :-1], edges[..., 1:], self.link)

    @property
    def mean(self) -> Tensor:
        return self.logits.exp() @ self.levels

    @property
    def _edges(self) -> Tensor:
        """The cutpoints between ends that nothing lies beyond, `(*, L + 1)`."""
        return F.pad(F.pad(self.cutpoints, (1, 0), value=-END), (0, 1), value=END)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "OrderedLevels":
        shape = torch.Size(batch_shape)
        cutpoints = self.cutpoints.expand(shape + self.cutpoints.shape[-1:])
        return OrderedLevels(self.score.expand(shape), cutpoints, self.levels, self.link, False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        index = _nearest(value, self.levels)
        shape = torch.broadcast_shapes(index.shape, self.batch_shape)
        edges, index = self._edges.expand(*shape, -1), index.expand(shape)[..., None]
        low, high = (edges.gather(-1, index + n)[..., 0] - self.score for n in (0, 1))
        return _log_between(low, high, self.link)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        with torch.no_grad():
            law = torch.distributions.Categorical(logits=self.logits)
            return self.levels[law.sample(torch.Size(sample_shape))]


def _nearest(value: Tensor, levels: Tensor) -> Tensor:
    """The number of the level that is nearest to each value."""
    return torch.bucketize(value.contiguous(), (levels[1:] + levels[:-1]) / 2)


def _log_between(low: Tensor, high: Tensor, link: str) -> Tensor:
    """log(F(high) - F(low)), which is accurate in both tails."""
    if link == "logit":
        return F.logsigmoid(high) + F.logsigmoid(-low) + torch.log(-torch.expm1(low - high))
    flip = low + high > 0  # Phi(b) - Phi(a) = Phi(-a) - Phi(-b): the side with small numbers
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    above = torch.special.log_ndtr(high)
    return above + torch.log(-torch.expm1(torch.special.log_ndtr(low) - above))
