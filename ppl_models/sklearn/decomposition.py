"""The models as scikit-learn's estimators: change one import, and keep the rest of the code.

    from ppl_models.sklearn import GaussianMixture  # was: from sklearn.mixture import ...

Fitted estimators hold the Pyro model as `model_`, in float64 on the CPU, for all that the library
does with models: `log_evidence(estimator.model_, None, x)`, `from_pyro_svi`, a fit that goes on by
gradient. Attributes such as `means_` are read from it. Nothing here adds any mathematics, and
`ppl_models` does not import this file.

`random_state` is scikit-learn's: draws come from it, and torch's generator stays as it was. Log
densities are in nats per row.

References:
    | API Design for Machine Learning Software (Buitinck et al., 2013)
    | https://arxiv.org/abs/1309.0238
"""

import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pyro import poutine
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor, nn

from ppl_models.factors import analysis as factor_analysis
from ppl_models.factors import pca
from ppl_models.infer.training.em import fit_em
from ppl_models.mixtures import gaussian as gaussian_mixture
from ppl_models.supervised import discriminant

__all__ = [
    "PCA",
    "FactorAnalysis",
    "GaussianMixture",
    "LinearDiscriminantAnalysis",
    "ProbabilisticPCA",
    "QuadraticDiscriminantAnalysis",
]


class _Adapter(BaseEstimator):
    """What the estimators share: they check rows, and hand them to a model."""

    model_: Any
    _min_features = 1

    def _rows(self, X: Any, y: Any = "no_validation", reset: bool = False) -> Any:
        """`X` as a tensor, and `y` as an array if given; the checks are scikit-learn's."""
        if not reset:
            check_is_fitted(self, "model_")
        skips = getattr(self, "missing", "error") == "marginalise"
        found = validate_data(
            self,
            X,
            y,
            reset=reset,
            dtype=np.float64,
            ensure_min_samples=2 if reset else 1,
            ensure_min_features=self._min_features if reset else 1,
            ensure_all_finite="allow-nan" if skips else True,
        )
        if isinstance(found, tuple):
            return torch.tensor(found[0]), found[1]
        return torch.tensor(found)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = getattr(self, "missing", "error") == "marginalise"
        return tags

    @torch.no_grad()
    def _map(self, function: Callable[[Tensor], Tensor], X: Any) -> np.ndarray:
        """`function` of all rows, a part at a time."""
        return torch.cat([function(x) for x in self._rows(X).split(4096)]).numpy()


class _Generative(_Adapter):
    """Those whose model has a density: of rows, and to draw rows from."""

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns the log density of each row, in nats."""
        return self._map(lambda x: self.model_.evidence().log_prob(x), X)

    @torch.no_grad()
    def _draw(self, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows that the model generates, and the latents behind them."""
        check_is_fitted(self, "model_")
        if n_samples < 1:
            raise ValueError(f"n_samples: expected a positive number, got {n_samples}.")
        with _seeded(self.random_state):
            nodes = poutine.trace(self.model_).get_trace(size=n_samples).nodes
        latent = nodes["z" if "z" in nodes else "y"]["value"]
        return nodes["x"]["value"].numpy(), latent.numpy()


class GaussianMixture(DensityMixin, _Generative):
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
        with _seeded(self.random_state):
            model = gaussian_mixture.GaussianMixture(
                x.shape[1],
                operator.index(self.n_components),
                self.covariance_type,
                min_scale=self.min_scale,
                missing=self.missing,
            ).double()
            _climb(self, model, x, restarts=operator.index(self.n_init))
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


class FactorAnalysis(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Generative):
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
    _kind: Any = factor_analysis.FactorAnalysis

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
        with _seeded(self.random_state):
            number = operator.index(self.n_components)
            model = self._kind(x.shape[1], number, missing=self.missing).double()
            if self.missing == "marginalise":
                _climb(self, model, x, restarts=1)
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

    _kind = factor_analysis.ProbabilisticPCA


class PCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Adapter):
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


class _Discriminant(ClassifierMixin, _Generative):
    _covariance = ""

    def __init__(self, *, random_state: Any = None) -> None:
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "_Discriminant":
        """Fits the rows `X`, `(N, D)`, and their labels `y`, `(N,)`."""
        x, labels = self._rows(X, y, reset=True)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        count = len(self.classes_)
        if count < 2:
            raise ValueError(f"{type(self).__name__}: expected labels of 2 classes, got 1 class.")
        with _seeded(self.random_state):
            model = discriminant.GaussianDiscriminant(x.shape[1], count, self._covariance).double()
        self.model_ = model.maximum_likelihood(x, torch.tensor(codes))
        return self

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Returns the log probabilities of the classes for each row, `(N, C)`."""
        return self._map(lambda x: self.model_.posterior(x).logits, X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probabilities of the classes for each row, `(N, C)`."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable class of each row."""
        best = self.predict_log_proba(X).argmax(1)
        return self.classes_[best]

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows that the model generates, and their classes."""
        x, codes = self._draw(n_samples)
        return x, self.classes_[codes]

    @property
    def priors_(self) -> np.ndarray:
        return self.model_.logits.detach().softmax(0).numpy()

    @property
    def means_(self) -> np.ndarray:
        return self.model_.locs.detach().numpy()


class LinearDiscriminantAnalysis(_Discriminant):
    """A classifier: a Gaussian for each class, with one covariance for all.

    The posterior is that of `sklearn.discriminant_analysis` from 1.9 on; before, it divided
    covariances by less than the number of rows. What differs: a singular covariance is an error;
    there is no shrinkage, no given `priors`, and no `transform`; the rows too have a density
    (`score_samples`), and new ones can be drawn (`sample`).

    Arguments:
        random_state: Of `sample`.

    Attributes:
        model_: The fitted `ppl_models.GaussianDiscriminant`.
        classes_, priors_, means_, covariance_: As in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> print(f"{LinearDiscriminantAnalysis().fit(x, y).score(x, y):.2f}")
        0.98
    """

    _covariance = "shared"

    @property
    def covariance_(self) -> np.ndarray:
        factor = self.model_.scale_tril.detach()
        return (factor @ factor.mT).numpy()


class QuadraticDiscriminantAnalysis(_Discriminant):
    """A classifier: a Gaussian for each class, with a covariance of its own.

    The posterior is that of `sklearn.discriminant_analysis` from 1.9 on; before, it divided
    covariances by less than the number of rows. What differs: a singular covariance is an error;
    there is no shrinkage and no given `priors`; the rows too have a density (`score_samples`), and
    new ones can be drawn (`sample`).

    Arguments:
        random_state: Of `sample`.

    Attributes:
        model_: The fitted `ppl_models.GaussianDiscriminant`.
        classes_, priors_, means_, covariance_: As in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> print(f"{QuadraticDiscriminantAnalysis().fit(x, y).score(x, y):.2f}")
        0.98
    """

    _covariance = "own"

    @property
    def covariance_(self) -> list[np.ndarray]:
        factors = self.model_.scale_tril.detach()
        return list((factors @ factors.mT).numpy())


@contextmanager
def _seeded(random_state: Any) -> Iterator[None]:
    """Draws from `random_state`, and leaves torch's generators as they were."""
    seed = check_random_state(random_state).randint(2**31 - 1)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # not those of GPUs, which are not used
        yield


def _climb(estimator: Any, model: nn.Module, x: Tensor, restarts: int) -> None:
    """Fits the model by EM, and says of it what scikit-learn says."""
    tol, max_iter = estimator.tol, operator.index(estimator.max_iter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fit_em: still rising")
        run = fit_em(model, x, restarts=restarts, max_steps=max_iter, tolerance=tol, progress=False)
    estimator.n_iter_ = run.steps
    estimator.lower_bounds_ = [-loss for loss in run.history["loss"]]
    estimator.lower_bound_ = estimator.lower_bounds_[-1]
    gain = estimator.lower_bound_ - estimator.lower_bounds_[-2] if run.steps > 1 else np.inf
    estimator.converged_ = gain <= tol
    if not estimator.converged_:
        warnings.warn(
            f"{type(estimator).__name__}: not converged to tol={tol} in max_iter={max_iter} steps. "
            f"Try a larger max_iter or tol.",
            ConvergenceWarning,
            stacklevel=3,
        )
