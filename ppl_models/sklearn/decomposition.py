"""Factors and principal components, as in `sklearn.decomposition`."""

import operator
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted

from ppl_models.factors import analysis, pca, probabilistic_pca
from ppl_models.sklearn.base import Adapter, Generative, fit_by_em, seeded


class FactorAnalysis(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Generative):
    """Factor analysis by maximum likelihood, with the interface of `sklearn.decomposition`.

    What differs: complete rows are fitted to the maximum by Newton's method, rows with missing
    entries by EM, to which alone `tol` (in nats per row) and `max_iter` belong; one factor is the
    default, not as many as features, which have no maximum; a constant feature is an error, and a
    warning says where noise would go to zero (a Heywood case). Factors come strongest first, with
    signs of their own, and there is no `rotation`.

    Arguments:
        n_components: The number of factors, `K`, less than the number of features.
        tol: Stop when a step of EM raises the evidence by no more, in nats per row.
        max_iter: The largest number of steps of EM.
        missing: `"error"`, or `"marginalise"`: NaN stands for what was not observed.
        random_state: Of `sample`.

    Attributes:
        model_: The fitted `ppl_models.FactorAnalysis`.
        components_, mean_, noise_variance_: In the shapes of scikit-learn.
        n_iter_: The steps of EM; 1 where there was none.

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

    def fit(self, X: Any, y: Any = None) -> "FactorAnalysis":
        """Fits the rows `X`, `(N, D)`; `y` is ignored."""
        x = self._rows(X, reset=True)
        with seeded(self.random_state):
            number = operator.index(self.n_components)
            model = self._kind(x.shape[1], number, missing=self.missing).double()
            if self.missing == "marginalise":
                fit_by_em(self, model, x, restarts=1)
            else:
                self.n_iter_ = 1
                model.maximum_likelihood(x)
        self.model_ = model
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Returns the posterior means of the factors, `(N, K)`."""
        return self._map(lambda x: self.model_.posterior(x).mean, X)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Returns the means of rows with factors `X`, `(N, K)`: `(N, D)`."""
        check_is_fitted(self, "model_")
        return check_array(X) @ self.components_ + self.mean_

    def score(self, X: Any, y: Any = None) -> float:
        """Returns the mean log density, in nats per row."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows that the model generates, and their factors."""
        return self._draw(n_samples)

    def get_covariance(self) -> np.ndarray:
        """Returns the covariance of rows under the model, `(D, D)`."""
        check_is_fitted(self, "model_")
        return self.model_.evidence().covariance_matrix.detach().numpy()

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


class PCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Adapter):
    """Principal component analysis, with the interface of `sklearn.decomposition`.

    What differs: rows that vary in fewer directions than there are components are an error, as
    those beyond are arbitrary; `n_components` is a number of components, not a share of variance
    and not `"mle"`; there is no `whiten`. Without noise there is no density: for `score` take
    `ProbabilisticPCA`.

    Arguments:
        n_components: The number of components, `K`. Default: all, `min(N - 1, D)`.
        random_state: Not used: nothing is random.

    Attributes:
        model_: The fitted `ppl_models.PCA`.
        components_, mean_, explained_variance_, explained_variance_ratio_: As in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, _ = load_iris(return_X_y=True)
        >>> print(f"{PCA(n_components=1).fit(x).explained_variance_ratio_[0]:.2f}")
        0.92
    """

    def __init__(self, n_components: int | None = None, *, random_state: Any = None) -> None:
        self.n_components = n_components
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "PCA":
        """Fits the rows `X`, `(N, D)`; `y` is ignored."""
        x = self._rows(X, reset=True)
        rows, features = x.shape
        number = min(rows - 1, features) if self.n_components is None else self.n_components
        self.model_ = pca.PCA(features, operator.index(number)).double().least_squares(x)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Returns the rows along the components, `(N, K)`."""
        return self._map(lambda x: self.model_.transform(x), X)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Returns the rows that lie at `X`, `(N, K)`, along the components, `(N, D)`."""
        check_is_fitted(self, "model_")
        return self.model_.inverse_transform(torch.tensor(check_array(X, dtype=float))).numpy()

    @property
    def components_(self) -> np.ndarray:
        return self.model_.components.numpy()

    @property
    def mean_(self) -> np.ndarray:
        return self.model_.loc.numpy()

    @property
    def explained_variance_(self) -> np.ndarray:
        return self.model_.explained_variance.numpy()

    @property
    def explained_variance_ratio_(self) -> np.ndarray:
        return self.model_.explained_variance_ratio.numpy()

    @property
    def _n_features_out(self) -> int:
        return len(self.model_.components)
