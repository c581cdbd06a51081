"""Labels of nodes by a graph network."""

import networkx as nx
import pytest
import torch

from ppl_models import NodeClassifier, elbo, fit, log_evidence, read_graph
from ppl_models.nn import GraphNetwork


def two_cliques(hops=None):
    graph = read_graph(nx.barbell_graph(6, 0))
    torch.manual_seed(0)
    network = GraphNetwork(12, 2, num_hidden=8, dropout=0.2, hops=hops)
    return NodeClassifier(torch.eye(12), graph.edge_index, 2, network)


@pytest.mark.parametrize("hops", [None, 3])
def test_two_labels_are_enough_for_two_cliques(hops):
    model, truth = two_cliques(hops), (torch.arange(12) >= 6).long()
    known = torch.tensor([2, 9])
    fit(elbo(model), (known, truth[known]), steps=150, lr=0.02, seed=0, progress=False)
    assert torch.equal(model.predict(torch.arange(12)), truth)
    evidence = log_evidence(model, None, torch.arange(12), truth)
    assert evidence.kind == "exact"
    logits = model.network(model.x, model.edge_index)
    by_hand = logits.log_softmax(1).gather(1, truth[:, None])[:, 0]
    torch.testing.assert_close(evidence.value, by_hand.double(), atol=1e-6, rtol=1e-6)


def test_a_node_sees_its_neighbours():
    model = two_cliques()
    model.eval()  # without dropout
    before = model.conditional(torch.tensor([0, 11])).logits
    model.x[1] += 1.0  # a neighbour of node 0, far from node 11
    after = model.conditional(torch.tensor([0, 11])).logits
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1], after[1])


def test_what_does_not_fit_is_refused():
    model = two_cliques()
    with pytest.raises(ValueError, match="nodes: expected labels that are whole numbers from 0"):
        model(torch.tensor([0, 12]))
    with pytest.raises(ValueError, match="expected labels that are whole numbers from 0 to 1"):
        fit(elbo(model), (torch.tensor([0]), torch.tensor([2])), steps=1, progress=False)
    with pytest.raises(ValueError, match="expected nodes 0 to 2, got 2 edge"):
        NodeClassifier(torch.eye(3), torch.tensor([[0, 3], [3, 0]]), 2, model.network)
    with pytest.raises(ValueError, match=r"logits of shape \(12, 3\), got \(12, 2\)"):
        NodeClassifier(model.x, model.edge_index, 3, model.network)(torch.tensor([0]))
