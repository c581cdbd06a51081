"""Stochastic block models: sums over all labelings, Zachary's numbers, and bounds below them."""

import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.special import betaln, gammaln

from guides import BlockPosterior
from ppl_models import StochasticBlockModel, elbo, from_pyro_svi, log_evidence, predict, read_graph
from ppl_models.graphs.ascent import start, step
from ppl_models.graphs.collapsed import Labelings
from ppl_models.graphs.densities import densities, inverse_digamma
from ppl_models.graphs.pairs import dense
from ppl_models.graphs.starts import random_starts, spectral_starts

HUBS = [0, 1, 2, 32, 33]


@pytest.fixture
def karate():
    """Pairs, edges, and the faction of each node."""
    graph = nx.karate_club_graph()
    pairs, edges = read_graph(graph).pairs()
    club = [graph.nodes[i]["club"] == "Officer" for i in graph]
    return pairs, edges.double(), torch.tensor(club).long()


def ten():
    """A graph of ten nodes, two of whose pairs are missing."""
    graph = nx.gnm_random_graph(10, 18, seed=1)
    pairs, edges = read_graph(graph).pairs(missing=torch.tensor([[3, 1], [0, 9]]))
    return pairs, edges.double()


def by_hand(pairs, edges, labels, num_blocks):
    """log p(A, b) by a loop over pairs of blocks."""
    total, n = 0.0, len(labels)
    for r, s in itertools.combinations_with_replacement(range(num_blocks), 2):
        inside = [k for k, (i, j) in enumerate(pairs) if sorted((labels[i], labels[j])) == [r, s]]
        there = float(edges[inside].sum())
        total += betaln(there + 1, len(inside) - there + 1)
    sizes = np.bincount(labels, minlength=num_blocks)
    return total + gammaln(num_blocks) - gammaln(n + num_blocks) + gammaln(sizes + 1).sum()


def test_zacharys_karate_club(karate):
    pairs, edges, club = karate
    assert (len(pairs), edges.sum()) == (561, 78)
    hubs = torch.zeros(34, dtype=torch.int64)
    hubs[HUBS] = 1
    one = StochasticBlockModel(34, 1).double().log_joint(pairs, edges, torch.zeros_like(hubs))
    two = StochasticBlockModel(34, 2).double().log_joint(pairs, edges, torch.stack([club, hubs]))
    expected = torch.tensor([-229.5101, -231.9583, -202.4151]).double()
    torch.testing.assert_close(torch.stack([one, *two]), expected, atol=1e-4, rtol=0)


def test_the_sum_over_all_labelings_is_the_evidence():
    pairs, edges = ten()
    model = StochasticBlockModel(10, 2).double()
    every = list(itertools.product(range(2), repeat=10))
    by_loop = [by_hand(pairs.tolist(), edges, np.array(b), 2) for b in every]
    torch.testing.assert_close(
        model.log_joint(pairs, edges, torch.tensor(every)), torch.tensor(by_loop)
    )
    evidence = log_evidence(model.collapsed, None, pairs, edges)
    assert evidence.kind == "exact"
    assert evidence.value.item() == pytest.approx(np.logaddexp.reduce(by_loop), abs=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log_evidence. 2000 draws")
@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_the_sum_bounds_every_bound_from_above(num_blocks):
    pairs, edges = ten()
    model = StochasticBlockModel(10, num_blocks).double()
    exact = log_evidence(model.collapsed, None, pairs, edges).value.item()
    found = model.mean_field(pairs, edges, restarts=6)
    guide = BlockPosterior(model, pairs, edges, restarts=6)
    objective = elbo(model, guide)
    draws = [-len(pairs) * objective.loss(pairs, edges).item() for _ in range(200)]
    error = 3 * np.std(draws) / math.sqrt(len(draws))
    weighted = log_evidence(model, guide, pairs, edges, num_samples=2000)
    assert weighted.kind == "lower bound"
    assert found.bound.item() <= np.mean(draws) + error + 1e-9
    assert found.bound.item() <= exact + 1e-9
    assert weighted.value.item() <= exact + 5 * weighted.monte_carlo_error * len(pairs) + 1e-9
    if num_blocks == 1:  # there are no labels to be wrong about
        assert found.bound.item() == pytest.approx(exact, abs=1e-9)
        assert np.array(draws) == pytest.approx(exact, abs=1e-9)  # of any draw


def test_all_outcomes_of_a_small_graph_have_probability_one():
    pairs = torch.triu_indices(3, 3, offset=1).T
    model = StochasticBlockModel(3, 2).double()
    outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).double()
    total = sum(log_evidence(model.collapsed, None, pairs, a).value.exp().item() for a in outcomes)
    assert total == pytest.approx(1.0, abs=1e-12)


def test_labelings_have_probability_one_and_the_moments_of_their_draws():
    prior = Labelings(4, 3, torch.ones(()).double())
    every = prior.enumerate_support()
    assert len(every.unique(dim=0)) == 81
    assert prior.log_prob(every).exp().sum().item() == pytest.approx(1.0)
    draws = prior.sample((20000,))
    same = (draws[:, 0] == draws[:, 1]).double().mean().item()
    assert same == pytest.approx(0.5, abs=0.02)  # 2 / (K + 1)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("degree_corrected", [False, True])
def test_the_bound_rises_at_each_step(karate, degree_corrected, learned):
    pairs, edges, _ = karate
    joined, known = dense(pairs, edges, 34)
    starts = torch.cat([spectral_starts(joined, 3, 2, 0), random_starts(joined, 3, 2, 0)])
    prior = torch.ones(2, 2).double()
    state = start(joined, known, starts, densities(3, prior, degree_corrected, learned))
    bounds = [state.bound]
    for _ in range(15):
        state = step(joined, known, state)
        bounds.append(state.bound)
    assert (torch.stack(bounds).diff(dim=0) > -1e-8).all()
    assert (bounds[-1] > bounds[0] + 1).any()


@pytest.mark.slow
def test_the_bound_is_the_mean_of_the_weights_of_its_program(karate):
    """Corrected for degrees, with a learned prior: the most that has a closed form."""
    pairs, edges, _ = karate
    model = StochasticBlockModel(34, 2, degree_corrected=True, learn_prior=True).double()
    found = model.mean_field(pairs, edges, restarts=4)
    guide = BlockPosterior(model, pairs, edges, restarts=4)
    objective = elbo(model, guide)
    with torch.no_grad():
        losses = torch.stack([-561 * objective.loss(pairs, edges) for _ in range(200)])
    error = losses.std().item() / 200**0.5
    # The program integrates the probabilities of labels out, which costs the bound nothing.
    assert found.bound.item() - 4 * error < losses.mean().item() < found.bound.item() + 1.5


def test_the_plain_model_finds_the_hubs_and_the_corrected_one_the_factions(karate):
    pairs, edges, club = karate
    plain = StochasticBlockModel(34, 2).double().mean_field(pairs, edges).labels.argmax(1)
    assert plain.nonzero().flatten().tolist() == HUBS
    model = StochasticBlockModel(34, 2, degree_corrected=True).double()
    factions = model.mean_field(pairs, edges).labels.argmax(1)
    wrong = int((factions != club).sum())
    assert min(wrong, 34 - wrong) <= 2


def test_a_missing_pair_is_predicted(karate):
    pairs, edges, _ = karate
    held_out = (pairs == torch.tensor([0, 33])).all(1) | (pairs == torch.tensor([15, 20])).all(1)
    model = StochasticBlockModel(34, 2).double()
    guide = BlockPosterior(model, pairs[~held_out], edges[~held_out])
    drawn = predict(model, guide, pairs[held_out], num_samples=400)["predictions"]["edges"]
    chances = drawn.values.mean((0, 1))
    assert chances[0] > 0.5  # two hubs, which are not joined
    assert chances[1] < 0.1


def test_draws_have_the_nodes_as_a_dimension(karate):
    pairs, edges, _ = karate
    model = StochasticBlockModel(34, 2, degree_corrected=True)
    guide = BlockPosterior(model, pairs, edges, restarts=2)
    found = from_pyro_svi(model, guide, pairs, edges.float(), num_samples=5)
    sizes = {name: dict(v.sizes) for name, v in found["posterior"].data_vars.items()}
    assert sizes["b"] == {"chain": 1, "draw": 5, "node": 34}
    assert sizes["propensity"] == {"chain": 1, "draw": 5, "node": 34}
    assert sizes["density"] == {"chain": 1, "draw": 5, "block_pair": 3}
    assert dict(found["log_likelihood"]["edges"].sizes)["data"] == 561


def test_the_inverse_of_the_digamma_function():
    x = torch.logspace(-3, 4, 50).double()
    torch.testing.assert_close(inverse_digamma(x.digamma()), x, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("pairs", "edges", "message"),
    [
        ([[0, 1], [1, 5]], [0.0, 1.0], r"expected nodes 0 to 4, got 1 pair\(s\)"),
        ([[0, 1], [-1, 2]], [0.0, 1.0], "expected nodes 0 to 4"),
        ([[0, 1], [2, 2]], [0.0, 1.0], "there is no place for loops"),
        ([[0, 1], [1, 2]], [0.0, 2.0], "expected 0 or 1 for each of 2 pairs"),
        ([[0, 1], [1, 2]], [0.0], "expected 0 or 1 for each of 2 pairs"),
        ([[0, 1, 2]], [0.0], r"with shape \(P, 2\)"),
    ],
)
def test_bad_rows_are_refused(pairs, edges, message):
    model = StochasticBlockModel(5, 2)
    with pytest.raises(ValueError, match=message):
        BlockPosterior(model, torch.tensor(pairs), torch.tensor(edges))


def test_what_has_no_sum_over_labelings_is_refused(karate):
    pairs, edges, club = karate
    with pytest.raises(ValueError, match=r"expected a graph that is small enough .* 2 \*\* 34"):
        log_evidence(StochasticBlockModel(34, 2).collapsed, None, pairs, edges.float())
    model = StochasticBlockModel(34, 2, degree_corrected=True)
    with pytest.raises(ValueError, match="have no closed form together"):
        model.log_joint(pairs, edges.float(), club)
    with pytest.raises(TypeError, match="as a tensor of whole numbers"):
        StochasticBlockModel(34, 2)(pairs.float())
