"""Where fits begin and go on, what rows count, and what comes in and out of the estimators."""

import numpy as np
import pandas as pd
import pytest
import sklearn.mixture
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning

from ppl_models.sklearn import FactorAnalysis, GaussianMixture, ProbabilisticPCA

COVARIANCES = ["full", "tied", "diag", "spherical"]
IRIS, _ = load_iris(return_X_y=True)
WINE, _ = load_wine(return_X_y=True)
WINE = (WINE - WINE.mean(0)) / WINE.std(0)
SETTLED = {"tol": 1e-10, "max_iter": 5000}
RNG = np.random.RandomState(0)
FACTORS = RNG.randn(150, 2) @ RNG.randn(2, 8) + RNG.randn(150, 8)
COUNTS = RNG.randint(0, 4, len(IRIS))

pytestmark = pytest.mark.filterwarnings("ignore:GaussianMixture. component:UserWarning")


def fit_of_scikit_learn(covariance: str, **settings):
    mixture = sklearn.mixture.GaussianMixture(
        3, covariance_type=covariance, random_state=0, reg_covar=0, **settings
    )
    return mixture.fit(IRIS)


def parameters(mixture) -> dict:
    return {
        "weights_init": mixture.weights_,
        "means_init": mixture.means_,
        "precisions_init": mixture.precisions_,
    }


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_start_that_is_given_is_where_it_begins(covariance):
    peer = fit_of_scikit_learn(covariance)
    ours = GaussianMixture(3, covariance_type=covariance, max_iter=0, **parameters(peer))
    ours.fit(IRIS)
    assert (ours.n_iter_, ours.lower_bounds_, ours.converged_) == (0, [], False)
    assert ours.lower_bound_ == pytest.approx(peer.score(IRIS), abs=1e-10)
    names = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_")
    for name in names:
        np.testing.assert_allclose(getattr(ours, name), getattr(peer, name), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("precision", [1e4, 1e12])
def test_precisions_are_kept_down_to_the_floor(covariance, precision):
    """A thousandth of the standard deviation of each column, the variance its square."""
    shape = {"full": (3, 4, 4), "tied": (4, 4), "diag": (3, 4), "spherical": (3,)}[covariance]
    wide = np.eye(4) if covariance in ("full", "tied") else 1.0
    given = np.broadcast_to(precision * wide, shape)
    ours = GaussianMixture(3, covariance_type=covariance, max_iter=0, precisions_init=given)
    variances = IRIS.var(0).mean() if covariance == "spherical" else IRIS.var(0)
    expected = np.maximum(1 / precision, 1e-6 * variances)
    expected = np.broadcast_to(expected * wide, shape)
    np.testing.assert_allclose(ours.fit(IRIS).covariances_, expected, rtol=1e-9, atol=1e-20)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_steps_are_those_of_scikit_learn(covariance):
    """From one start, one step at a time."""
    peer = fit_of_scikit_learn(covariance)
    start = {"means_init": peer.means_ + 0.3, "weights_init": np.full(3, 1 / 3)}
    start["precisions_init"] = peer.precisions_
    settings = {"covariance_type": covariance, "max_iter": 3, "tol": 0.0, **start}
    with pytest.warns(ConvergenceWarning):
        ours = GaussianMixture(3, **settings).fit(IRIS)
    with pytest.warns(ConvergenceWarning):
        theirs = sklearn.mixture.GaussianMixture(3, reg_covar=0, **settings).fit(IRIS)
    for name in ("weights_", "means_", "covariances_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-7)
    # Theirs are known before a step, ours after it.
    np.testing.assert_allclose(ours.lower_bounds_[:-1], theirs.lower_bounds_[1:], rtol=1e-9)


@pytest.mark.parametrize("kind", ["k-means++", "random", "random_from_data"])
def test_other_starts(kind):
    mixture = GaussianMixture(3, init_params=kind, n_init=8, tol=1e-6, max_iter=500, random_state=0)
    best = GaussianMixture(3, n_init=5, tol=1e-6, max_iter=500, random_state=0).fit(IRIS)
    assert mixture.fit(IRIS).lower_bound_ <= best.lower_bound_ + 1.0
    one = clone(mixture).set_params(n_init=1).fit(IRIS)
    assert one.lower_bound_ <= mixture.lower_bound_ + 1e-9
    weighted = clone(mixture).fit(IRIS, sample_weight=COUNTS)
    assert np.isfinite(weighted.score(IRIS))


@pytest.mark.parametrize("kind", ["k-means++", "random_from_data"])
def test_starts_are_drawn_by_weight(kind):
    """A row that hardly counts is no start: each component begins among the others."""
    x = np.concatenate([IRIS[:5], np.full((200, 4), 50.0) + RNG.rand(200, 4)])
    weight = np.where(np.arange(205) < 5, 1.0, 1e-12)
    settings = {"max_iter": 0, "covariance_type": "spherical", "random_state": 0}
    ours = GaussianMixture(2, init_params=kind, **settings).fit(x, sample_weight=weight)
    assert (ours.weights_ > 0.1).all()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_more_starts_never_end_lower(covariance):
    for seed in range(6):
        x = np.random.RandomState(seed).rand(60, 3)
        ends = [
            GaussianMixture(
                5, covariance_type=covariance, n_init=n, max_iter=500, random_state=seed
            )
            .fit(x)
            .lower_bound_
            for n in (1, 10)
        ]
        assert ends[1] >= ends[0] - 1e-12


def test_means_alone_decide_the_rest_of_a_start():
    means = IRIS[[0, 60, 120]]
    ours = GaussianMixture(3, means_init=means, max_iter=0).fit(IRIS)
    np.testing.assert_allclose(ours.means_, means)
    nearest = ((IRIS[:, None] - means) ** 2).sum(2).argmin(1)
    np.testing.assert_allclose(ours.weights_, np.bincount(nearest) / 150)
    again = GaussianMixture(3, means_init=means, random_state=1).fit(IRIS)
    assert (
        again.lower_bound_ == GaussianMixture(3, means_init=means, n_init=3).fit(IRIS).lower_bound_
    )


@pytest.mark.parametrize("missing", ["error", "marginalise"])
def test_a_warm_start_goes_on(missing):
    settings = {"tol": 0.0, "random_state": 0, "missing": missing}
    with pytest.warns(ConvergenceWarning):
        whole = GaussianMixture(3, max_iter=4, **settings).fit(IRIS)
    parts = GaussianMixture(3, max_iter=2, warm_start=True, **settings)
    for _ in range(2):
        with pytest.warns(ConvergenceWarning):
            parts.fit(IRIS)
    np.testing.assert_allclose(parts.means_, whole.means_, rtol=1e-12)
    assert parts.lower_bounds_ == pytest.approx(whole.lower_bounds_[2:], abs=1e-12)
    with pytest.raises(ValueError, match="warm_start: expected the covariance_type"):
        parts.set_params(n_components=2).fit(IRIS)


def mixture(**settings):
    return GaussianMixture(2, means_init=IRIS[[0, 100]], tol=1e-6, **settings)


@pytest.mark.parametrize("missing", ["error", "marginalise"])
@pytest.mark.parametrize(
    "make",
    [
        mixture,
        lambda **settings: FactorAnalysis(2, **SETTLED, **settings),
        lambda **settings: ProbabilisticPCA(2, **SETTLED, **settings),
    ],
)
def test_weights_are_repeated_rows(make, missing):
    x = IRIS.copy() if make is mixture else FACTORS.copy()
    if missing == "marginalise":
        x[np.random.RandomState(0).rand(*x.shape) < 0.1] = np.nan
    weighted = make(missing=missing).fit(x, sample_weight=COUNTS)
    repeated = make(missing=missing).fit(x.repeat(COUNTS, 0))
    scores = [model.score_samples(x) for model in (weighted, repeated)]
    np.testing.assert_allclose(*scores, rtol=1e-7, atol=1e-7)
    assert weighted.lower_bound_ == pytest.approx(repeated.lower_bound_, abs=1e-10)
    assert weighted.n_iter_ == repeated.n_iter_
    bounds = [model.lower_bounds_ for model in (weighted, repeated)]
    np.testing.assert_allclose(*bounds, rtol=1e-9)
    if make is not mixture:
        np.testing.assert_allclose(weighted.loglike_, repeated.loglike_, rtol=1e-9)
    for wrong in (-COUNTS, COUNTS[1:], np.full(150, np.nan)):
        with pytest.raises(ValueError, match="sample_weight: expected"):
            make(missing=missing).fit(x, sample_weight=wrong)


def test_what_factor_analysis_tells():
    ours = FactorAnalysis(3).fit(WINE)
    assert ours.loglike_[-1] == pytest.approx(ours.score_samples(WINE).sum())
    product = ours.get_precision() @ ours.get_covariance()
    np.testing.assert_allclose(product, np.eye(13), atol=1e-10)
    x = WINE.copy()
    x[RNG.rand(*x.shape) < 0.1] = np.nan
    ours = FactorAnalysis(2, missing="marginalise").fit(x)
    assert len(ours.loglike_) == ours.n_iter_ > 3
    assert ours.loglike_ == sorted(ours.loglike_)
    assert ours.loglike_[-1] == pytest.approx(ours.score_samples(x).sum())


@pytest.mark.parametrize("kind", [FactorAnalysis, ProbabilisticPCA])
def test_data_frames_come_in_and_out(kind):
    frame = pd.DataFrame(FACTORS[:, :4], columns=list("abcd"), index=range(7, 157))
    ours = kind(1).set_output(transform="pandas").fit(frame)
    assert list(ours.feature_names_in_) == list("abcd")
    z = ours.transform(frame)
    assert list(z.columns) == list(ours.get_feature_names_out()) == [f"{kind.__name__.lower()}0"]
    assert z.index.equals(frame.index)
    np.testing.assert_allclose(z.to_numpy(), kind(1).fit(FACTORS[:, :4]).transform(FACTORS[:, :4]))
    with pytest.raises(ValueError, match="feature names"):
        ours.transform(frame[list("dcba")])


def test_data_frames_come_into_mixtures():
    frame = pd.DataFrame(IRIS, columns=list("abcd"))
    weight = pd.Series(COUNTS)
    ours = GaussianMixture(2, random_state=0).fit(frame, sample_weight=weight)
    other = GaussianMixture(2, random_state=0).fit(IRIS, sample_weight=COUNTS)
    assert list(ours.feature_names_in_) == list("abcd")
    np.testing.assert_array_equal(ours.predict(frame), other.predict(IRIS))


def test_hints_name_arguments_that_there_are():
    x = np.concatenate([IRIS[:20], IRIS[:1].repeat(5, 0)])
    with pytest.warns(UserWarning, match="reg_covar") as heard:
        GaussianMixture(5, random_state=0).fit(x)
    assert heard[0].filename == __file__
    assert "min_scale" not in str(heard[0].message)
    with pytest.raises(ValueError, match=r"fewer factors than 4"):
        FactorAnalysis(4).fit(IRIS)
