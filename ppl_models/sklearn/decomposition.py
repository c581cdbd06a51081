"""Factors, of their own noise each or of one for all, as in `sklearn.decomposition`."""

import operator
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor

from ppl_models.factors import analysis, probabilistic_pca
from ppl_models.sklearn.base import Adapter, fit_by_em, seeded
from ppl_models.sklearn.words import said_in_their_words


class FactorAnalysis(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Adapter):
    """Factor analysis by maximum likelihood, with the interface of `sklearn.decomposition`.

    What it has more: `sample_weight`, and missing entries. What differs: complete rows are fitted
    to the maximum by Newton's method, rows with missing entries by EM, to which alone `tol` (in
    nats per row) and `max_iter` belong; one factor is the default, not as many as features, which
    have no maximum; and a warning says where noise would go to zero (a Heywood case). Factors come
    strongest first, with signs of their own, and there is no `rotation`.

    Arguments:
        n_components: The number of factors, `K`, less than the number of features.
        tol: Stop when a step of EM raises the evidence by no more, in nats per row.
        max_iter: The largest number of steps of EM.
        missing: `"error"`, or `"marginalise"`: NaN stands for what was not observed.
        random_state: Of `sample`.

    Attributes:
        model_: The fitted `ppl_models.FactorAnalysis`.
        components_: The loadings, `(K, D)`.
        mean_: The mean of the rows, `(D,)`.
        noise_variance_: The variance of the noise, in the shape of scikit-learn.
        n_iter_: The steps of EM; 1 where there was none.
        loglike_: The log likelihood of all rows, by weight, after each step, in nats.

    Example:
        >>> from sklearn.datasets import load_wine
        >>> x, _ = load_wine(return_X_y=True)
        >>> FactorAnalysis(n_components=2).fit_transform(x).shape
        (178, 2)
    """

    _min_features = 2
    _kind: Any = analysis.FactorAnalysis

    def __init__(
        self,
        n_components: int = 1,
        *,
        tol: float = 1e-6,
        max_iter: int = 1000,
        missing: str = "error",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.tol = tol
        self.max_iter = max_iter
        self.missing = missing
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "FactorAnalysis":
        """Fits the rows `X`, `(N, D)`, which count `sample_weight` times; `y` is ignored."""
        x = self._rows(X, reset=True)
        weight = self._weight(sample_weight, x)
        with said_in_their_words(), seeded(self.random_state):
            number = operator.index(self.n_components)
            model = self._kind(x.shape[1], number, missing=self.missing).double()
            if self.missing == "marginalise":
                fit_by_em(self, model, x, weight)
            else:
                model.maximum_likelihood(x, sample_weight=weight)
                self._tell_of_the_maximum(model, x, weight)
        self.model_ = model
        count = len(x) if weight is None else weight.sum().item()
        self.loglike_ = [count * value for value in self.lower_bounds_]
        return self

    @torch.no_grad()
    def _tell_of_the_maximum(self, model: Any, x: Tensor, weight: Tensor | None) -> None:
        """Sets what EM would have told, of a maximum that was found in one step."""
        values = model.evidence().log_prob(x)
        mean = values.mean() if weight is None else values @ weight / weight.sum()
        self.lower_bound_ = mean.item()
        self.n_iter_, self.converged_, self.lower_bounds_ = 1, True, [self.lower_bound_]

    def transform(self, X: Any) -> np.ndarray:
        """Returns the posterior means of the factors, `(N, K)`."""
        return self._map(lambda x: self.model_.posterior(x).mean, X)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Returns the means of rows with factors `X`, `(N, K)`: `(N, D)`."""
        check_is_fitted(self, "model_")
        return check_array(X) @ self.components_ + self.mean_

    def get_covariance(self) -> np.ndarray:
        """Returns the covariance of rows under the model, `(D, D)`."""
        check_is_fitted(self, "model_")
        return self.model_.evidence().covariance_matrix.detach().numpy()

    def get_precision(self) -> np.ndarray:
        """Returns the inverse of that covariance, `(D, D)`."""
        check_is_fitted(self, "model_")
        return self.model_.evidence().precision_matrix.detach().numpy()

    @property
    def components_(self) -> np.ndarray:
        return self.model_.loadings.detach().T.numpy()

    @property
    def mean_(self) -> np.ndarray:
        return self.model_.loc.detach().numpy()

    @property
    def noise_variance_(self) -> np.ndarray:
        return (2 * self.model_.log_scale.detach()).exp().numpy()

    @property
    def _n_features_out(self) -> int:
        return self.model_.loadings.shape[1]


class ProbabilisticPCA(FactorAnalysis):
    """Probabilistic PCA: factor analysis whose noise is the same for every feature.

    Its densities are those of `sklearn.decomposition.PCA` but for the noise, which scikit-learn
    multiplies by `N / (N - 1)`. Takes the arguments of `FactorAnalysis`, and has its methods and
    attributes; `noise_variance_` is a number. Complete rows are fitted in closed form.

    Example:
        >>> from sklearn.datasets import load_wine
        >>> x, _ = load_wine(return_X_y=True)
        >>> ProbabilisticPCA(n_components=2).fit_transform(x).shape
        (178, 2)
    """

    _kind = probabilistic_pca.ProbabilisticPCA
