"""What the estimators share: rows are checked as scikit-learn does, and handed to a model."""

import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pyro import poutine
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from ppl_models.checks import check_count
from ppl_models.infer.training.em import fit_em
from ppl_models.user_line import warn


class Adapter(BaseEstimator):
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


class Generative(Adapter):
    """Those whose model has a density: of rows, and to draw rows from."""

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns the log density of each row, in nats."""
        return self._map(lambda x: self.model_.evidence().log_prob(x), X)

    @torch.no_grad()
    def _draw(self, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows that the model generates, and the latents behind them."""
        check_is_fitted(self, "model_")
        check_count(n_samples=n_samples)
        with seeded(self.random_state):
            nodes = poutine.trace(self.model_).get_trace(size=n_samples).nodes
        latent = nodes["z" if "z" in nodes else "y"]["value"]
        return nodes["x"]["value"].numpy(), latent.numpy()


@contextmanager
def seeded(random_state: Any) -> Iterator[None]:
    """Draws from `random_state`, and leaves torch's generators as they were."""
    seed = check_random_state(random_state).randint(2**31 - 1)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # not those of GPUs, which are not used
        yield


def fit_by_em(estimator: Any, model: nn.Module, x: Tensor, restarts: int) -> None:
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
        warn(
            f"{type(estimator).__name__}: not converged to tol={tol} in max_iter={max_iter} steps. "
            f"Try a larger max_iter or tol.",
            ConvergenceWarning,
        )
