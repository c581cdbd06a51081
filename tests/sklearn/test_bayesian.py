"""The Bayesian mixture is scikit-learn's where the priors are, and says what it is where not."""

import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn.mixture
import torch
from scipy.special import gammaln
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning

from ppl_models import log_evidence
from ppl_models.mixtures.mean_field import ascend
from ppl_models.sklearn import BayesianGaussianMixture

KINDS = ["full", "diag", "spherical"]
TYPES = ["dirichlet_process", "dirichlet_distribution"]
IRIS, _ = load_iris(return_X_y=True)
START = np.eye(4)[np.arange(150) % 4]

every_kind = pytest.mark.parametrize("kind", KINDS)
both_types = pytest.mark.parametrize("weights", TYPES)


class Theirs(sklearn.mixture.BayesianGaussianMixture):
    """From a start that is given."""

    def _initialize_parameters(self, X, random_state, xp=None):
        self._initialize(X, START)


class Ours(BayesianGaussianMixture):
    """From a start that is given."""

    def __init__(self, start, **settings):
        super().__init__(**settings)
        self.start = start

    def _ascent(self, prior, x, weight, resumed):
        return ascend(prior, x, torch.from_numpy(self.start), self.max_iter + 1, -1.0, weight)


def both(**settings):
    settings = {"n_components": 4, "weight_concentration_prior_type": TYPES[1]} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer = Theirs(reg_covar=0.0, tol=0.0, **settings).fit(IRIS)
        return Ours(START, **settings).fit(IRIS), peer


@pytest.mark.parametrize("steps", [3, 1000])
@pytest.mark.parametrize(
    "priors",
    [
        {},
        {"mean_prior": [5.0, 3.0, 4.0, 1.0], "mean_precision_prior": 0.3},
        {"covariance_prior": np.diag([1.0, 2.0, 3.0, 4.0]), "degrees_of_freedom_prior": 7.5},
        {"weight_concentration_prior": 3.0},
    ],
)
def test_the_same_priors_have_the_same_posterior(priors, steps):
    ours, peer = both(max_iter=steps, **priors)
    order = np.argsort(-peer.weights_)
    close = {"rtol": 1e-6, "atol": 1e-7}
    for name in ("weights_", "means_", "covariances_", "precisions_", "degrees_of_freedom_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(peer, name)[order], **close)
    for name in ("mean_precision_", "weight_concentration_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(peer, name)[order], **close)
    for name in ("mean_prior_", "covariance_prior_", "degrees_of_freedom_prior_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(peer, name))
    np.testing.assert_allclose(
        ours.predict_proba(IRIS), peer.predict_proba(IRIS)[:, order], atol=1e-6
    )
    steps = min(ours.n_iter_, peer.n_iter_)
    missing = np.subtract(ours.lower_bounds_[:steps], peer.lower_bounds_[:steps])
    np.testing.assert_allclose(missing, constants(ours), rtol=1e-9)


def constants(ours):
    """What scikit-learn's bound lacks, of priors and rows: it does not change by a step."""
    features, count, nu = 4, 4, ours.degrees_of_freedom_prior_
    alpha, kappa = ours.weight_concentration_prior_, ours.mean_precision_prior_
    of_dirichlet = count * gammaln(alpha) - gammaln(count * alpha)
    gammas = gammaln((nu - np.arange(features)) / 2).sum()
    log_det = np.linalg.slogdet(ours.covariance_prior_)[1]
    of_wishart = nu * features / 2 * np.log(2) + gammas - nu / 2 * log_det
    of_normal = -features / 2 * np.log(kappa)
    rows = len(IRIS) * features / 2 * np.log(2 * np.pi)
    return -of_dirichlet - count * (of_wishart + of_normal) - rows


@every_kind
@both_types
def test_the_same_responsibilities_have_the_same_covariances(kind, weights):
    """So far diagonals and spheres agree, too, and all but the last weight of a process."""
    ours, peer = both(covariance_type=kind, weight_concentration_prior_type=weights, max_iter=0)
    order = np.argsort(-START.sum(0), kind="stable")
    for name in ("means_", "covariances_", "mean_precision_", "degrees_of_freedom_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(peer, name)[order], rtol=1e-9)
    ratio = peer.weights_[:3] / ours.weights_[:3]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


@every_kind
@both_types
def test_priors(kind, weights):
    x = np.random.RandomState(0).rand(10, 2)
    priors = {"full": np.cov(x.T, bias=1) + 10 * np.eye(2), "diag": x.var(0) + 3, "spherical": 0.3}
    known = {"full": np.cov(x.T), "diag": x.var(0, ddof=1), "spherical": x.var(0, ddof=1).mean()}
    settings = {"covariance_type": kind, "weight_concentration_prior_type": weights}
    given = BayesianGaussianMixture(**settings, covariance_prior=priors[kind]).fit(x)
    np.testing.assert_allclose(given.covariance_prior_, priors[kind])
    fitted = BayesianGaussianMixture(**settings).fit(x)
    np.testing.assert_allclose(fitted.covariance_prior_, known[kind])
    assert fitted.degrees_of_freedom_prior_ == 2
    assert fitted.mean_precision_prior_ == 1


@every_kind
def test_one_component_is_exact(kind):
    """Its bound is the evidence, and the density of a new row that of all beside those fitted."""
    mixture = BayesianGaussianMixture(covariance_type=kind).fit(IRIS)
    prior, x, new = mixture.model_.prior, torch.from_numpy(IRIS), torch.tensor([[5.5, 3, 4, 1.0]])

    def evidence(rows):
        return prior.log_joint(rows, torch.ones(len(rows), 1).double()).item()

    assert mixture.lower_bound_ == pytest.approx(evidence(x), abs=1e-8)
    more = evidence(torch.cat([x, new.double()]))
    found = mixture.score_samples(new.double().numpy())
    np.testing.assert_allclose(found, more - evidence(x), atol=1e-8)
    weighted = log_evidence(mixture.model_, MeanField(mixture), x, num_samples=50, seed=0)
    assert weighted.value.item() == pytest.approx(mixture.lower_bound_, abs=1e-6)


class MeanField(torch.nn.Module):
    """The mean field as a guide."""

    def __init__(self, mixture):
        super().__init__()
        self.mixture = mixture

    def forward(self, x, size=None):
        self.mixture.model_.sample_shared(self.mixture.posterior_)


@pytest.mark.filterwarnings("ignore:log_evidence. 400 draws have weights of infinite variance")
@every_kind
@both_types
def test_the_bound_is_one_of_the_evidence(kind, weights):
    """Weighted draws of the mean field have more, and their mean logarithm the bound itself."""
    settings = {"covariance_type": kind, "weight_concentration_prior_type": weights}
    mixture = BayesianGaussianMixture(n_components=2, **settings, random_state=0).fit(IRIS)
    settings = {"num_samples": 400, "seed": 0}
    x = torch.from_numpy(IRIS)
    found = log_evidence(mixture.model_, MeanField(mixture), x, **settings)
    assert mixture.lower_bound_ < found.value.item() < mixture.lower_bound_ + 1


@every_kind
@both_types
def test_the_density_of_new_rows_integrates_to_one(kind, weights):
    x = IRIS[:, 2:]
    settings = {"covariance_type": kind, "weight_concentration_prior_type": weights}
    mixture = BayesianGaussianMixture(n_components=3, **settings, random_state=0).fit(x)
    edges = np.linspace(-25, 35, 1501)
    middle = (edges[1:] + edges[:-1]) / 2
    grid = np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2)
    shares = np.exp(mixture.score_samples(grid)) * (edges[1] - edges[0]) ** 2
    assert shares.sum() == pytest.approx(1, abs=2e-3)
    rows, z = mixture.sample(100_000)
    for k in range(2):
        np.testing.assert_allclose(rows[z == k].mean(0), mixture.means_[k], atol=0.02)
    inside = (rows < [3.0, 1.0]).all(1).mean()
    below = (grid < [3.0, 1.0]).all(1)
    assert inside == pytest.approx(shares[below].sum(), abs=0.01)


@every_kind
@both_types
def test_weights_are_rows_so_many_times(kind, weights):
    times = np.random.RandomState(0).randint(0, 4, len(IRIS))
    settings = {"covariance_type": kind, "weight_concentration_prior_type": weights}
    settings |= {"n_components": 4, "max_iter": 100}
    one = Ours(START[times > 0], **settings).fit(IRIS, sample_weight=times)
    other = Ours(START.repeat(times, 0), **settings).fit(IRIS.repeat(times, 0))
    assert one.lower_bound_ == pytest.approx(other.lower_bound_, abs=1e-6)
    for name in ("covariance_prior_", "means_", "covariances_", "weights_"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6)
    twice = Ours(START, **settings).fit(IRIS, sample_weight=2 * np.ones(150))
    assert twice.lower_bound_ < Ours(START, **settings).fit(IRIS).lower_bound_ - 50


@every_kind
@pytest.mark.parametrize("start", ["kmeans", "random", "k-means++", "random_from_data"])
def test_more_starts_never_end_lower(kind, start):
    for seed in range(3):
        settings = {"n_components": 5, "init_params": start, "random_state": seed, "max_iter": 30}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            one, ten = (
                BayesianGaussianMixture(**settings, covariance_type=kind, n_init=n).fit(IRIS)
                for n in (1, 10)
            )
        assert ten.lower_bound_ >= one.lower_bound_


@every_kind
def test_ends_are_no_worse_than_scikit_learns(kind):
    """By our bound, of the same prior: theirs goes on from its end to the nearest of ours."""
    settings = {"covariance_type": kind, "weight_concentration_prior_type": TYPES[1]}
    settings |= {"n_components": 6, "random_state": 0, "max_iter": 500}
    ours = BayesianGaussianMixture(**settings).fit(IRIS)
    peer = sklearn.mixture.BayesianGaussianMixture(**settings, n_init=5).fit(IRIS)
    start = torch.from_numpy(peer.predict_proba(IRIS))
    assert (
        ours.lower_bound_ >= ascend(ours.model_.prior, torch.from_numpy(IRIS), start).bound - 0.01
    )


def test_a_warm_start_goes_on():
    settings = {"n_components": 4, "random_state": 0, "init_params": "random", "tol": 1e-6}
    mixture = BayesianGaussianMixture(**settings, max_iter=1, warm_start=True)
    bounds = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(1000):
            bounds.append(mixture.fit(IRIS).lower_bound_)
            if mixture.converged_:
                break
    assert mixture.converged_
    assert (np.diff(bounds) >= -1e-9).all()
    whole = BayesianGaussianMixture(**settings, max_iter=1000).fit(IRIS)
    assert bounds[-1] == pytest.approx(whole.lower_bound_, abs=1e-3)
    with pytest.raises(ValueError, match="warm_start: expected the n_components"):
        mixture.set_params(n_components=3).fit(IRIS)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_steps_of_a_start(steps):
    settings = {"n_components": 4, "init_params": "random", "tol": 0.0, "random_state": 0}
    mixture = BayesianGaussianMixture(**settings, max_iter=steps).fit(IRIS)
    assert mixture.n_iter_ == len(mixture.lower_bounds_) == steps
    more = BayesianGaussianMixture(**settings, max_iter=steps + 1).fit(IRIS)
    assert more.lower_bounds_[:steps] == mixture.lower_bounds_


def test_data_frames_and_what_is_told():
    frame = pd.DataFrame(IRIS, columns=list("abcd"))
    mixture = BayesianGaussianMixture(n_components=3, random_state=0).fit(frame)
    assert list(mixture.feature_names_in_) == list("abcd")
    assert mixture.predict(frame).shape == (150,)
    assert mixture.lower_bound_ == mixture.lower_bounds_[-1]
    assert len(mixture.lower_bounds_) == mixture.n_iter_
    a, b = mixture.weight_concentration_
    assert a.shape == b.shape == (3,)
    assert b[-1] == 0
    assert mixture.weights_.sum() == pytest.approx(1)
    with pytest.warns(ConvergenceWarning, match="not converged to tol=1e-09 in max_iter=1 steps"):
        BayesianGaussianMixture(n_components=3, max_iter=1, tol=1e-9, random_state=0).fit(IRIS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"covariance_type": "tied"}, "covariance_type: expected one of 'full', 'diag'"),
        ({"reg_covar": 1e-6}, "reg_covar: expected 0, .* got 1e-06. Try covariance_prior"),
        ({"weight_concentration_prior_type": "stick-breaking"}, "weight_concentration_prior_type"),
        ({"weight_concentration_prior": 0.0}, "weight_concentration_prior: expected"),
        ({"mean_precision_prior": -1.0}, "mean_precision_prior: expected"),
        ({"mean_prior": [1.0]}, r"mean_prior: expected finite numbers with shape \(4,\)"),
        ({"degrees_of_freedom_prior": 3.0}, "degrees_of_freedom_prior: expected a number above 3"),
        ({"covariance_prior": 1.0}, r"covariance_prior: expected finite numbers with shape \(4, 4"),
        ({"covariance_prior": -np.eye(4)}, "expected a symmetric, positive-definite"),
        (
            {"covariance_prior": np.zeros(4), "covariance_type": "diag"},
            "expected positive variance",
        ),
        ({"init_params": "means"}, "init_params: expected one of"),
        ({"n_init": 0}, "n_init: expected a positive"),
        ({"max_iter": -1}, "max_iter"),
        ({"tol": -1.0}, "tol: expected"),
        ({"n_components": 151}, "rows"),
        ({"n_components": 0}, "n_components: expected a positive"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BayesianGaussianMixture(**settings).fit(IRIS)


@every_kind
def test_columns_that_say_nothing(kind):
    """A prior of the rows has no variance there; with one that is given they are taken."""
    x = np.column_stack([IRIS, np.ones(150)])
    mixture = BayesianGaussianMixture(covariance_type=kind, n_components=2, random_state=0)
    if kind == "spherical":
        mixture.fit(x)
    else:
        with pytest.raises(
            ValueError, match=r"covariance_prior: expected .* some columns are constant"
        ):
            mixture.fit(x)
    given = {"full": np.eye(5), "diag": np.ones(5), "spherical": 1.0}[kind]
    assert np.isfinite(mixture.set_params(covariance_prior=given).fit(x).lower_bound_)


def test_labels_of_rows_that_are_apart():
    x = np.concatenate([IRIS[:50], IRIS[50:] + 10])
    labels = BayesianGaussianMixture(n_components=4, random_state=0).fit_predict(x)
    assert len(set(labels[:50])) == 1
    assert not set(labels[:50]) & set(labels[50:])
