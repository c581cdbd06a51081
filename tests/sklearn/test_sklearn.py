"""The adapters are scikit-learn's estimators, and the models underneath are ours."""

import math
import warnings

import numpy as np
import pytest
import sklearn.decomposition
import sklearn.mixture
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import ppl_models.sklearn
from ppl_models import log_evidence
from ppl_models.sklearn import (
    BayesianGaussianMixture,
    FactorAnalysis,
    GaussianMixture,
    ProbabilisticPCA,
)

COVARIANCES = ["full", "tied", "diag", "spherical"]
ESTIMATORS = [
    GaussianMixture(n_components=2, tol=1e-2, random_state=0),
    GaussianMixture(missing="marginalise"),
    FactorAnalysis(),
    FactorAnalysis(missing="marginalise", tol=1e-2),
    ProbabilisticPCA(),
]
IRIS, _ = load_iris(return_X_y=True)
WINE, _ = load_wine(return_X_y=True)
WINE = StandardScaler().fit_transform(WINE)


@pytest.mark.filterwarnings(
    # The checks allow five steps, and a few rows.
    "ignore::sklearn.exceptions.ConvergenceWarning",
    "ignore:GaussianMixture. component:UserWarning",
    "ignore:FactorAnalysis. the noise:UserWarning",
)
@parametrize_with_checks(
    [
        *ESTIMATORS,
        GaussianMixture(warm_start=True),
        BayesianGaussianMixture(n_components=2, random_state=0),
        BayesianGaussianMixture(covariance_type="diag", warm_start=True),
    ],
    # Two components of 15 rows have many optima, and rows and repeated rows other draws.
    expected_failed_checks=lambda estimator: (
        {"check_sample_weight_equivalence_on_dense_data": "its start is drawn"}
        if getattr(estimator, "n_components", 1) == 2
        else {}
    ),
)
def test_contract_of_scikit_learn(estimator, check):
    """No check is expected to fail, but of what is drawn."""
    check(estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_densities_are_those_of_the_model(estimator):
    estimator = clone(estimator).set_params(random_state=0).fit(WINE)
    evidence = log_evidence(estimator.model_, None, torch.from_numpy(WINE))
    np.testing.assert_allclose(estimator.score_samples(WINE), evidence.value, rtol=1e-10)
    assert estimator.score(WINE) == pytest.approx(evidence.mean)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_mixture_is_scikit_learns(covariance):
    settings = {"covariance_type": covariance, "tol": 1e-9, "max_iter": 2000, "random_state": 0}
    ours = GaussianMixture(3, n_init=5, **settings).fit(IRIS)
    assert ours.converged_
    assert ours.lower_bound_ == ours.lower_bounds_[-1] == pytest.approx(ours.score(IRIS))
    assert len(ours.lower_bounds_) == ours.n_iter_ < 2000
    assert (ours.predict(IRIS) == ours.predict_proba(IRIS).argmax(1)).all()

    peer = sklearn.mixture.GaussianMixture(3, n_init=5, reg_covar=0, **settings).fit(IRIS)
    assert ours.lower_bound_ >= peer.lower_bound_ - 1e-7

    # Started from our optimum, scikit-learn stays there.
    inverse = np.linalg.inv if covariance in ("full", "tied") else np.reciprocal
    peer.set_params(
        n_init=1,
        means_init=ours.means_,
        weights_init=ours.weights_ / ours.weights_.sum(),
        precisions_init=inverse(ours.covariances_),
    ).fit(IRIS)
    for name in ("weights_", "means_", "covariances_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(peer, name), atol=1e-3)
    for name in ("score_samples", "predict_proba"):
        np.testing.assert_allclose(getattr(ours, name)(IRIS), getattr(peer, name)(IRIS), atol=1e-2)
    for name in ("score", "bic", "aic"):
        expected = getattr(peer, name)(IRIS)
        assert getattr(ours, name)(IRIS) == pytest.approx(expected, abs=1e-5)


def test_fit_predict():
    mixture = GaussianMixture(3, random_state=0)
    labels = mixture.fit_predict(IRIS)
    assert (labels == mixture.predict(IRIS)).all()
    assert sorted(set(labels)) == [0, 1, 2]


def test_factor_analysis_is_scikit_learns():
    ours = FactorAnalysis(3).fit(WINE)
    peer = sklearn.decomposition.FactorAnalysis(3, tol=1e-8, max_iter=5000, svd_method="lapack")
    assert ours.score(WINE) >= peer.fit(WINE).score(WINE) - 1e-6
    np.testing.assert_allclose(ours.get_covariance(), peer.get_covariance(), atol=1e-3)
    np.testing.assert_allclose(ours.noise_variance_, peer.noise_variance_, atol=1e-3)
    np.testing.assert_allclose(ours.mean_, peer.mean_, atol=1e-12)
    # The factors too, but for a rotation.
    turn, *_ = np.linalg.lstsq(ours.transform(WINE), peer.transform(WINE), rcond=None)
    np.testing.assert_allclose(ours.transform(WINE) @ turn, peer.transform(WINE), atol=1e-2)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-2)
    assert list(ours.get_feature_names_out()) == [f"factoranalysis{k}" for k in range(3)]
    assert ours.components_.shape == (3, 13)
    z = ours.transform(WINE)
    np.testing.assert_allclose(ours.inverse_transform(z), z @ ours.components_ + ours.mean_)
    assert ours.n_iter_ == 1


def test_probabilistic_pca_is_scikit_learns_but_for_its_noise():
    ours, peer = ProbabilisticPCA(3).fit(WINE), sklearn.decomposition.PCA(3).fit(WINE)
    rows = len(WINE)
    assert ours.noise_variance_ == pytest.approx(peer.noise_variance_ * (rows - 1) / rows)
    covariance = peer.get_covariance() * (rows - 1) / rows
    np.testing.assert_allclose(ours.get_covariance(), covariance, atol=1e-12)
    assert ours.score(WINE) == pytest.approx(peer.score(WINE), abs=1e-3)
    assert ours.score(WINE) > peer.score(WINE)  # which is not the maximum


@pytest.mark.parametrize(
    "estimator", [GaussianMixture(2, n_init=3), FactorAnalysis(2), ProbabilisticPCA(2)], ids=repr
)
def test_missing_entries(estimator):
    x = WINE.copy()
    x[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        clone(estimator).fit(x)
    assert not estimator.__sklearn_tags__().input_tags.allow_nan
    estimator = clone(estimator).set_params(missing="marginalise", random_state=0)
    assert estimator.__sklearn_tags__().input_tags.allow_nan
    scores = estimator.fit(x).score_samples(x)
    assert np.isfinite(scores).all()
    evidence = log_evidence(estimator.model_, None, torch.from_numpy(x))
    np.testing.assert_allclose(scores, evidence.value)
    assert estimator.lower_bound_ == pytest.approx(scores.mean())
    assert estimator.n_iter_ > 1
    output = estimator.transform if hasattr(estimator, "transform") else estimator.predict_proba
    assert np.isfinite(output(x)).all()
    with pytest.raises(ValueError, match="infinity"):
        estimator.fit(np.where(np.isnan(x), np.inf, x))


@pytest.mark.parametrize("random_state", [0, np.random.RandomState(0), None], ids=type)
def test_torch_generators_are_left_alone(random_state):
    state = torch.get_rng_state()
    mixture = GaussianMixture(3, random_state=random_state).fit(IRIS)
    mixture.sample(5)
    FactorAnalysis(random_state=random_state).fit(WINE).sample(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_state_is_scikit_learns():
    def drawn(random_state):
        return GaussianMixture(3, random_state=random_state).fit(IRIS).sample(5)[0]

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert (drawn(1) != drawn(2)).any()
    state = np.random.RandomState(1)
    np.testing.assert_array_equal(drawn(state), drawn(np.random.RandomState(1)))
    assert (drawn(state) != drawn(1)).any()  # which has moved on
    np.random.seed(3)
    first = drawn(None)
    np.random.seed(3)
    np.testing.assert_array_equal(drawn(None), first)


def test_samples_come_with_their_latents():
    mixture = GaussianMixture(3, n_init=3, random_state=0).fit(IRIS)
    x, z = mixture.sample(20_000)
    assert x.shape == (20_000, 4)
    np.testing.assert_allclose(np.bincount(z) / 20_000, mixture.weights_, atol=0.02)
    for k in range(3):
        np.testing.assert_allclose(x[z == k].mean(0), mixture.means_[k], atol=0.03)
        np.testing.assert_allclose(np.cov(x[z == k].T), mixture.covariances_[k], atol=0.03)
    factors = FactorAnalysis(1, random_state=0).fit(WINE)
    x, z = factors.sample(20_000)
    assert z.shape == (20_000, 1)
    np.testing.assert_allclose(np.cov(x.T), factors.get_covariance(), atol=0.1)
    slope = np.linalg.lstsq(z, x - factors.mean_, rcond=None)[0]
    np.testing.assert_allclose(slope, factors.components_, atol=0.03)
    with pytest.raises(ValueError, match="n_samples: expected a positive"):
        factors.sample(0)


@pytest.mark.parametrize("missing", ["error", "marginalise"])
def test_an_unfinished_fit_warns_as_scikit_learn_does(missing):
    mixture = GaussianMixture(3, max_iter=2, tol=1e-9, missing=missing, random_state=0)
    with pytest.warns(ConvergenceWarning, match="not converged to tol=1e-09 in max_iter=2") as seen:
        mixture.fit(IRIS)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert not mixture.converged_
    assert mixture.n_iter_ == 2
    with pytest.warns(ConvergenceWarning):
        assert not GaussianMixture(3, max_iter=1, random_state=0).fit(IRIS).converged_
    assert GaussianMixture(1, tol=0.0).fit(IRIS).converged_  # a single Gaussian is there at once


def test_what_the_model_warns_of_is_heard():
    x = np.concatenate([IRIS[:20], IRIS[:1].repeat(5, 0)])
    with pytest.warns(UserWarning, match="more variance in some direction than the floor"):
        GaussianMixture(5, random_state=0).fit(x)


def test_attributes_follow_the_model():
    """A fit that goes on by gradient is seen by the estimator."""
    mixture = GaussianMixture(2, random_state=0).fit(IRIS)
    with torch.no_grad():
        mixture.model_.locs += 1.0
    np.testing.assert_array_equal(mixture.means_, mixture.model_.locs.detach().numpy())
    assert mixture.score(IRIS) < mixture.lower_bound_


@pytest.mark.parametrize("dtype", [np.float32, np.float64, int])
def test_any_real_dtype(dtype):
    x = (10 * IRIS).round().astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixture = GaussianMixture(2, random_state=0).fit(x)
    expected = GaussianMixture(2, random_state=0).fit(x.astype(float))
    assert mixture.score(x) == pytest.approx(expected.score(x), abs=1e-9)
    assert mixture.means_.dtype == np.float64


def test_numbers_of_numpy_and_pipelines():
    search = GridSearchCV(
        make_pipeline(StandardScaler(), GaussianMixture(random_state=0, n_init=3, reg_covar=0.01)),
        {"gaussianmixture__n_components": np.arange(1, 4)},
        cv=3,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="GaussianMixture: component")
        search.fit(IRIS[np.random.default_rng(0).permutation(150)])
    assert search.best_params_["gaussianmixture__n_components"] > 1
    assert math.isfinite(search.best_score_)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (GaussianMixture(0), "^n_components: expected a positive"),
        (GaussianMixture(200), "at least 200 rows"),
        (GaussianMixture(covariance_type="round"), "^covariance_type: expected one of"),
        (GaussianMixture(missing="ignore"), "missing: expected 'error' or 'marginalise'"),
        (GaussianMixture(n_init=0), "^n_init: expected a positive"),
        (GaussianMixture(max_iter=-1), "^max_iter: expected a whole number, 0 or more"),
        (GaussianMixture(tol=-1.0), "^tol: expected"),
        (GaussianMixture(reg_covar=-1.0), "^reg_covar: expected"),
        (GaussianMixture(reg_covar=50.0), r"expected reg_covar, the smallest variance .* got 50\."),
        (FactorAnalysis(4), "subspace of 4 dimensions"),
        (FactorAnalysis(5), "expected 1 to 4 factors .*n_components=5. Try n_components=2"),
        (ProbabilisticPCA(4), "fewer factors than features"),
        (GaussianMixture(init_params="best"), "init_params: expected one of"),
        (GaussianMixture(2, weights_init=[1.0]), r"weights_init: .* shape \(2,\), got \(1,\)"),
        (GaussianMixture(2, weights_init=[0.9, 0.2]), "probabilities that sum to 1"),
        (GaussianMixture(2, weights_init=[1.1, -0.1]), "probabilities that sum to 1"),
        (GaussianMixture(2, means_init=np.zeros((2, 3))), r"means_init: .* shape \(2, 4\)"),
        (GaussianMixture(1, means_init=[[0, 0, 0, np.nan]]), "1 that are not finite"),
        (GaussianMixture(precisions_init=[-np.eye(4)]), "symmetric, positive-definite"),
    ],
    ids=repr,
)
def test_refuses(estimator, message):
    with pytest.raises(ValueError, match=message):
        estimator.fit(IRIS)
    for method in ("score_samples", "score", "sample", "bic", "transform"):
        if hasattr(estimator, method):
            with pytest.raises(NotFittedError):
                getattr(estimator, method)(*([5] if method == "sample" else [IRIS]))
    assert not hasattr(estimator, "means_")
    assert not hasattr(estimator, "components_")


@pytest.mark.parametrize("name", ["PCA", "LinearDiscriminantAnalysis"])
def test_names_that_are_gone_say_where_to_go(name):
    with pytest.raises(ImportError, match=rf"Try from sklearn.*import {name}"):
        getattr(ppl_models.sklearn, name)
    assert not hasattr(ppl_models.sklearn, "NMF")
