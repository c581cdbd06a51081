r"""The evidence of rows with labels, each class a density that its rows in the source hint at.

Each feature of a class has parameters of its own, which are integrated out. With the mean `m` of a
feature among the rows of a class in the source, and :math:`\kappa` for how many rows that counts:

.. math::
    y_n &\sim \mathrm{Categorical}(w), \qquad w \sim \mathrm{Dirichlet}(1) \\
    x_{nd} \mid y_n = c &\sim \mathrm{Bernoulli}(p_{cd}), \qquad
    p_{cd} \sim \mathrm{Beta}(\kappa m_{cd}, \kappa (1 - m_{cd}))

where rows are binary, and else, with the variances `v` in the source,

.. math::
    x_{nd} \mid y_n = c \sim \mathcal{N}(\mu_{cd}, \sigma^2_{cd}), \quad
    \mu_{cd} \sim \mathcal{N}(m_{cd}, \sigma^2_{cd} / \kappa), \quad
    \sigma^2_{cd} \sim \mathrm{InverseGamma}(\kappa / 2, \kappa v_{cd} / 2)

How far the domains are apart is not known: :math:`\kappa` is any of `WEIGHTS`, equally probable.

Shapes: `N` rows, `M` rows of the source, `D` features, `C` classes, `W` weights.

References:
    | Conjugate Bayesian Analysis of the Gaussian Distribution (Murphy, 2007)
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal

WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # kappa

# Of rows with labels, by the number of the weight and the labels.
Density: TypeAlias = Callable[[int, Tensor], Distribution]


class Classes(NamedTuple):
    """Sums over the rows of each class: how many, and of their features and squares."""

    members: Tensor  # (C, 1)
    first: Tensor  # (C, D)
    second: Tensor  # (C, D)


class ClassEvidence(NamedTuple):
    """What rows with labels are worth, in nats.

    Attributes:
        total: The log evidence of rows and labels together.
        rows: The log density of each row and its label at the means of the parameters, `(N,)`: for
            how much rows differ in it.
    """

    total: Tensor
    rows: Tensor


def class_evidence(
    x: Tensor, y: Tensor, source: tuple[Tensor, Tensor], num_classes: int
) -> ClassEvidence:
    """Returns log p(x, y), given the rows and labels of the source.

    Arguments:
        x: Rows, `(N, D)`.
        y: Labels that are proposed for them, `(N,)`.
        source: Rows, `(M, D)`, and their labels, `(M,)`.
        num_classes: The number of classes, `C`.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
        >>> right = class_evidence(x, y, (x, y), 2).total
        >>> wrong = class_evidence(x, 1 - y, (x, y), 2).total
        >>> bool(right > wrong)
        True
    """
    given, before = x.double(), source[0].double()
    together = torch.cat([given, before])
    varies = (together != together[0]).any(0)  # what is the same in all rows tells nothing
    given, before, together = given[:, varies], before[:, varies], together[:, varies]
    binary = bool(((together == 0) | (together == 1)).all())
    own = _sums(given, y, num_classes)
    hint = _sums(before, source[1], num_classes)
    if binary:
        features, density = _bernoulli(own, hint)
    else:
        features, density = _normal(own, hint, together)
    labels, log_shares = _labels(own.members[:, 0], len(y))
    best = int(features.argmax())
    rows = density(best, y).log_prob(given).sum(1) + log_shares[y]
    return ClassEvidence(labels + features.logsumexp(0) - math.log(len(WEIGHTS)), rows)


def _sums(x: Tensor, y: Tensor, num_classes: int) -> Classes:
    member = torch.nn.functional.one_hot(y.long(), num_classes).to(x).T  # (C, N)
    return Classes(member.sum(1, keepdim=True), member @ x, member @ x.square())


def _weights(like: Tensor) -> Tensor:
    return torch.tensor(WEIGHTS, dtype=like.dtype, device=like.device)[:, None, None]  # (W, 1, 1)


def _labels(count: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """The evidence of labels alone, and the logarithms of the mean shares, (C,)."""
    classes = torch.tensor(float(len(count)), dtype=count.dtype, device=count.device)
    total = classes.lgamma() - (classes + num_rows).lgamma() + (count + 1).lgamma().sum()
    return total, ((count + 1) / (classes + num_rows)).log()


def _bernoulli(own: Classes, hint: Classes) -> tuple[Tensor, Density]:
    """The evidence of binary features for each weight, (W,), and the density of rows."""
    mean = (hint.first + 0.5) / (hint.members + 1)  # m, (C, D)
    weight = _weights(mean)
    a, b = weight * mean, weight * (1 - mean)  # (W, C, D)
    ones, zeros = own.first, own.members - own.first
    total = (_log_beta(a + ones, b + zeros) - _log_beta(a, b)).sum((1, 2))
    p = (a + ones) / (weight + own.members)
    return total, lambda best, y: Bernoulli(p[best][y])


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() + b.lgamma() - (a + b).lgamma()


def _normal(own: Classes, hint: Classes, together: Tensor) -> tuple[Tensor, Density]:
    """The same of real features."""
    spread = together.var(0, correction=0)  # keeps variances of few rows from zero, (D,)
    mean = (hint.first + together.mean(0)) / (hint.members + 1)  # m, (C, D)
    scatter = (hint.second - 2 * mean * hint.first + hint.members * mean.square()).clamp(min=0)
    weight = _weights(mean)
    n, alpha = own.members, weight / 2  # (W, 1, 1)
    beta = weight * (scatter + spread) / (hint.members + 1) / 2  # (W, C, D)
    average = own.first / n.clamp(min=1)
    around = (own.second - n * average.square()).clamp(min=0)
    total_weight = weight + n  # (W, C, 1)
    alpha_n = alpha + n / 2
    beta_n = beta + around / 2 + weight * n * (average - mean).square() / total_weight / 2
    total = (
        alpha_n.lgamma()
        - alpha.lgamma()
        + alpha * beta.log()
        - alpha_n * beta_n.log()
        + (weight / total_weight).log() / 2
        - n / 2 * math.log(2 * math.pi)
    ).sum((1, 2))
    loc = (weight * mean + own.first) / total_weight
    scale = (beta_n / alpha_n).sqrt()
    return total, lambda best, y: Normal(loc[best][y], scale[best][y])
