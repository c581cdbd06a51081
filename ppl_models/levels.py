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
