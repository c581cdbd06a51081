r"""The evidence of rows with labels, each class a Gaussian that its rows in the source hint at.

Rows are seen through the first principal components `z` of the source, centred. The mean and the
covariance of a class are integrated out: with the mean `m` and the covariance `S` of its rows in
the source, and :math:`\kappa` for how many rows these count,

.. math::
    y_n &\sim \mathrm{Categorical}(w), \qquad w \sim \mathrm{Dirichlet}(1) \\
    z_n \mid y_n = c &\sim \mathcal{N}(\mu_c, \Sigma_c), \qquad
    \mu_c \sim \mathcal{N}(m_c, \Sigma_c / \kappa) \\
    \Sigma_c &\sim \mathrm{InverseWishart}(\kappa + P + 1, \kappa S_c), \qquad
    \mathbb{E}[\Sigma_c] = S_c

How far the domains are apart is not known: :math:`\kappa` is any of `WEIGHTS`, equally probable.
Features that hang together, as pixels do, are not counted as if each told something new: densities
of one feature after the other prefer groups that differ in little else than slant or width.

Shapes: `N` rows, `M` rows of the source, `D` features, `P` components, `C` classes, `W` weights.

References:
    | Conjugate Bayesian Analysis of the Gaussian Distribution (Murphy, 2007), section 9
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

COMPONENTS = 40  # P, at most
WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # kappa
RANK = 1e-9  # of the largest variance: components below it are rounding


class Classes(NamedTuple):
    """Sums over the rows of each class."""

    members: Tensor  # (C, 1, 1)
    first: Tensor  # of components, (C, P, 1)
    second: Tensor  # of their products, (C, P, P)

    def around(self, centre: Tensor) -> Tensor:
        """Sums of products of what is left without a centre, `(C, P, 1)`: `(C, P, P)`."""
        crossed = self.first @ centre.mT
        return self.second - crossed - crossed.mT + self.members * centre @ centre.mT


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
    """Returns log p(z, y), given the rows and labels of the source.

    Arguments:
        x: Rows, `(N, D)`.
        y: Labels that are proposed for them, `(N,)`.
        source: Rows that differ, `(M, D)`, and their labels, `(M,)`.
        num_classes: The number of classes, `C`.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
        >>> right = class_evidence(x, y, (x, y), 2).total
        >>> wrong = class_evidence(x, 1 - y, (x, y), 2).total
        >>> bool(right > wrong)
        True
    """
    before = source[0].double()
    centre = before.mean(0)
    axes, variances = _components(before - centre)
    z = (x.double() - centre) @ axes  # (N, P)
    own = _sums(z, y, num_classes)
    hint = _sums((before - centre) @ axes, source[1], num_classes)
    features, density = _normal(own, hint, variances.diag())
    labels, log_shares = _labels(own.members.flatten(), len(y))
    rows = density.log_prob(z[:, None])  # (N, C)
    chosen = rows.gather(1, y.long()[:, None])[:, 0] + log_shares[y.long()]
    return ClassEvidence(labels + features.logsumexp(0) - math.log(len(WEIGHTS)), chosen)


def _components(centred: Tensor) -> tuple[Tensor, Tensor]:
    """The axes in which rows vary most, `(D, P)`, and their variances, `(P,)`."""
    variances, axes = torch.linalg.eigh(centred.mT @ centred / len(centred))  # from the smallest
    found = int((variances > RANK * variances[-1]).sum())
    kept = slice(-min(found, COMPONENTS), None)
    return axes[:, kept], variances[kept]


def _sums(z: Tensor, y: Tensor, num_classes: int) -> Classes:
    member = torch.nn.functional.one_hot(y.long(), num_classes).to(z)  # (N, C)
    second = torch.einsum("nc,np,nq->cpq", member, z, z)
    return Classes(member.sum(0)[:, None, None], (member.mT @ z)[:, :, None], second)


def _labels(count: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """The evidence of labels alone, and the logarithms of the mean shares, (C,)."""
    classes = torch.tensor(float(len(count)), dtype=count.dtype, device=count.device)
    total = classes.lgamma() - (classes + num_rows).lgamma() + (count + 1).lgamma().sum()
    return total, ((count + 1) / (classes + num_rows)).log()


def _normal(own: Classes, hint: Classes, spread: Tensor) -> tuple[Tensor, MultivariateNormal]:
    """The evidence of the components for each weight, (W,), and the density of each class."""
    # All rows of the source together weigh one: so classes of few rows have a covariance, too.
    prior_mean = hint.first / (hint.members + 1)  # m, (C, P, 1)
    prior = (hint.around(prior_mean) + spread) / (hint.members + 1)  # S, (C, P, P)
    size = len(spread)
    weight = torch.tensor(WEIGHTS, dtype=spread.dtype, device=spread.device)[:, None, None, None]
    weight_n = weight + own.members  # (W, C, 1, 1)
    degrees, degrees_n = weight + size + 1, weight_n + size + 1
    average = own.first / own.members.clamp(min=1)
    off = average - prior_mean
    scale = weight * prior  # (W, C, P, P)
    scale_n = scale + own.around(average) + weight * own.members / weight_n * off @ off.mT
    total = (
        torch.special.multigammaln(degrees_n / 2, size)
        - torch.special.multigammaln(degrees / 2, size)
        + degrees / 2 * scale.logdet()[..., None, None]
        - degrees_n / 2 * scale_n.logdet()[..., None, None]
        + size / 2 * (weight / weight_n).log()
        - own.members * size / 2 * math.log(math.pi)
    ).sum((1, 2, 3))
    best = total.argmax()
    loc = ((weight * prior_mean + own.first) / weight_n)[best, :, :, 0]
    return total, MultivariateNormal(loc, (scale_n / weight_n)[best])  # nu - P - 1 = kappa + n
