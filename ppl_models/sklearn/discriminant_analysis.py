"""Discriminants, as in `sklearn.discriminant_analysis`."""

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from ppl_models.sklearn.base import Generative, seeded
from ppl_models.supervised import discriminant


class _Discriminant(ClassifierMixin, Generative):
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
        with seeded(self.random_state):
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
