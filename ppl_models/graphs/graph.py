"""A graph as it is read: simple and undirected, its edges `(i, j)` with `i < j` once each.

Read from a `torch_geometric.data.Data`, a graph of networkx, or a list of edges. What such a graph
cannot hold is refused: loops, an order of the ends of an edge, two weights of one edge.

Shapes: `N` nodes, `E` edges, `P` pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.graphs.pairs import check_pairs, pair_ids
from ppl_models.prompt.lines import in_a_line

MOST_PAIRS = 2**28  # 5 GiB of them


@dataclass(frozen=True)
class Graph:
    """A simple undirected graph. `read_graph` makes one.

    Attributes:
        num_nodes: The number of nodes, `N`.
        edges: The edges, `i < j`, sorted, `(E, 2)`.
        names: What the nodes were called where the graph was read; default: their numbers.

    Example:
        >>> graph = Graph(3, torch.tensor([[0, 1], [1, 2]]), names=["Ann", "Bo", "Cy"])
        >>> graph.num_nodes, graph.edge_index.tolist()
        (3, [[0, 1, 1, 2], [1, 2, 0, 1]])
    """

    num_nodes: int
    edges: Tensor
    names: Sequence[Any]

    __repr__ = in_a_line

    @property
    def edge_index(self) -> Tensor:
        """Each edge in both directions, as the layers of torch_geometric take them, `(2, 2 E)`."""
        return torch.cat([self.edges, self.edges.flip(1)]).T.contiguous()

    def pairs(self, missing: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns all pairs of nodes, `(P, 2)`, and whether there is an edge, `(P,)` of 0. and 1.

        Arguments:
            missing: Pairs to leave out, as it is not known whether there is an edge, `(M, 2)`.

        Raises:
            ValueError: If what is missing are no pairs of nodes, or the pairs are too many to list.

        Example:
            >>> graph = read_graph([(0, 1), (1, 2)])
            >>> graph.pairs(missing=torch.tensor([[2, 0]]))
            (tensor([[0, 1],
                    [1, 2]]), tensor([1., 1.]))
        """
        count = self.num_nodes * (self.num_nodes - 1) // 2
        if count > MOST_PAIRS:
            raise ValueError(
                f"Graph.pairs: expected at most {MOST_PAIRS} pairs of nodes, got {count} of "
                f"{self.num_nodes} nodes. Try a part of the graph."
            )
        pairs = torch.triu_indices(self.num_nodes, self.num_nodes, offset=1).T  # (P, 2)
        edges = torch.zeros(count)
        edges[pair_ids(self.edges, self.num_nodes)] = 1.0
        if missing is not None:
            check_pairs(missing, self.num_nodes, "Graph.pairs: missing")
            known = torch.ones(count, dtype=torch.bool)
            known[pair_ids(missing, self.num_nodes)] = False
            pairs, edges = pairs[known], edges[known]
        return pairs.contiguous(), edges


def read_graph(source: Any, num_nodes: int | None = None) -> Graph:
    """Returns a graph of torch_geometric, of networkx, or of a list of edges.

    Weights are not kept: an edge is there or not.

    Arguments:
        source: A `Data` with `edge_index`, which holds each edge in both directions; a graph of
            networkx; or edges `(i, j)` or `(i, j, weight)` as a list, an array or a tensor, in
            either order, or in both.
        num_nodes: The number of nodes, `N`. Default: what the graph says, or, of a list, the
            largest number and one.

    Raises:
        TypeError: If it is none of these.
        ValueError: If there are no edges, a node is not one of `num_nodes`, an edge joins a node to
            itself, the graph is directed, or an edge has two weights.

    Example:
        >>> graph = read_graph([(2, 1), (0, 1), (1, 0), (1, 2)])
        >>> graph.num_nodes, graph.edges.tolist()
        (3, [[0, 1], [1, 2]])
    """
    if num_nodes is not None:
        check_count(num_nodes=num_nodes)
    if hasattr(source, "edges") and hasattr(source, "is_directed") and hasattr(source, "adj"):
        return _of_networkx(source, num_nodes)
    if hasattr(source, "edge_index"):
        return _of_data(source, num_nodes)
    ends, weights = _of_list(source)
    count = num_nodes or (int(ends.max()) + 1 if len(ends) else 0)
    return _simple(ends, weights, count, range(count))


def _of_networkx(source: Any, num_nodes: int | None) -> Graph:
    if source.is_directed():
        raise ValueError(
            f"read_graph: expected an undirected graph, got a {type(source).__name__}: the order "
            f"of the ends of an edge would be lost. Try graph.to_undirected()."
        )
    names = list(source.nodes)
    if num_nodes not in (None, len(names)):
        raise ValueError(f"num_nodes: expected the {len(names)} of the graph, got {num_nodes}.")
    number = {name: i for i, name in enumerate(names)}
    found = [(number[i], number[j], w) for i, j, w in source.edges(data="weight", default=1.0)]
    ends = torch.tensor([edge[:2] for edge in found], dtype=torch.int64).reshape(-1, 2)
    weights = torch.tensor([float(edge[2]) for edge in found], dtype=torch.float64)
    return _simple(ends, weights, len(names), names)


def _of_data(source: Any, num_nodes: int | None) -> Graph:
    ends = source.edge_index.T.cpu()  # (2 E, 2)
    attributes = getattr(source, "edge_weight", None)
    attributes = source.edge_attr if attributes is None else attributes
    weights = torch.ones(len(ends)) if attributes is None else attributes.cpu()
    count = num_nodes or source.num_nodes
    _check_ends(ends, count)
    _check_two_ways(ends, count, all_of_them=True)
    return _simple(ends, weights, count, range(count))


def _of_list(source: Any) -> tuple[Tensor, Tensor]:
    """The ends of edges, and their weights, which may be in a third column."""
    try:
        table = torch.as_tensor(source)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"read_graph: expected a Data of torch_geometric, a graph of networkx, or edges "
            f"(i, j), got {type(source).__name__}. Try a list of pairs of whole numbers."
        ) from None
    if table.ndim != 2 or table.shape[1] not in (2, 3):
        hint = "edge_index.T" if table.ndim == 2 and len(table) == 2 else "one edge for each row"
        raise ValueError(
            f"read_graph: expected edges (i, j) or (i, j, weight), with shape (E, 2) or (E, 3), "
            f"got {tuple(table.shape)}. Try {hint}."
        )
    ends = table[:, :2].long().cpu()
    if not torch.equal(ends.to(table.dtype), table[:, :2].cpu()):
        raise ValueError(
            "read_graph: expected the numbers of nodes, 0, 1, 2, ..., got others. Try "
            "names.unique(return_inverse=True)[1], which numbers them."
        )
    weights = table[:, 2].cpu() if table.shape[1] == 3 else torch.ones(len(ends))
    if table.shape[1] == 3 and not weights.isfinite().all():
        raise ValueError("read_graph: expected finite weights, got NaN or infinity.")
    if len(ends):
        _check_two_ways(ends, max(1, int(ends.max()) + 1), all_of_them=False)
    return ends, weights


def _simple(ends: Tensor, weights: Tensor, num_nodes: int, names: Sequence[Any]) -> Graph:
    """The graph with each edge once, after checking that this loses nothing but weights."""
    if len(ends) == 0:
        raise ValueError("read_graph: expected at least one edge, got none.")
    _check_ends(ends, num_nodes)
    lower, upper = ends.min(1).values, ends.max(1).values
    number, which = (lower * num_nodes + upper).unique(return_inverse=True)
    weights = weights.reshape(len(ends), -1)
    first = torch.zeros(len(number), weights.shape[1], dtype=weights.dtype)
    first[which] = weights  # any of those of an edge
    if len(other := (weights != first[which]).any(1).nonzero().flatten()):
        i, j = ends[other[0]].tolist()
        raise ValueError(
            f"read_graph: the edge ({i}, {j}) is there more than once, with different weights. "
            f"Expected one weight for each edge. Try the sum or the mean of those of an edge, or "
            f"the edges without their weights."
        )
    return Graph(num_nodes, torch.stack([number // num_nodes, number % num_nodes], 1), names)


def _check_ends(ends: Tensor, num_nodes: int) -> None:
    check_pairs(ends, num_nodes, "read_graph", noun="edge")


def _check_two_ways(ends: Tensor, num_nodes: int, all_of_them: bool) -> None:
    """Raises where some edges have a direction: they are there one way, and others both ways."""
    forth = (ends[:, 0] * num_nodes + ends[:, 1]).unique()
    back = (ends[:, 1] * num_nodes + ends[:, 0]).unique()
    loops = ends[:, 0] == ends[:, 1]
    alone = ~torch.isin(forth, back)
    both = len(forth) - int(alone.sum()) - len(ends[loops].unique(dim=0))
    if alone.any() and (all_of_them or both):
        number = int(forth[alone][0])
        i, j = number // num_nodes, number % num_nodes
        raise ValueError(
            f"read_graph: expected an undirected graph, got a directed one, with an edge "
            f"({i}, {j}) and none ({j}, {i}), while {both} others go both ways: their order would "
            f"be lost. Try torch_geometric.utils.to_undirected(edge_index), or each edge once."
        )
