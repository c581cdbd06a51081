"""The models as scikit-learn's estimators: change one import, and keep the rest of the code.

    from ppl_models.sklearn import GaussianMixture  # was: from sklearn.mixture import ...

Fitted estimators hold the Pyro model as `model_`, in float64 on the CPU, for all that the library
does with models: `log_evidence(estimator.model_, None, x)`, `from_pyro_svi`, a fit that goes on by
gradient. Attributes such as `means_` are read from it. Nothing here adds any mathematics, and
`ppl_models` does not import this folder.

`random_state` is scikit-learn's: draws come from it, and torch's generator stays as it was. Log
densities are in nats per row.

Files, named as scikit-learn's modules:
    base: what the estimators share
    mixture: `GaussianMixture`
    decomposition: `FactorAnalysis`, `ProbabilisticPCA`, `PCA`
    discriminant_analysis: `LinearDiscriminantAnalysis`, `QuadraticDiscriminantAnalysis`

References:
    | API Design for Machine Learning Software (Buitinck et al., 2013)
    | https://arxiv.org/abs/1309.0238
"""

from ppl_models.sklearn.decomposition import PCA, FactorAnalysis, ProbabilisticPCA
from ppl_models.sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from ppl_models.sklearn.mixture import GaussianMixture

__all__ = [
    "PCA",
    "FactorAnalysis",
    "GaussianMixture",
    "LinearDiscriminantAnalysis",
    "ProbabilisticPCA",
    "QuadraticDiscriminantAnalysis",
]
