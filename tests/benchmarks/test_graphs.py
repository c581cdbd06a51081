"""What the benchmark of links prints: losses of pairs held out, and a guide whose means stay."""

import networkx as nx
import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal

from benchmarks.quality.graphs import Scales, nats
from guides import GraphNormal
from ppl_models import VGAE, elbo, fit, hold_out, read_graph


def test_one_chance_for_all_pairs_loses_as_much_on_those_held_out():
    parts = hold_out(read_graph(nx.gnm_random_graph(40, 100, seed=0)), 0.05, 0.2, seed=1)
    edges = parts.train[1].double()
    each = -Bernoulli(edges.mean()).log_prob(edges).sum() / edges.sum()
    chance = edges.mean().expand(len(parts.test[0]))
    assert nats(chance, parts) == pytest.approx(each.item())


def test_means_that_were_found_stay_while_scales_are_fitted():
    pairs, edges = read_graph(nx.barbell_graph(4, 0)).pairs()
    found = Independent(Normal(torch.randn(8, 2), 0.1 + torch.rand(8, 2)), 1)
    loc, scale = found.mean.clone(), found.stddev.clone()
    x, index = torch.zeros(8, 1), torch.zeros(2, 0, dtype=torch.int64)
    guide = GraphNormal(x, index, 2, Scales(found))
    torch.testing.assert_close(guide.posterior().stddev, scale)
    fit(elbo(VGAE(8, 2), guide), (pairs, edges), steps=5, lr=0.1, seed=0, progress=False)
    assert torch.equal(guide.posterior().mean, loc)
    assert (guide.posterior().stddev - scale).abs().min() > 0.01
