"""Edges that are held out, to be predicted: some of the edges, and as many pairs without one.

They are missing from what a model is given, both kinds alike: pairs of which it is told that there
is no edge would be those that are to be predicted.

Shapes: `E` edges, `P` pairs, `H` pairs held out.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.graphs.graph import Graph
from ppl_models.graphs.pairs import pair_ids

Pairs = tuple[Tensor, Tensor]  # (H, 2), and whether there is an edge, (H,)


class Links(NamedTuple):
    """A graph of which some pairs are held out.

    Attributes:
        graph: The graph without the edges that are held out.
        train: All other pairs, and whether there is an edge.
        valid: Pairs to choose settings by, half of them edges.
        test: Pairs to be predicted, half of them edges.
    """

    graph: Graph
    train: Pairs
    valid: Pairs
    test: Pairs


def hold_out(graph: Graph, valid: float = 0.05, test: float = 0.1, seed: int = 0) -> Links:
    """Returns a graph of which shares of the edges are held out, and as many other pairs.

    Arguments:
        graph: The whole graph.
        valid: The share of the edges to choose settings by.
        test: The share of the edges to be predicted.
        seed: Of the choice.

    Raises:
        ValueError: If the shares are not such that edges are left, or there are too few pairs
            without an edge.

    Example:
        >>> from ppl_models import read_graph
        >>> links = hold_out(read_graph([(i, i + 1) for i in range(20)]), test=0.2)
        >>> len(links.graph.edges), len(links.train[0]), links.test[1].sum()
        (15, 200, tensor(4.))
    """
    count = len(graph.edges)
    shares = [int(count * valid), int(count * test)]
    if min(valid, test) < 0 or sum(shares) >= count:
        raise ValueError(
            f"hold_out: expected shares of {count} edges that leave some of them, got "
            f"valid={valid}, test={test}."
        )
    generator = torch.Generator().manual_seed(seed)
    edges = graph.edges[torch.randperm(count, generator=generator)]
    others = _without_edge(graph, sum(shares), generator)
    parts, start = [], 0
    for share in shares:
        both = torch.cat([edges[start : start + share], others[start : start + share]])
        parts.append((both, torch.cat([torch.ones(share), torch.zeros(share)])))
        start += share
    left = edges[start:]
    kept = Graph(graph.num_nodes, left[pair_ids(left, graph.num_nodes).argsort()], graph.names)
    missing = torch.cat([part[0] for part in parts])
    return Links(kept, kept.pairs(missing), *parts)


def _without_edge(graph: Graph, count: int, generator: torch.Generator) -> Tensor:
    """Pairs without an edge, by chance."""
    pairs, edges = graph.pairs()
    pairs = pairs[edges == 0]
    if len(pairs) < count:
        raise ValueError(
            f"hold_out: expected at least {count} pairs without an edge, got {len(pairs)}."
        )
    return pairs[torch.randperm(len(pairs), generator=generator)[:count]]
