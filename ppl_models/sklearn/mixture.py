"""Mixtures, as in `sklearn.mixture`."""

import operator
from typing import Any

import numpy as np
from sklearn.base import DensityMixin

from ppl_models.mixtures import gaussian
from ppl_models.sklearn.base import Generative, fit_by_em, seeded


class GaussianMixture(DensityMixin, Generative):
    """A mixture of Gaussians fitted by EM, with the interface of `sklearn.mixture`.

    What differs: variances have a floor, `min_scale ** 2`, where scikit-learn adds `reg_covar` to
    all of them, and a warning says which components it keeps from collapsing; the evidence of the
    data has no decrease, and `lower_bound_` is that of the parameters that are kept; NaN can stand
    for missing entries; draws are not sorted by component. There are no `precisions_`, and no
    `init_params` but k-means++.

    Arguments:
        n_components: The number of components, `K`.
        covariance_type: `"full"`, `"tied"`, `"diag"` or `"spherical"`.
        tol: Stop when a step raises the evidence by no more, in nats per row.
        max_iter: The largest number of steps.
        n_init: The number of starts, of which the best end is kept.
        min_scale: The smallest standard deviation of a component in any direction.
        missing: `"error"`, or `"marginalise"`: NaN stands for what was not observed.
        random_state: Of the starts, and of `sample`.

    Attributes:
        model_: The fitted `ppl_models.GaussianMixture`.
        weights_, means_, covariances_: In the shapes of scikit-learn.
        converged_, n_iter_: Whether the best start got to `tol`, and its steps.
        lower_bound_, lower_bounds_: Its evidence at the end, and at each step, in nats per row.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> mixture = GaussianMixture(n_components=3, n_init=5, random_state=0).fit(x)
        >>> mixture.means_.shape, mixture.predict_proba(x).shape
        ((3, 4), (150, 3))
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        max_iter: int = 100,
        n_init: int = 1,
        min_scale: float = 1e-3,
        missing: str = "error",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.min_scale = min_scale
        self.missing = missing
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "GaussianMixture":
        """Fits the rows `X`, `(N, D)`; `y` is ignored."""
        x = self._rows(X, reset=True)
        with seeded(self.random_state):
            model = gaussian.GaussianMixture(
                x.shape[1],
                operator.index(self.n_components),
                self.covariance_type,
                min_scale=self.min_scale,
                missing=self.missing,
            ).double()
            fit_by_em(self, model, x, restarts=operator.index(self.n_init))
        self.model_ = model
        return self

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fits, and returns the most probable component of each row."""
        return self.fit(X).predict(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probabilities of the components for each row, `(N, K)`."""
        return self._map(lambda x: self.model_.posterior(x).probs, X)

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable component of each row."""
        return self.predict_proba(X).argmax(1)

    def score(self, X: Any, y: Any = None) -> float:
        """Returns the mean log density, in nats per row."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows that the model generates, and their components."""
        return self._draw(n_samples)

    def bic(self, X: Any) -> float:
        """Returns the Bayesian information criterion; less is better."""
        x = self._rows(X)
        return self.model_.bic(x)

    def aic(self, X: Any) -> float:
        """Returns Akaike's information criterion; less is better."""
        x = self._rows(X)
        return self.model_.aic(x)

    @property
    def weights_(self) -> np.ndarray:
        return self.model_.weights.detach().numpy()

    @property
    def means_(self) -> np.ndarray:
        return self.model_.locs.detach().numpy()

    @property
    def covariances_(self) -> np.ndarray:
        full = self.model_.covariances.detach().numpy()
        diagonals = full.diagonal(0, 1, 2)
        return {
            "full": full,
            "tied": full[0],
            "diag": diagonals,
            "spherical": diagonals[:, 0],
        }[self.model_.covariance]
