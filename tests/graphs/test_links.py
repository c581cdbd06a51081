"""Held-out edges, and the models of edges: positions and autoencoders."""

import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn.functional import softplus

from guides import GraphNormal
from ppl_models import (
    VGAE,
    FeaturePrior,
    InnerProduct,
    LatentPositions,
    Nearness,
    balanced,
    elbo,
    fit,
    hold_out,
    log_evidence,
    predict,
    read_graph,
)
from ppl_models.nn import GraphNetwork

PAIRS = torch.triu_indices(6, 6, offset=1).T.contiguous()
EDGES = (PAIRS.sum(1) % 3 == 0).double()


def graph_vae(num_latents=2, **settings):
    torch.manual_seed(0)
    x = torch.randn(6, 3).double()
    index = read_graph(PAIRS[EDGES == 1]).edge_index
    encoder = GraphNetwork(3, 2 * num_latents, num_hidden=4)
    guide = GraphNormal(x, index, num_latents, encoder)
    return VGAE(6, num_latents, **settings).double(), guide.double()


def test_pairs_held_out_are_missing_edges_and_others_alike():
    whole = read_graph(nx.gnm_random_graph(30, 100, seed=0))
    links = hold_out(whole, valid=0.05, test=0.1, seed=3)
    assert [len(part[0]) for part in (links.valid, links.test)] == [10, 20]
    assert links.test[1].tolist() == [1.0] * 10 + [0.0] * 10
    parts = [links.train, links.valid, links.test]
    seen = torch.cat([part[0] for part in parts]).sort(1).values
    assert len(seen.unique(dim=0)) == len(seen) == 30 * 29 // 2
    true = {tuple(edge) for edge in whole.edges.tolist()}
    for pairs, edges in parts:
        held = {tuple(sorted(pair)) for pair in pairs[edges == 1].tolist()}
        assert held <= true
        assert not {tuple(sorted(pair)) for pair in pairs[edges == 0].tolist()} & true
    assert links.graph.edges.tolist() == links.train[0][links.train[1] == 1].tolist()
    again = hold_out(whole, seed=3)
    assert torch.equal(again.test[0], links.test[0])
    assert not torch.equal(hold_out(whole, seed=4).test[0], links.test[0])


def test_shares_that_cannot_be_held_out_are_refused():
    few = read_graph([(0, 1), (0, 2), (1, 2), (2, 3)])
    with pytest.raises(ValueError, match="expected shares of 4 edges that leave some"):
        hold_out(few, valid=0.5, test=0.5)
    with pytest.raises(ValueError, match="expected at least 3 pairs without an edge, got 2"):
        hold_out(few, valid=0.25, test=0.5)


@pytest.mark.parametrize("prior", [False, True])
def test_minibatches_of_pairs_have_the_loss_of_all(prior):
    """Each pair counts once for all that it stands for, and the latents count once."""
    model, guide = graph_vae()
    if prior:
        model.prior = FeaturePrior(guide.x, 2, nn.Linear(3, 4).double())
    objective = elbo(model, guide)

    def loss(which):
        torch.manual_seed(1)  # the same latents
        return objective.loss(PAIRS[which], EDGES[which], size=15)

    torch.manual_seed(1)
    whole = objective.loss(PAIRS, EDGES)
    parts = torch.arange(15).split(5)
    torch.testing.assert_close(torch.stack([loss(part) for part in parts]).mean(), whole)


def test_the_loss_is_the_bound_by_hand():
    """Each pair once, and the divergence of a normal in closed form, on average."""
    model, guide = graph_vae(decoder=InnerProduct(-1.0, 0.5))
    objective = elbo(model, guide)
    q = guide.posterior().base_dist
    divergence = (0.5 * (q.loc**2 + q.scale**2 - 1) - q.scale.log()).sum()
    values, by_hand = [], []
    with torch.no_grad():
        for seed in range(100):
            torch.manual_seed(seed)
            values.append(15 * objective.loss(PAIRS, EDGES))
            torch.manual_seed(seed)
            z = q.sample()
            logits = -1.0 + 0.5 * z @ z.T
            nll = sum(
                softplus(logits[i, j]) - a * logits[i, j]
                for (i, j), a in zip(PAIRS.tolist(), EDGES, strict=True)
            )
            by_hand.append(nll + divergence)
    difference = torch.stack(values) - torch.stack(by_hand)
    assert difference.mean().abs() < 4 * difference.std() / math.sqrt(100)
    assert difference.std() < 5


@pytest.mark.parametrize("decoder", [InnerProduct(0.3, 0.7), Nearness(0.3, 0.7)])
def test_the_bound_of_two_nodes_is_below_quadrature(decoder):
    """One pair, one latent each: the evidence is an integral over a plane."""
    torch.manual_seed(0)
    pair, edge = torch.tensor([[0, 1]]), torch.ones(1).double()
    model = VGAE(2, 1, decoder=decoder).double()
    x, index = torch.randn(2, 3).double(), torch.tensor([[0, 1], [1, 0]])
    guide = GraphNormal(x, index, 1, GraphNetwork(3, 2, num_hidden=4)).double()
    grid, weight = np.polynomial.hermite_e.hermegauss(60)
    z = torch.tensor(grid)[:, None]
    one, other = (z[list(k)] for k in zip(*itertools.product(range(60), repeat=2), strict=True))
    weights = torch.tensor(np.outer(weight, weight).ravel() / (2 * np.pi))
    with torch.no_grad():
        exact = (weights * decoder(one, other).sigmoid()).sum().log().item()
    evidence = log_evidence(model, guide, pair, edge, num_samples=20000, seed=0)
    assert evidence.kind == "lower bound"
    assert evidence.value.item() == pytest.approx(exact, abs=4 * evidence.monte_carlo_error)
    objective = elbo(model, guide)
    with torch.no_grad():
        bounds = torch.stack([-objective.loss(pair, edge) for _ in range(500)])
    assert bounds.mean().item() < exact


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")
@pytest.mark.parametrize("similarity", ["distance", "inner product"])
def test_positions_of_two_cliques_tell_them_apart(similarity):
    pairs, edges = read_graph(nx.barbell_graph(6, 0)).pairs()
    model = LatentPositions(12, 2, similarity)
    guide = AutoNormal(model, init_scale=0.1)
    fit(elbo(model, guide), (pairs, edges), steps=200, lr=0.05, seed=1, progress=False)
    evidence = log_evidence(model, guide, pairs, edges, num_samples=200, seed=0)
    share = edges.mean().item()
    alike = share * math.log(share) + (1 - share) * math.log(1 - share)
    assert evidence.kind == "lower bound"
    assert evidence.num_rows == 66
    drawn = predict(model, guide, pairs, num_samples=200)["predictions"]["edges"].values
    chances = torch.tensor(drawn).float().mean((0, 1))
    hits = -torch.nn.functional.binary_cross_entropy(chances.clamp(0.01, 0.99), edges).item()
    assert hits > alike + 0.05


def test_what_does_not_fit_is_refused():
    model, guide = graph_vae()
    wrong = PAIRS.clone()
    wrong[0, 1] = 6
    with pytest.raises(ValueError, match="expected nodes 0 to 5"):
        fit(elbo(model, guide), (wrong, EDGES), steps=1, progress=False)
    model.decoder = nn.CosineSimilarity(dim=0)
    with pytest.raises(ValueError, match="expected its decoder to give a logit for each"):
        model(PAIRS)
    with pytest.raises(ValueError, match="similarity: expected 'distance' or 'inner product'"):
        LatentPositions(6, 2, "cosine")
    guide.num_latents = 3
    with pytest.raises(ValueError, match="expected its encoder to give a mean and a log-scale"):
        guide.posterior()


def test_batches_with_all_edges_have_the_loss_of_all():
    model, guide = graph_vae()
    objective = elbo(model, guide)
    loader = balanced(PAIRS, EDGES, num_others=3)
    batches = list(loader)
    assert len(batches) == 4  # ten pairs have no edge
    assert all(edges.sum() == EDGES.sum() for _, edges, _ in batches)

    def loss(*batch):
        torch.manual_seed(1)  # the same latents
        return objective.loss(*batch, size=15)

    torch.testing.assert_close(loss(PAIRS, EDGES, torch.ones(15).double()), loss(PAIRS, EDGES))
    # Each other pair is in one batch, whose others stand for all ten: weigh by how many they are.
    shares = [(edges == 0).sum() / 10 for _, edges, _ in batches]
    mean = sum(s * loss(*batch) for s, batch in zip(shares, batches, strict=True))
    torch.testing.assert_close(mean, loss(PAIRS, EDGES))
    assert torch.equal(torch.cat([c for *_, c in batches]).sum(), torch.tensor(60.0).double())


def test_batches_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="and some of both, got 0 edges of 15"):
        balanced(PAIRS, torch.zeros(15), 3)


def test_a_run_on_batches_with_all_edges_goes_on_bit_for_bit(tmp_path):
    ends = []
    for parts in ((8,), (3, 8)):
        for steps in parts:
            model, guide = graph_vae()
            options = {"seed": 0, "checkpoint": tmp_path / f"{len(parts)}", "resume": True}
            data = balanced(PAIRS, EDGES, 3)
            run = fit(elbo(model, guide), data, steps=steps, progress=False, **options)
        ends.append(run.history["loss"])
    assert ends[0] == ends[1]
