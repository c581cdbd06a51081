r"""What the output of a decoder means: callables from output to a distribution over a row.

A likelihood says how many outputs a feature needs (`num_outputs`) and maps outputs of shape
`(B, D * num_outputs)` to a distribution over rows of shape `(B, D)`, with one event dimension. The
outputs of a feature lie beside one another, those of the first feature first.
Any callable with these two things is a likelihood.

Shapes: `B` rows, `D` features, `L` levels, `K` components.
"""

from typing import Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_at_least, check_count
from ppl_models.levels import Levels, LogisticLevels


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
