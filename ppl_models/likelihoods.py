r"""What the output of a decoder means: callables from output to a distribution over a row.

A likelihood says how many outputs a feature needs (`num_outputs`) and maps outputs of shape
`(B, D * num_outputs)` to a distribution over rows of shape `(B, D)`, with one event dimension.
Any callable with these two things is a likelihood.

Shapes: `B` rows, `D` features, `L` levels.
"""

from typing import Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints


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
            f"Normal(own_scale=True), Categorical(levels), or your own callable with an "
            f"attribute num_outputs; got {got}."
        )


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
        mean, log_scale = outputs.chunk(2, dim=-1)  # (B, D) each
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
        if levels < 2:
            raise ValueError(f"Categorical: expected 2 levels or more, got {levels}.")
        self.num_outputs = self.levels = levels

    def __call__(self, outputs: Tensor) -> dist.TorchDistribution:
        logits = outputs.unflatten(-1, (-1, self.levels))  # (B, D, L)
        return Levels(logits).to_event(1)


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
