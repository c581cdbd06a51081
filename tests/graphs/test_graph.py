"""Graphs as they are read, and what they cannot hold."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from ppl_models import read_graph
from ppl_models.graphs.pairs import pair_ids

EDGES = [[0, 1], [0, 2], [1, 3]]
BOTH_WAYS = torch.tensor([*EDGES, *[edge[::-1] for edge in EDGES]]).T


def test_one_graph_read_from_all_that_hold_it():
    sources = [
        EDGES,
        [(1, 0), (2, 0), (3, 1)],
        np.array(EDGES),
        torch.tensor(EDGES),
        [(0, 1, 0.5), (2, 0, 3), (1, 3, 1)],
        [(0, 1, 0.5), (2, 0, 3), (1, 3, 1), (0, 1, 0.5)],
        BOTH_WAYS.T,
        nx.Graph(EDGES),
        Data(edge_index=BOTH_WAYS, num_nodes=4),
        Data(edge_index=BOTH_WAYS, edge_attr=torch.tensor([1.0, 2, 3, 1, 2, 3]), num_nodes=4),
    ]
    for source in sources:
        graph = read_graph(source)
        assert graph.num_nodes == 4
        assert sorted(graph.edges.tolist()) == EDGES
        assert sorted(graph.edge_index.T.tolist()) == sorted(BOTH_WAYS.T.tolist())


def test_names_of_nodes_are_kept():
    graph = read_graph(nx.Graph([("b", "a"), ("a", "c")]))
    assert graph.names == ["b", "a", "c"]
    assert graph.edges.tolist() == [[0, 1], [1, 2]]


def test_nodes_without_edges_are_nodes():
    assert read_graph(EDGES, num_nodes=7).num_nodes == 7
    lonely = nx.Graph(EDGES)
    lonely.add_node(9)
    assert read_graph(lonely).num_nodes == 5


def test_pairs_are_all_pairs_but_those_missing():
    pairs, edges = read_graph(EDGES).pairs()
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert edges.tolist() == [1, 1, 0, 0, 1, 0]
    torch.testing.assert_close(pair_ids(pairs.flip(1), 4), torch.arange(6))
    pairs, edges = read_graph(EDGES).pairs(missing=torch.tensor([[3, 1], [2, 1]]))
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [2, 3]]
    assert edges.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            [(0, 1), (1, -2)],
            r"expected nodes 0 to 1, got 1 edge\(s\) with others, such as \(1, -2\)",
        ),
        ([(0, 1), (1, 3)], r"expected nodes 0 to 2, got 1 edge\(s\) with others, such as \(1, 3\)"),
        (Data(edge_index=BOTH_WAYS, num_nodes=3), "expected nodes 0 to 2"),
        ([(0, 1), (2, 2)], r"got 1 of a node with itself \(node 2\)"),
        (nx.Graph([(0, 1), (2, 2)]), "there is no place for loops"),
        (Data(edge_index=torch.tensor([[0, 1, 2], [1, 0, 2]]), num_nodes=3), "no place for loops"),
        (nx.DiGraph([(0, 1), (1, 2)]), "expected an undirected graph, got a DiGraph"),
        (Data(edge_index=torch.tensor(EDGES).T, num_nodes=4), r"edge \(0, 1\) and none \(1, 0\)"),
        ([(0, 1), (1, 0), (1, 2)], r"edge \(1, 2\) and none \(2, 1\)"),
        ([(0, 1, 2.0), (1, 2, 1.0), (0, 1, 3.0)], r"edge \(0, 1\) .* with different weights"),
        ([(0, 1, 2.0), (1, 0, 3.0)], "with different weights"),
        (
            Data(edge_index=BOTH_WAYS, edge_weight=torch.arange(6.0), num_nodes=4),
            "with different weights",
        ),
        (nx.MultiGraph([(0, 1, {"weight": 1}), (0, 1, {"weight": 2})]), "with different weights"),
        ([(0, 1, float("nan"))], "finite weights"),
        ([(0.5, 1.0)], "the numbers of nodes"),
        ([], "with shape"),
        (nx.Graph([]), "at least one edge"),
        (BOTH_WAYS, "Try edge_index.T"),
    ],
)
def test_what_it_cannot_hold_is_refused(source, message):
    few = isinstance(source, list) and (1, 3) in source
    with pytest.raises(ValueError, match=message):
        read_graph(source, num_nodes=3 if few else None)


def test_what_is_no_graph_is_refused():
    with pytest.raises(TypeError, match="expected a Data of torch_geometric, a graph of networkx"):
        read_graph("karate")
    with pytest.raises(ValueError, match="num_nodes: expected the 4 of the graph, got 9"):
        read_graph(nx.Graph(EDGES), num_nodes=9)
    with pytest.raises(ValueError, match="expected nodes 0 to 3"):
        read_graph(EDGES).pairs(missing=torch.tensor([[0, 4]]))
