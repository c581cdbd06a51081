r"""Stochastic block models: whether two nodes are joined depends on their blocks.

.. math::
    \pi &\sim \mathrm{Dirichlet}(1, \ldots, 1), \qquad b_i \sim \mathrm{Categorical}(\pi) \\
    \rho_{rs} &\sim \mathrm{Beta}(\alpha_{rs}, \beta_{rs}), \qquad
    A_{ij} \mid b \sim \mathrm{Bernoulli}(\rho_{b_i b_j})

and, where nodes of a block may have more edges or fewer (corrected for degrees),

.. math::
    \theta_i \sim \mathrm{Gamma}(1, 1), \qquad
    \rho_{rs} \sim \mathrm{Gamma}(\alpha_{rs}, \beta_{rs}), \qquad
    A_{ij} \mid b \sim \mathrm{Poisson}(\theta_i \theta_j \rho_{b_i b_j})

:math:`\alpha, \beta` are 1 by default, or learned: two numbers for pairs within a block, and two
for those between blocks. All is the same for all :math:`K!` orders of the labels.

Labels are coupled, each with all others: they cannot be enumerated node by node. Those of a small
graph are summed over together, `StochasticBlockModel.collapsed`.

Shapes: `P` pairs, `N` nodes, `K` blocks, `M = K (K + 1) / 2` pairs of blocks.

References:
    | Stochastic Blockmodels: First Steps (Holland et al., 1983)
    | https://doi.org/10.1016/0378-8733(83)90021-7
    | Stochastic Blockmodels and Community Structure in Networks (Karrer & Newman, 2011)
    | https://doi.org/10.1103/PhysRevE.83.016107
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_count
from ppl_models.graphs.ascent import BlockApproximation, ascend
from ppl_models.graphs.collapsed import CollapsedEdges, Labelings
from ppl_models.graphs.densities import densities
from ppl_models.graphs.pairs import check_pairs, dense
from ppl_models.graphs.starts import random_starts, spectral_starts
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line

WHERE = "StochasticBlockModel"


class StochasticBlockModel(nn.Module):
    r"""Blocks of nodes, with latent sites `b`, the label of each node, and `density` of M pairs.

    Corrected for degrees, `propensity` is latent too, one for each node. As a program it takes
    pairs of nodes, and whether there are edges: `model(pairs, edges)`, or `model(pairs)` to draw
    them. Pairs that are left out are missing. `read_graph(graph).pairs()` gives all of them. The
    guide `BlockPosterior` has the mean-field posterior.

    Arguments:
        num_nodes: `N`.
        num_blocks: The most blocks, `K`: some may be left empty.
        degree_corrected: Whether nodes have a propensity to have edges. Edges are then counts.
        learn_prior: Whether the priors of densities are learned, by the greatest evidence bound.

    Example:
        >>> model = StochasticBlockModel(num_nodes=34, num_blocks=2)
        >>> model(torch.tensor([[0, 1], [33, 2]])).shape
        torch.Size([2])
    """

    log_prior: Tensor
    between: Tensor
    diagonal: Tensor
    unit: Tensor

    __repr__ = in_a_line

    def __init__(
        self,
        num_nodes: int,
        num_blocks: int,
        degree_corrected: bool = False,
        learn_prior: bool = False,
    ) -> None:
        super().__init__()
        check_count(num_nodes=num_nodes, num_blocks=num_blocks)
        self.num_nodes, self.num_blocks = num_nodes, num_blocks
        self.degree_corrected, self.learn_prior = degree_corrected, learn_prior
        # log alpha and log beta within blocks and between them, (2, 2)
        log_prior = torch.zeros(2, 2)
        if learn_prior:
            self.log_prior = nn.Parameter(log_prior)
        else:
            self.register_buffer("log_prior", log_prior)
        rows, columns = torch.triu_indices(num_blocks, num_blocks)
        between = torch.zeros(num_blocks, num_blocks, dtype=torch.int64)
        between[rows, columns] = between[columns, rows] = torch.arange(len(rows))
        # The number of a pair of blocks, (K, K), and whether both are the same, (M,).
        self.register_buffer("between", between, persistent=False)
        self.register_buffer("diagonal", rows == columns, persistent=False)
        self.register_buffer("unit", torch.ones(num_nodes), persistent=False)

    @property
    def prior(self) -> Tensor:
        r"""The parameters :math:`\alpha, \beta` of the prior of each density, `(M, 2)`."""
        within, between = self.log_prior.exp()
        return torch.where(self.diagonal[:, None], within, between)

    def forward(
        self, pairs: Tensor, edges: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Scores `edges`, 0. or 1., at `pairs` of nodes, `(B, 2)`, of `size` in all."""
        check_pairs(pairs, self.num_nodes, WHERE)
        labels = pyro.sample("b", self._labelings(), infer={"event_dims": ["node"]})  # (N,)
        law = dist.Gamma if self.degree_corrected else dist.Beta
        with pyro.plate("block_pair", len(self.diagonal), dim=-1):
            density = pyro.sample("density", law(*self.prior.unbind(-1)))  # (M,)
        if self.degree_corrected:
            with pyro.plate("node", self.num_nodes, dim=-1):
                propensity = pyro.sample("propensity", dist.Gamma(self.unit, self.unit))
        with data_plate(pairs, size):
            i, j = pairs.unbind(1)
            rate = density[self.between[labels[i], labels[j]]]  # (P,)
            if self.degree_corrected:
                return pyro.sample(
                    "edges", dist.Poisson(propensity[i] * propensity[j] * rate), obs=edges
                )
            return pyro.sample("edges", dist.Bernoulli(rate), obs=edges)

    def collapsed(
        self, pairs: Tensor, edges: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """The same as a program with labels alone, all of which are enumerated together.

        `log_evidence(model.collapsed, None, pairs, edges)` is exact, of a small graph.

        Raises:
            ValueError: If the model is corrected for degrees, or the labelings are too many.

        Example:
            >>> from ppl_models import log_evidence
            >>> model = StochasticBlockModel(num_nodes=3, num_blocks=2)
            >>> pairs, edges = torch.tensor([[0, 1], [1, 2]]), torch.tensor([1.0, 0.0])
            >>> print(log_evidence(model.collapsed, None, pairs, edges))
            log evidence -1.638 nats of all 2 rows (-0.819 per row), exact, 1.1813 bits/dim
        """
        check_pairs(pairs, self.num_nodes, WHERE)
        infer = {"enumerate": "parallel", "event_dims": ["node"]}
        labels = pyro.sample("b", self._labelings(), infer=infer)
        return pyro.sample("edges", self._collapsed_edges(pairs, labels), obs=edges)

    def log_joint(self, pairs: Tensor, edges: Tensor, labels: Tensor) -> Tensor:
        r"""Returns :math:`\log p(A, b)`, densities and probabilities of labels integrated out.

        Arguments:
            pairs: Pairs of nodes, `(P, 2)`.
            edges: Whether there are edges, `(P,)`.
            labels: The labels of all nodes, `(*, N)`.

        Raises:
            ValueError: If the model is corrected for degrees.
        """
        check_pairs(pairs, self.num_nodes, WHERE)
        law = self._collapsed_edges(pairs, labels)
        return self._labelings().log_prob(labels) + law.log_prob(edges)

    def mean_field(
        self, pairs: Tensor, edges: Tensor, restarts: int = 20, seed: int = 0
    ) -> BlockApproximation:
        r"""Returns the best :math:`q(b) \, q(\rho) \, q(\theta)` that coordinate ascent finds.

        Half of the starts cluster eigenvectors, the others are random. Blocks come by size. Priors
        that are learned are left in the model.

        Arguments:
            pairs: Pairs of nodes, each once, `(P, 2)`.
            edges: Whether there are edges, `(P,)`.
            restarts: The number of starts.
            seed: Of the starts.

        Returns:
            What is found in float64, in the precision of the model.

        Raises:
            ValueError: If edges are not 0 or 1, one for each pair.
        """
        check_count(restarts=restarts)
        check_pairs(pairs, self.num_nodes, WHERE)
        _check_edges(edges, len(pairs))
        joined, known = dense(pairs, edges, self.num_nodes)
        spectral = (restarts + 1) // 2
        starts = torch.cat(
            [
                spectral_starts(joined, self.num_blocks, spectral, seed),
                random_starts(joined, self.num_blocks, restarts - spectral, seed),
            ]
        )
        prior = self.log_prior.detach().exp().double()
        laws = densities(self.num_blocks, prior, self.degree_corrected, self.learn_prior)
        found = ascend(joined, known, starts, laws)
        if self.learn_prior:
            with torch.no_grad():
                self.log_prior.copy_(found.prior.log())
        return BlockApproximation(*(part.to(self.unit.dtype) for part in found))

    def _labelings(self) -> Labelings:
        return Labelings(self.num_nodes, self.num_blocks, self.unit)

    def _collapsed_edges(self, pairs: Tensor, labels: Tensor) -> CollapsedEdges:
        if self.degree_corrected:
            raise ValueError(
                f"{WHERE}: with degree_corrected=True densities and propensities have no closed "
                f"form together. Try degree_corrected=False, or BlockPosterior as a guide."
            )
        i, j = pairs.unbind(1)
        return CollapsedEdges(self.between[labels[..., i], labels[..., j]], self.prior)


def _check_edges(edges: Tensor, num_pairs: int) -> None:
    if edges.shape != (num_pairs,) or not ((edges == 0) | (edges == 1)).all():
        raise ValueError(
            f"{WHERE}: expected 0 or 1 for each of {num_pairs} pairs, got shape "
            f"{tuple(edges.shape)} with values such as {edges.flatten()[:3].tolist()}. "
            f"Try pairs, edges = read_graph(graph).pairs()."
        )
