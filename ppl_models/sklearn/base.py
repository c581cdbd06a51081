"""What the estimators share: rows are checked as scikit-learn does, and handed to a model."""

import copy
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
from torch import Tensor

from ppl_models.checks import check_at_least, check_count
from ppl_models.infer.training.em import fit_em
from ppl_models.row_weights import check_sample_weight
from ppl_models.user_line import warn


class Adapter(BaseEstimator):
    """What the estimators share: they check rows, and hand them to a model with a density."""

    model_: Any
    random_state: Any
    _min_features = 1

    def _rows(self, X: Any, reset: bool = False) -> Tensor:
        """`X` as a tensor; the checks are scikit-learn's."""
        if not reset:
            check_is_fitted(self, "model_")
        skips = getattr(self, "missing", "error") == "marginalise"
        found = validate_data(
            self,
            X,
            reset=reset,
            dtype=np.float64,
            ensure_min_samples=2 if reset else 1,
            ensure_min_features=self._min_features if reset else 1,
            ensure_all_finite="allow-nan" if skips else True,
        )
        return torch.tensor(found)

    def _weight(self, sample_weight: Any, x: Tensor) -> Tensor | None:
        """The weights of rows as a tensor, None where all count alike."""
        if sample_weight is None:
            return None
        weight = torch.tensor(np.asarray(sample_weight, dtype=np.float64))
        check_sample_weight(weight, len(x), type(self).__name__)
        return weight

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = getattr(self, "missing", "error") == "marginalise"
        return tags

    @torch.no_grad()
    def _map(self, function: Callable[[Tensor], Tensor], X: Any, many: int = 4096) -> np.ndarray:
        """`function` of all rows, a part of so many at a time."""
        return torch.cat([function(x) for x in self._rows(X).split(many)]).numpy()

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns the log density of each row, in nats."""
        return self._map(lambda x: self.model_.evidence().log_prob(x), X)

    def score(self, X: Any, y: Any = None) -> float:
        """Returns the mean log density, in nats per row."""
        return float(self.score_samples(X).mean())

    @torch.no_grad()
    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows that the model generates, and the latents behind them."""
        check_is_fitted(self, "model_")
        check_count(n_samples=n_samples)
        with seeded(self.random_state):
            nodes = poutine.trace(self.model_).get_trace(size=n_samples).nodes
        return nodes["x"]["value"].numpy(), nodes["z"]["value"].numpy()


@contextmanager
def seeded(random_state: Any) -> Iterator[None]:
    """Draws from `random_state`, and leaves torch's generators as they were."""
    seed = check_random_state(random_state).randint(2**31 - 1)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # not those of GPUs, which are not used
        yield


def fit_by_em(
    estimator: Any,
    model: Any,
    x: Tensor,
    weight: Tensor | None,
    starts: int = 1,
    begin: Callable[[Any], None] | None = None,
    resumed: bool = False,
) -> Any:
    """Fits a model by EM, says of it what scikit-learn says, and returns it.

    Arguments:
        estimator: What is told of the fit.
        model: The model.
        x: The rows.
        weight: Their weights.
        starts: How many there are; the best end is kept.
        begin: What chooses a start; else the model's own.
        resumed: Whether the fit goes on where one has ended.
    """
    check_at_least(0, max_iter=operator.index(estimator.max_iter))
    check_count(n_init=starts)
    settings = {
        "sample_weight": weight,
        # The evidence of a step is known by the next one alone.
        "max_steps": operator.index(estimator.max_iter) + 1,
        "tolerance": estimator.tol,
        "progress": bool(getattr(estimator, "verbose", 0)),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fit_em: still rising")
        if begin is None:
            ends = [(fit_em(model, x, restarts=starts, **settings), model)]
        else:
            ends = []
            for _ in range(starts):
                candidate = copy.deepcopy(model)
                begin(candidate)
                ends.append((fit_em(candidate, x, initialise=False, **settings), candidate))
    run, best = min(ends, key=lambda end: end[0].history["loss"][-1])
    tell(estimator, [-loss for loss in run.history["loss"]], resumed)
    return best


def tell(estimator: Any, values: list[float], resumed: bool) -> None:
    """Sets what scikit-learn's estimators know of a fit, from the evidence at each place."""
    tol, max_iter = estimator.tol, estimator.max_iter
    estimator.n_iter_ = len(values) - 1
    estimator.lower_bounds_ = values[1:]
    estimator.lower_bound_ = values[-1]
    gain = values[-1] - values[-2] if len(values) > 1 else np.inf
    # As in scikit-learn a step that is the first and the only one says nothing.
    estimator.converged_ = bool(gain <= tol and (resumed or max_iter > 1))
    if not estimator.converged_ and max_iter > 0:
        warn(
            f"{type(estimator).__name__}: not converged to tol={tol} in max_iter={max_iter} steps. "
            f"Try a larger max_iter or tol.",
            ConvergenceWarning,
        )
