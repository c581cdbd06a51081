r"""What the output of a decoder means: callables from output to a distribution over a row.

A likelihood says how many outputs a feature needs (`num_outputs`) and maps outputs of shape
`(B, D * num_outputs)` to a distribution over rows of shape `(B, D)`, with one event dimension. The
outputs of a feature lie beside one another, those of the first feature first.
Any callable with these two things is a likelihood.

Shapes: `B` rows, `D` features, `L` levels, `K` components, `*` in front.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_models.checks import check_at_least, check_choice, check_count
from ppl_models.levels import Levels, LogisticLevels, OrderedLevels
from ppl_models.prompt.lines import in_a_line

__all__ = [
    "Bernoulli",
    "Categorical",
    "Likelihood",
    "LogisticMixture",
    "Multinomial",
    "Normal",
    "Ordered",
    "Poisson",
]


def __dir__() -> list[str]:
    return __all__


@runtime_checkable
class Likelihood(Protocol):
    """A callable from decoder outputs to a distribution over a row.

    Example:
        >>> class Laplace:
        ...     num_outputs = 1  # of the decoder, for each feature
        ...     def __call__(self, outputs):
        ...         return dist.Laplace(outputs, 1.0).to_event(1)
        >>> isinstance(Laplace(), Likelihood), Laplace()(torch.zeros(3, 5)).batch_shape
        (True, torch.Size([3]))
    """

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
            f"num_components), Ordered(levels), Poisson(), Multinomial(), or your own callable "
            f"with an attribute num_outputs; got {got}."
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

    __repr__ = in_a_line

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

    __repr__ = in_a_line

    def __init__(self, own_scale: bool = False, min_scale: float = 1e-3) -> None:
        super().__init__()
        self.num_outputs = 2 if own_scale else 1
        self.own_scale, self.min_scale = own_scale, min_scale
        if not own_scale:
            self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """Returns the distribution of rows, from outputs `(B, D * num_outputs)`."""
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

    __repr__ = in_a_line

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

    __repr__ = in_a_line

    def __init__(self, levels: int, num_components: int) -> None:
        check_at_least(2, levels=levels)
        check_count(num_components=num_components)
        self.levels, self.num_components = levels, num_components
        self.num_outputs = 3 * num_components

    def __call__(self, outputs: Tensor) -> dist.TorchDistribution:
        logits, loc, log_scale = outputs.unflatten(-1, (-1, 3, self.num_outputs // 3)).unbind(-2)
        return LogisticLevels(logits, loc, log_scale, self.levels).to_event(1)  # from (B, D, K)


class Ordered(nn.Module):
    r"""Ordered levels, such as stars: which interval the output lies in, with noise.

    .. math::
        p(x_d = l) = F(c_{l+1} - o_d) - F(c_l - o_d), \qquad
        c_{l+1} = c_l + e^{\gamma_l + g_{dl}}

    The cutpoints `c` are learned. With `own_cutpoints` each pixel of each row has gaps of its own,
    of which `L - 2` further outputs `g` are the logarithms, less those of all: some people hardly
    ever give half stars.

    Arguments:
        levels: What the levels are called, ascending numbers, `(L,)`.
        link: `"logit"`, or `"probit"` for normal noise.
        own_cutpoints: Whether there are outputs for the gaps.

    Raises:
        ValueError: If levels do not ascend, there are fewer than 3, or `link` is neither.

    References:
        | Regression Models for Ordinal Data (McCullagh, 1980)
        | https://doi.org/10.1111/j.2517-6161.1980.tb01109.x
        | OrdRec: An Ordinal Model for Predicting Personalized Item Rating Distributions
        | (Koren & Sill, 2011), https://doi.org/10.1145/2043932.2043956

    Example:
        >>> likelihood = Ordered(levels=[1, 2, 3])
        >>> every = torch.tensor([[1.0], [2.0], [3.0]])
        >>> likelihood(torch.zeros(1, 1)).log_prob(every).exp().detach()
        tensor([0.3775, 0.2449, 0.3775])
    """

    levels: Tensor

    __repr__ = in_a_line

    def __init__(
        self,
        levels: Sequence[float] | Tensor,
        link: str = "logit",
        own_cutpoints: bool = False,
    ) -> None:
        super().__init__()
        check_choice("link", link, ["logit", "probit"])
        numbers = torch.as_tensor(levels, dtype=torch.get_default_dtype())
        if numbers.ndim != 1 or len(numbers) < 3 or not (numbers.diff() > 0).all():
            raise ValueError(
                f"levels: expected 3 ascending numbers or more, got {numbers.tolist()}. "
                f"Try y.unique()."
            )
        self.register_buffer("levels", numbers)
        self.link, self.own_cutpoints = link, own_cutpoints
        gaps = len(numbers) - 2
        self.num_outputs = 1 + gaps if own_cutpoints else 1
        self.first = nn.Parameter(torch.tensor(-gaps / 2.0))  # c_1
        self.log_gaps = nn.Parameter(torch.zeros(gaps))  # gamma, (L - 2,)

    def start(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Puts the cutpoints halfway between levels, as if these were numbers with normal noise.

        Arguments:
            mean: The level at which the output is 0.
            scale: The standard deviation of the noise, in levels.

        Returns:
            By how much the output rises for each unit of the levels.
        """
        noise = math.pi / math.sqrt(3) if self.link == "logit" else 1.0
        edges = (self.levels[1:] + self.levels[:-1]) / 2
        with torch.no_grad():
            self.first.copy_((edges[0] - mean) * noise / scale)
            self.log_gaps.copy_((edges.diff() * noise / scale).log())
        return noise / scale

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """Returns the distribution of rows, from outputs `(B, D * num_outputs)`."""
        outputs = outputs.unflatten(-1, (-1, self.num_outputs))  # (B, D, num_outputs)
        own = outputs[..., 1:] if self.num_outputs > 1 else 0.0
        gaps = (self.log_gaps + own).exp()
        cutpoints = self.first + nn.functional.pad(gaps.cumsum(-1), (1, 0))
        return OrderedLevels(outputs[..., 0], cutpoints, self.levels, self.link).to_event(1)


class Poisson:
    r"""Counts; the outputs are the logarithms of the rates, :math:`x_d \sim Poisson(e^{o_d})`.

    Example:
        >>> Poisson()(torch.zeros(2, 3)).log_prob(torch.zeros(2, 3))
        tensor([-3., -3.])
    """

    num_outputs = 1

    __repr__ = in_a_line

    def __call__(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(outputs.exp()).to_event(1)


class Multinomial:
    r"""Counts that share a total, such as what a user picked; the outputs are logits of features.

    .. math::
        p(x \mid n) = \frac{n!}{\prod_d x_d!} \prod_d \mathrm{softmax}(o)_d^{x_d},
        \qquad n = \sum_d x_d

    A row is scored given its own total, which has no density: a user who picked much weighs more.

    Arguments:
        total_count: The total of fresh rows, `n`.

    References:
        | Variational Autoencoders for Collaborative Filtering (Liang et al., 2018)
        | https://arxiv.org/abs/1802.05814

    Example:
        >>> Multinomial()(torch.zeros(1, 4)).log_prob(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
        tensor([-2.0794])
    """

    num_outputs = 1

    __repr__ = in_a_line

    def __init__(self, total_count: int = 1) -> None:
        check_count(total_count=total_count)
        self.total_count = total_count

    def __call__(self, outputs: Tensor) -> dist.TorchDistribution:
        return SharedTotal(outputs, self.total_count)


class SharedTotal(dist.TorchDistribution):
    """A multinomial distribution whose total is that of the row it scores.

    Arguments:
        logits: The unnormalised log-probabilities of the features, `(*, D)`.
        total_count: The total of rows that it draws.
    """

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, logits: Tensor, total_count: int = 1, validate_args: bool | None = None
    ) -> None:
        self.logits, self.total_count = logits.log_softmax(-1), total_count
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.total_count * self.logits.exp()

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "SharedTotal":
        shape = torch.Size(batch_shape) + self.event_shape
        return SharedTotal(self.logits.expand(shape), self.total_count, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        orders = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
        return orders + (value * self.logits).sum(-1)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        law = torch.distributions.Categorical(logits=self.logits)
        picks = law.sample(torch.Size((self.total_count, *sample_shape))).movedim(0, -1)
        rows = torch.zeros_like(self.logits).expand(*picks.shape[:-1], -1)
        return rows.scatter_add(-1, picks, torch.ones_like(picks).to(rows))
