r"""What is integrated out: the probabilities of labels, and the densities between blocks.

.. math::
    p(b) = \int \mathrm{Dirichlet}(\pi \mid 1, \ldots, 1) \prod_i \pi_{b_i} \, d\pi
    = \frac{\Gamma(K) \prod_r n_r!}{\Gamma(N + K)}

where :math:`n_r` nodes have label `r`, and

.. math::
    p(A \mid b) = \prod_{r \le s}
    \frac{\mathrm{B}(e_{rs} + \alpha_{rs}, n_{rs} - e_{rs} + \beta_{rs})}
    {\mathrm{B}(\alpha_{rs}, \beta_{rs})}

where :math:`n_{rs}` of the pairs are between blocks `r` and `s`, and :math:`e_{rs}` of these edges.

Shapes: `P` pairs, `N` nodes, `K` blocks, `M` pairs of blocks.
"""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

MOST = 2**22  # labelings that are enumerated


class Labelings(dist.TorchDistribution):
    r"""A uniform prior of the sizes of blocks, and of who is in which, given these.

    Arguments:
        num_nodes: `N`.
        num_blocks: `K`.
        like: A tensor of the precision of densities, where they are.
        batch_shape: How many of them.

    Example:
        >>> prior = Labelings(num_nodes=2, num_blocks=2, like=torch.ones(1))
        >>> prior.log_prob(torch.tensor([[0, 0], [0, 1]])).exp()
        tensor([0.3333, 0.1667])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_enumerate_support = True

    def __init__(
        self, num_nodes: int, num_blocks: int, like: Tensor, batch_shape: Any = ()
    ) -> None:
        self.num_nodes, self.num_blocks, self.like = num_nodes, num_blocks, like
        super().__init__(torch.Size(batch_shape), torch.Size((num_nodes,)), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.num_blocks - 1), 1)

    def expand(self, batch_shape: Any, _instance: object = None) -> "Labelings":
        return Labelings(self.num_nodes, self.num_blocks, self.like, batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        ones = self.like.new_ones(*shape, self.num_blocks)
        weights = torch.distributions.Dirichlet(ones).sample()
        return dist.Categorical(weights).sample((self.num_nodes,)).movedim(0, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        blocks = torch.arange(self.num_blocks, device=value.device)
        members = (value[..., None] == blocks).to(self.like.dtype).sum(-2)  # n, (*, K)
        constant = math.lgamma(self.num_blocks) - math.lgamma(self.num_nodes + self.num_blocks)
        return torch.lgamma(members + 1).sum(-1) + constant

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All labelings, `(K^N, ..., N)`."""
        count = self.num_blocks**self.num_nodes
        if count > MOST:
            raise ValueError(
                f"Labelings: expected a graph that is small enough to sum over all labels, got "
                f"{self.num_blocks} ** {self.num_nodes} labelings, and {MOST} are the most. Try "
                f"the model itself, with a guide, BlockPosterior(model, pairs, edges)."
            )
        powers = self.num_blocks ** torch.arange(self.num_nodes, device=self.like.device)
        number = torch.arange(count, device=self.like.device)
        values = number[:, None] // powers % self.num_blocks  # (K^N, N)
        values = values.reshape(count, *[1] * len(self.batch_shape), self.num_nodes)
        return values.expand(count, *self.batch_shape, -1) if expand else values


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
