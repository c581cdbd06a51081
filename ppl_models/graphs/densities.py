r"""Densities between blocks, in closed form: their posterior given soft labels, and their prior.

.. math::
    \mathbb{E} \log p(A_{ij} \mid b_i = r, b_j = s) = A_{ij} \, u_{rs} + \theta_i \theta_j v_{rs}

up to a constant, with, for a Beta distribution of :math:`\alpha, \beta` (and :math:`\theta = 1`),
:math:`u = \psi(\alpha) - \psi(\beta)` and :math:`v = \psi(\beta) - \psi(\alpha + \beta)`, and for a
Gamma distribution :math:`u = \psi(\alpha) - \log \beta` and :math:`v = -\alpha / \beta`.

Shapes: `R` restarts, `K` blocks.

References:
    | Estimating a Dirichlet Distribution (Minka, 2000), for the fixed points
    | https://tminka.github.io/papers/dirichlet/
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Beta, Gamma, kl_divergence

ROUNDS = 5  # of the fixed points of a prior, for each step
RANGE = (1e-3, 1e4)  # of its parameters: of one density alone the best has no width


class Densities(NamedTuple):
    """What is the same at each step of the ascent.

    Attributes:
        law: `Beta`, or `Gamma` where degrees are corrected for.
        prior: Its parameters within blocks and between them, `(R, 2, 2)` or `(1, 2, 2)`.
        learned: Whether the prior is.
        is_within: `(K, K)`.
    """

    law: type[Beta] | type[Gamma]
    prior: Tensor
    learned: bool
    is_within: Tensor

    def spread(self) -> Tensor:
        """The prior of each density, `(R, K, K, 2)`."""
        within, between = self.prior.unbind(1)  # (R, 2) each
        return torch.where(self.is_within[..., None], within[:, None, None], between[:, None, None])

    def given(self, there: Tensor, every: Tensor) -> Tensor:
        """The posterior, `(R, K, K, 2)`, given how many edges and pairs are expected."""
        rest = every - there if self.law is Beta else every
        return self.spread() + torch.stack([there, rest], -1)

    def expected(self, posterior: Tensor) -> tuple[Tensor, Tensor]:
        """`u` and `v`, `(R, K, K)` each."""
        a, b = posterior.unbind(-1)
        on, off = self.statistics(posterior)
        return (on - off, off) if self.law is Beta else (on, -a / b)

    def statistics(self, posterior: Tensor) -> tuple[Tensor, Tensor]:
        """Expectations of what the density of the law is linear in, `(R, K, K)` each."""
        a, b = posterior.unbind(-1)
        if self.law is Gamma:
            return a.digamma() - b.log(), a / b
        return a.digamma() - (a + b).digamma(), b.digamma() - (a + b).digamma()

    def divergence(self, posterior: Tensor) -> Tensor:
        """Of the posterior from the prior, the sum over pairs of blocks, `(R,)`."""
        found, prior = (self.law(x[..., 0], x[..., 1]) for x in (posterior, self.spread()))
        return kl_divergence(found, prior).triu().sum((1, 2))

    def relearned(self, posterior: Tensor) -> "Densities":
        """With a prior that is better for this posterior, if it is learned."""
        if not self.learned:
            return self
        upper = torch.ones_like(self.is_within).triu()
        groups = [upper & self.is_within, upper & ~self.is_within]
        first, second = self.statistics(posterior)
        prior = self.prior.expand(len(posterior), -1, -1).clone()
        for group, cells in enumerate(groups):
            if cells.any():
                means = first[:, cells].mean(1), second[:, cells].mean(1)
                prior[:, group] = self._fixed_point(prior[:, group], *means)
        return self._replace(prior=prior)

    def _fixed_point(self, prior: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Steps that raise the expected log-density of a prior `(R, 2)`, given mean statistics."""
        a, b = prior.unbind(-1)
        for _ in range(ROUNDS):
            if self.law is Gamma:
                b = (a / second).clamp(*RANGE)
                a = inverse_digamma(b.log() + first).clamp(*RANGE)
            else:
                both = (a + b).digamma()
                a = inverse_digamma(both + first).clamp(*RANGE)
                b = inverse_digamma(both + second).clamp(*RANGE)
        return torch.stack([a, b], -1)


def densities(num_blocks: int, prior: Tensor, degree_corrected: bool, learned: bool) -> Densities:
    """The densities between blocks, with a prior `(2, 2)` within them and between."""
    law = Gamma if degree_corrected else Beta
    same = torch.eye(num_blocks, dtype=torch.bool, device=prior.device)
    return Densities(law, prior[None], learned, same)


def inverse_digamma(y: Tensor) -> Tensor:
    """Returns the `x` of which `y` is the digamma function.

    Example:
        >>> inverse_digamma(torch.tensor([0.1, 3.0]).digamma())
        tensor([0.1000, 3.0000])
    """
    x = torch.where(y >= -2.22, y.exp() + 0.5, -1 / (y + 0.5772156649))
    for _ in range(5):
        x = x - (x.digamma() - y) / torch.polygamma(1, x)
    return x
