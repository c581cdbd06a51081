r"""Minibatches of pairs for graphs with few edges: all edges in each, and some of the other pairs.

.. math::
    \sum_{(i, j)} \ell_{ij} \approx \sum_{\text{edges}} \ell_{ij}
    + \frac{P_0}{B_0} \sum_{\text{others of the batch}} \ell_{ij}

on average exactly, each of the :math:`P_0` other pairs being in one batch of each epoch. In batches
of pairs chosen alike there are hardly any edges, and another number of them each time.

Shapes: `P` pairs, `B` pairs of a batch.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ppl_models.checks import check_count


def balanced(pairs: Tensor, edges: Tensor, num_others: int) -> DataLoader:
    """Returns batches `(pairs, edges, counts)`, for `fit`; `counts` is for how many each stands.

    Arguments:
        pairs: All pairs of nodes that are known, `(P, 2)`.
        edges: Whether there are edges, `(P,)`.
        num_others: The number of pairs without an edge in a batch.

    Raises:
        ValueError: If there are no edges, or nothing else.

    Example:
        >>> from ppl_models import read_graph
        >>> for pairs, edges, counts in balanced(*read_graph([(0, 1), (2, 3)]).pairs(), 2):
        ...     print(edges.sum(), counts.sum())
        tensor(2.) tensor(6.)
        tensor(2.) tensor(6.)
    """
    check_count(num_others=num_others)
    if len(edges) != len(pairs) or not 0 < int((edges == 1).sum()) < len(edges):
        raise ValueError(
            f"balanced: expected an edge or none for each of {len(pairs)} pairs, and some of both, "
            f"got {int((edges == 1).sum())} edges of {len(edges)}."
        )
    rows = _Pairs(pairs, edges)
    return DataLoader(rows, batch_sampler=_EdgesInEach(edges, num_others), collate_fn=tuple)


class _Pairs(Dataset):
    """Pairs, many at once."""

    def __init__(self, pairs: Tensor, edges: Tensor) -> None:
        self.pairs, self.edges = pairs, edges
        self.num_others = int((edges == 0).sum())

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        edges = self.edges[which]
        others = edges == 0
        counts = torch.where(others, self.num_others / others.sum(), 1.0)
        return self.pairs[which], edges, counts


class _EdgesInEach(Sampler):
    """Which pairs a batch holds: those with an edge, and a part of the others."""

    def __init__(self, edges: Tensor, num_others: int) -> None:
        self.there, self.others = (edges == 1).nonzero()[:, 0], (edges == 0).nonzero()[:, 0]
        self.num_others = num_others

    def __len__(self) -> int:
        return -(-len(self.others) // self.num_others)

    def __iter__(self) -> Iterator[Tensor]:
        seed = int(torch.empty((), dtype=torch.int64).random_())  # as the samplers of torch do
        order = torch.randperm(len(self.others), generator=torch.Generator().manual_seed(seed))
        for part in self.others[order].chunk(len(self)):
            yield torch.cat([self.there, part])
