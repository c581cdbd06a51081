"""Models as scikit-learn's estimators: change one import, and keep the rest of the code.

    from ppl_models.sklearn import GaussianMixture  # was: from sklearn.mixture import ...

These are the estimators that scikit-learn has not: with weights of rows, missing entries, and
better ends. For the others, principal components and discriminants, take scikit-learn's own.

Fitted estimators hold the Pyro model as `model_`, in float64 on the CPU, for all that the library
does with models: `log_evidence(estimator.model_, None, x)`, `from_pyro_svi`, a fit that goes on by
gradient. Attributes such as `means_` are read from it. Nothing here adds any mathematics, and
`ppl_models` does not import this folder.

`random_state` is scikit-learn's: draws come from it, and torch's generator stays as it was. Log
densities are in nats per row.

Files, named as scikit-learn's modules:
    base: what the estimators share
    words: hints that name the arguments of estimators
    mixture: `GaussianMixture`
    bayesian: `BayesianGaussianMixture`
    starts: where a mixture begins
    decomposition: `FactorAnalysis`, `ProbabilisticPCA`

References:
    | API Design for Machine Learning Software (Buitinck et al., 2013)
    | https://arxiv.org/abs/1309.0238
"""

from typing import NoReturn

from ppl_models.sklearn.bayesian import BayesianGaussianMixture
from ppl_models.sklearn.decomposition import FactorAnalysis, ProbabilisticPCA
from ppl_models.sklearn.mixture import GaussianMixture

__all__ = ["BayesianGaussianMixture", "FactorAnalysis", "GaussianMixture", "ProbabilisticPCA"]

# Names that were here, and where scikit-learn's own are.
GONE = {
    "PCA": "decomposition",
    "LinearDiscriminantAnalysis": "discriminant_analysis",
    "QuadraticDiscriminantAnalysis": "discriminant_analysis",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> NoReturn:
    """Says where to find a name that is gone."""
    if name in GONE:
        # An ImportError, as Python makes any other into one that has lost the words.
        raise ImportError(
            f"ppl_models.sklearn.{name} is gone: scikit-learn's own does the same. "
            f"Try from sklearn.{GONE[name]} import {name}."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
