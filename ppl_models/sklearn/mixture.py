"""Mixtures, as in `sklearn.mixture`."""

import copy
import math
import operator
from typing import Any

import numpy as np
import torch
from sklearn.base import DensityMixin
from torch import Tensor

from ppl_models.mixtures import gaussian
from ppl_models.sklearn.base import Adapter, fit_by_em, seeded
from ppl_models.sklearn.starts import Start, check_start
from ppl_models.sklearn.words import said_in_their_words

MANY = 16_384  # rows that are predicted at once
TINY = 1e-30  # a variance that is no floor, but that of rounding


def min_scale(reg_covar: float | None) -> float | None:
    """The least standard deviation of the model, for what scikit-learn adds to variances."""
    if reg_covar is None:
        return None
    if not 0 <= reg_covar < math.inf:
        raise ValueError(
            f"reg_covar: expected a variance, 0 or more, got {reg_covar!r}. Try reg_covar=None, a "
            f"part of each column's own."
        )
    return math.sqrt(max(reg_covar, TINY))


class Mixture(DensityMixin, Adapter):
    """What mixtures share."""

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """Fits, and returns the most probable component of each row."""
        return self.fit(X, sample_weight=sample_weight).predict(X)

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable component of each row."""
        return self.predict_proba(X).argmax(1)

    def score(self, X: Any, y: Any = None) -> float:
        """Returns the mean log density, in nats per row."""
        return Adapter.score(self, X)  # that of DensityMixin gives nothing

    @property
    def precisions_(self) -> np.ndarray:
        root = self.precisions_cholesky_
        if self.model_.covariance in ("full", "tied"):
            return root @ root.swapaxes(-1, -2)
        return root**2


class GaussianMixture(Mixture):
    """A mixture of Gaussians fitted by EM, with the interface of `sklearn.mixture`.

    What it has more: `sample_weight`, missing entries, and better ends, from starts that are the
    best of several. What differs: `reg_covar` is a floor under variances in any direction, where
    scikit-learn adds it to all of them, and a warning says which components it keeps from
    collapsing; the evidence of the data has no decrease, and `lower_bound_` is that of the
    parameters that are kept; draws are not sorted by component. The first of `n_init` starts is
    that of `n_init=1`, so that more never end lower. With `means_init` weights and covariances
    begin as those of the rows that are nearest to each mean.

    Arguments:
        n_components: The number of components, `K`.
        covariance_type: `"full"`, `"tied"`, `"diag"` or `"spherical"`.
        tol: Stop when a step raises the evidence by no more, in nats per row.
        reg_covar: The smallest variance of a component in any direction. Default: a millionth of
            the variance of each column, whatever its units.
        max_iter: The largest number of steps.
        n_init: The number of starts, of which the best end is kept.
        init_params: `"kmeans"`: the best of four clusterings, after a few steps each. Else one:
            `"k-means++"`, `"random_from_data"` (rows nearest to rows that are drawn) or
            `"random"`.
        weights_init: `(K,)`, where EM begins.
        means_init: `(K, D)`.
        precisions_init: The inverses of the covariances, in the shape of `precisions_`.
        missing: `"error"`, or `"marginalise"`: NaN stands for what was not observed.
        random_state: Of the starts, and of `sample`.
        warm_start: Whether a fit goes on where the one before has ended.
        verbose: Whether to show progress.

    Attributes:
        model_: The fitted `ppl_models.GaussianMixture`.
        weights_: The weights, `(K,)`.
        means_: The means, `(K, D)`.
        covariances_: The covariances, in the shapes of scikit-learn.
        precisions_: Their inverses.
        converged_: Whether the best start got to `tol`.
        n_iter_: Its steps.
        lower_bound_: Its evidence at the end, in nats per row.
        lower_bounds_: The same after each step.

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
        reg_covar: float | None = None,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        missing: str = "error",
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.missing = missing
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "GaussianMixture":
        """Fits the rows `X`, `(N, D)`, which count `sample_weight` times; `y` is ignored."""
        x = self._rows(X, reset=True)
        weight = self._weight(sample_weight, x)
        with said_in_their_words(), seeded(self.random_state):
            model = gaussian.GaussianMixture(
                x.shape[1],
                operator.index(self.n_components),
                self.covariance_type,
                min_scale=min_scale(self.reg_covar),
                missing=self.missing,
            ).double()
            self.model_ = self._fitted(model, x, weight)
        return self

    def _fitted(self, model: Any, x: Tensor, weight: Tensor | None) -> Any:
        if self.warm_start and hasattr(self, "model_"):
            before = copy.deepcopy(self.model_)
            _check_alike(before, model)
            return fit_by_em(self, before, x, weight, begin=lambda _: None, resumed=True)
        start = Start(self.init_params, self.weights_init, self.means_init, self.precisions_init)
        check_start(start, model)
        starts = operator.index(self.n_init)
        if start.is_the_models_own:
            return fit_by_em(self, model, x, weight, starts)
        starts = starts if self.means_init is None else min(starts, 1)  # nothing else is random
        return fit_by_em(self, model, x, weight, starts, lambda own: start.begin(own, x, weight))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probabilities of the components for each row, `(N, K)`."""
        # Rows come last in memory, where many are done at once.
        return self._map(lambda x: self.model_.log_joint(x).mT.softmax(0).mT, X, MANY)

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable component of each row."""
        return self._map(lambda x: self.model_.log_joint(x), X, MANY).argmax(1)

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns the log density of each row, in nats."""
        return self._map(lambda x: self.model_.log_joint(x).mT.logsumexp(0), X, MANY)

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

    @property
    def precisions_cholesky_(self) -> np.ndarray:
        """U, with which precisions are U U^T."""
        scale = self.model_.scale.detach()
        if self.model_.covariance in ("full", "tied"):
            identity = torch.eye(scale.shape[-1], dtype=scale.dtype)
            return torch.linalg.solve_triangular(scale, identity, upper=False).mT.numpy()
        return (
            (1 / scale).numpy() if self.model_.covariance == "diag" else (1 / scale[:, 0]).numpy()
        )


def _check_alike(before: Any, now: Any) -> None:
    """Raises where a fit cannot go on from the one before."""
    was, is_now = ((m.covariance, *m.locs.shape, m.missing, m.min_scale) for m in (before, now))
    if was != is_now:
        raise ValueError(
            f"warm_start: expected the covariance_type, n_components, features, missing and root "
            f"of reg_covar of the fit before, {was}, got {is_now}. Try warm_start=False."
        )
