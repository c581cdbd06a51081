r"""Edges given labels, the densities between blocks integrated out.

.. math::
    p(A \mid b) = \prod_{r \le s}
    \frac{\mathrm{B}(e_{rs} + \alpha_{rs}, n_{rs} - e_{rs} + \beta_{rs})}
    {\mathrm{B}(\alpha_{rs}, \beta_{rs})}

where :math:`n_{rs}` of the pairs are between blocks `r` and `s`, and :math:`e_{rs}` of these edges.

Shapes: `P` pairs, `N` nodes, `M` pairs of blocks.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


class CollapsedEdges(dist.TorchDistribution):
    r"""All edges at once, which the unknown densities make dependent.

    Arguments:
        between: Which pair of blocks each pair of nodes is between, `(*, P)`.
        prior: The Beta prior of each density, `(M, 2)`.

    Example:
        >>> law = CollapsedEdges(torch.tensor([0, 0]), torch.ones(1, 2))
        >>> law.log_prob(torch.tensor([[1.0, 1.0], [1.0, 0.0]])).exp()
        tensor([0.3333, 0.1667])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, between: Tensor, prior: Tensor) -> None:
        self.between, self.prior = between, prior
        super().__init__(between.shape[:-1], between.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: object = None) -> "CollapsedEdges":
        return CollapsedEdges(self.between.expand(*batch_shape, -1), self.prior)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        density = torch.distributions.Beta(self.prior[:, 0], self.prior[:, 1]).sample(
            shape
        )  # (*, M)
        return torch.bernoulli(density.gather(-1, self.between.expand(*shape, -1)))

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.to(self.prior.dtype)
        shape = torch.broadcast_shapes(value.shape, self.between.shape)
        none = self.prior.new_zeros(*shape[:-1], len(self.prior))
        between = self.between.expand(shape)
        there = none.scatter_add(-1, between, value.expand(shape))  # e, (*, M)
        every = none.scatter_add(-1, between, torch.ones_like(value).expand(shape))  # n
        counts = torch.stack([there, every - there], -1)  # (*, M, 2)
        return (_log_beta(counts + self.prior) - _log_beta(self.prior)).sum(-1)


def _log_beta(parameters: Tensor) -> Tensor:
    return torch.lgamma(parameters).sum(-1) - torch.lgamma(parameters.sum(-1))
