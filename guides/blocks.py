r"""The mean-field posterior of the blocks of a graph.

.. math::
    q(b, \rho, \theta) = \prod_i \mathrm{Categorical}(b_i \mid q_i) \prod_{r \le s} q(\rho_{rs})
    \prod_i \mathrm{Gamma}(\theta_i \mid c_i, d_i)

Shapes: `P` pairs, `N` nodes, `K` blocks, `M = K (K + 1) / 2`.
"""

from typing import Any, Protocol

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_models.prompt.lines import in_a_line


class BlockModel(Protocol):
    """A stochastic block model, with a mean-field posterior in closed form."""

    degree_corrected: bool

    def mean_field(
        self, pairs: Tensor, edges: Tensor, restarts: int = 20, seed: int = 0
    ) -> Any: ...


class BlockPosterior(nn.Module):
    r"""The mean-field posterior of a `StochasticBlockModel`, found by coordinate ascent.

    It starts at the best, so that there is nothing to fit. A prior that is learned is left in the
    model. One labeling stands for all :math:`K!` that differ in the names of blocks: where blocks
    are well apart, its bound lacks :math:`\log K!` nats of all pairs.

    Arguments:
        model: The model.
        pairs: Pairs of nodes, `(P, 2)`.
        edges: Whether there are edges, `(P,)`.
        restarts: The number of starts, of which the best is kept.
        seed: Of the starts.

    Example:
        >>> import torch
        >>> from ppl_models import StochasticBlockModel
        >>> pairs, edges = torch.tensor([[0, 1], [0, 2], [1, 2]]), torch.tensor([1.0, 0.0, 0.0])
        >>> guide = BlockPosterior(StochasticBlockModel(3, 2), pairs, edges)
        >>> guide.labels.shape
        torch.Size([3, 2])
    """

    __repr__ = in_a_line

    def __init__(
        self, model: BlockModel, pairs: Tensor, edges: Tensor, restarts: int = 20, seed: int = 0
    ) -> None:
        super().__init__()
        found = model.mean_field(pairs, edges, restarts, seed)
        self.density_law = dist.Gamma if model.degree_corrected else dist.Beta
        self.degree_corrected = model.degree_corrected
        self.logits = nn.Parameter(found.labels.clamp(min=1e-30).log())  # (N, K)
        self.log_density = nn.Parameter(found.density.log())  # (M, 2)
        if model.degree_corrected:
            self.log_propensity = nn.Parameter(found.propensity.log())  # (N, 2)

    def forward(self, pairs: Tensor, edges: Tensor | None = None, size: int | None = None) -> None:
        """Draws the blocks of all nodes and what they share, whatever `pairs` and `edges`."""
        pyro.sample("b", dist.Categorical(logits=self.logits).to_event(1))
        with pyro.plate("block_pair", len(self.log_density), dim=-1):
            pyro.sample("density", self.density_law(*self.log_density.exp().unbind(-1)))
        if self.degree_corrected:
            with pyro.plate("node", len(self.logits), dim=-1):
                pyro.sample("propensity", dist.Gamma(*self.log_propensity.exp().unbind(-1)))

    @property
    def labels(self) -> Tensor:
        """Returns the probability of each block for each node, `(N, K)`."""
        return self.logits.softmax(-1)
