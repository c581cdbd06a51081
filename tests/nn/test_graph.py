"""Graph networks: the convolutions of torch_geometric, with weights of edges made once."""

import networkx as nx
import torch
from torch import nn
from torch_geometric.nn import APPNP, GCNConv

from ppl_models import read_graph
from ppl_models.nn import GraphNetwork, drop_features

INDEX = read_graph(nx.gnm_random_graph(9, 14, seed=2)).edge_index


def test_convolutions_are_those_of_torch_geometric():
    ours, x = GraphNetwork(4, 3, num_hidden=5), torch.randn(9, 4)
    first, second = GCNConv(4, 5), GCNConv(5, 3)
    first.load_state_dict(ours.first.state_dict())
    second.load_state_dict(ours.second.state_dict())
    torch.testing.assert_close(ours(x, INDEX), second(first(x, INDEX).relu(), INDEX))


def test_what_is_passed_on_is_that_of_torch_geometric():
    ours, x = GraphNetwork(4, 3, num_hidden=5, hops=4), torch.randn(9, 4)
    outputs = ours.second(ours.first(x).relu())
    torch.testing.assert_close(ours(x, INDEX), APPNP(4, alpha=0.1)(outputs, INDEX))


def test_sparse_features_are_features():
    x = torch.randn(9, 4).relu()
    for hops in (None, 2):
        network = GraphNetwork(4, 3, num_hidden=5, hops=hops).eval()
        torch.testing.assert_close(network(x.to_sparse(), INDEX), network(x, INDEX))


def test_features_are_dropped_for_all_nodes_alike():
    x, dropout = torch.ones(6, 40), nn.Dropout(0.5)
    torch.manual_seed(0)
    dense = drop_features(x, dropout)
    torch.manual_seed(0)
    torch.testing.assert_close(drop_features(x.to_sparse(), dropout).to_dense(), dense)
    assert (dense == dense[0]).all()
    assert set(dense.unique().tolist()) == {0.0, 2.0}
