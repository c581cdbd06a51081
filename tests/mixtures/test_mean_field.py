"""Coordinate ascent: its bound rises, and ends where scikit-learn's does."""

import itertools
import warnings

import numpy as np
import torch
from sklearn.mixture import BayesianGaussianMixture as Peer

from ppl_models.mixtures.bayesian import BayesianGaussianMixture
from ppl_models.mixtures.mean_field import ascend, best_ascent
from tests.support.mixtures import both_priors, build, clusters, every_kind, one_hot


@both_priors
@every_kind
def test_the_bound_rises_and_stays_below_the_evidence(covariance, weights):
    """The evidence is a sum over all 2^7 ways to place the rows."""
    model, x = build(2, covariance, weights), clusters(rows=7)
    ways = itertools.product([0, 1], repeat=7)
    exact = torch.stack([model.prior.log_joint(x, one_hot(z, 2)) for z in ways]).logsumexp(0)
    start = torch.rand(7, 2).double().softmax(1)
    bounds = [ascend(model.prior, x, start, max_steps=n, tolerance=0).bound for n in range(1, 25)]
    assert (np.diff(bounds) >= -1e-9).all()
    assert bounds[0] < bounds[-1] < exact
    best = ascend(model.prior, x, one_hot([0, 1, 1, 0, 1, 1, 0], 2))
    assert exact - best.bound < 3.5


def test_the_ascent_ends_where_nothing_more_is_to_be_gained():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(60, 2), torch.randn(60, 2) + 2]).double()
    prior, start = BayesianGaussianMixture(2, 2).double().prior, torch.rand(120, 2).double()
    start = start / start.sum(1, keepdim=True)
    limit = ascend(prior, x, start, max_steps=5000, tolerance=0).bound
    assert limit - 1e-4 < ascend(prior, x, start).bound <= limit + 1e-9


def test_the_ascent_is_scikit_learns():
    """The same fixed point from the same start, a Dirichlet over full covariances."""
    model, x = build(3, prior_strength=0.5, prior_df=5.0, concentration=0.25), clusters(0.6)
    start = one_hot(torch.arange(90) % 3, 3)

    class Started(Peer):
        def _initialize_parameters(self, data, random_state, **_):
            self._initialize(data, start.numpy())

    settings = {
        "weight_concentration_prior_type": "dirichlet_distribution",
        "weight_concentration_prior": 0.25,
        "mean_precision_prior": 0.5,
        "mean_prior": model.loc.numpy(),
        "degrees_of_freedom_prior": 5.0,
        "covariance_prior": model.scale[0].numpy(),
    }
    peer = Started(n_components=3, reg_covar=0, tol=0, max_iter=500, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no convergence at tolerance 0
        peer.fit(x.numpy())
    ours = ascend(model.prior, x, start, max_steps=501, tolerance=-1).posterior
    order = np.argsort(-peer.mean_precision_)
    np.testing.assert_allclose(ours.loc, peer.means_[order], atol=1e-7)
    np.testing.assert_allclose(ours.strength, peer.mean_precision_[order], atol=1e-6)
    np.testing.assert_allclose(ours.df, peer.degrees_of_freedom_[order], atol=1e-6)
    psi = peer.covariances_[order] * peer.degrees_of_freedom_[order, None, None]
    np.testing.assert_allclose(ours.scale[:, 0], psi, atol=1e-6)
    count = peer.weight_concentration_[order]
    np.testing.assert_allclose(ours.sticks[:, 0], count[:2], atol=1e-6)
    np.testing.assert_allclose(ours.sticks[:, 1], [count[1:].sum(), count[2]], atol=1e-6)


@both_priors
def test_split_clusters_are_joined_again(weights, monkeypatch):
    """Where every start has two components in each cluster, those are taken out."""
    labels = torch.arange(90) % 6
    monkeypatch.setattr("ppl_models.mixtures.mean_field.kmeans", lambda *_: labels[None])
    x, model = clusters(), BayesianGaussianMixture(2, 7, weights=weights).double()
    split = ascend(model.prior, x, one_hot(labels, 7))
    assert (split.responsibilities.sum(0) > 1).sum() > 3
    rows = model.mean_field(x).strength - 0.01
    torch.testing.assert_close(rows[:3], torch.full((3,), 30.0).double(), atol=0.5, rtol=0)
    assert rows[3:].max() < 0.1


def test_rounding_is_no_gain_for_which_to_go_on(monkeypatch):
    """Without a component that has nothing the bound is the same, but for its last digits."""
    calls = itertools.count()

    def rounded(*arguments, **settings):
        found, number = ascend(*arguments, **settings), next(calls)
        assert number < 50
        return found._replace(bounds=[*found.bounds, found.bound + 1e-12 * number])

    monkeypatch.setattr("ppl_models.mixtures.mean_field.ascend", rounded)
    monkeypatch.setattr("ppl_models.mixtures.mean_field._without_one", lambda start: [start])
    for tolerance in (1e-7, 0.0):
        best_ascent(build(2).prior, clusters(), tolerance=tolerance)
