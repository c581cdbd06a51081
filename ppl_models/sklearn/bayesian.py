r"""Bayesian mixtures, as in `sklearn.mixture`.

.. math:: \log p(x) \ge \mathbb{E}_q \left[ \log
    \frac{p(x, z, \pi, \mu, \Sigma)}{q(z) \, q(\pi, \mu, \Sigma)} \right]

Shapes: `N` rows, `K` components, `D` features.
"""

import math
import operator
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_models.checks import (
    check_at_least,
    check_choice,
    check_count,
    check_finite,
    check_positive,
    check_resolution,
)
from ppl_models.mixtures import bayesian
from ppl_models.mixtures.conjugate import ConjugateMixture
from ppl_models.mixtures.mean_field import Ascent, ascend, best_ascent
from ppl_models.sklearn.base import seeded, tell
from ppl_models.sklearn.mixture import Mixture
from ppl_models.sklearn.starts import KINDS, Start
from ppl_models.sklearn.words import said_in_their_words

SINGULAR = 1e-12  # an eigenvalue of correlations that is rounding
OURS = {"dirichlet_process": "stick-breaking", "dirichlet_distribution": "dirichlet"}


class BayesianGaussianMixture(Mixture):
    r"""A Bayesian mixture of Gaussians by mean field, with the interface of `sklearn.mixture`.

    What it has more: `sample_weight`; a lower bound of the evidence with all of its constants; a
    density of new rows that is one; and better ends, from starts with 1, 2, ... and `K` clusters,
    of which components are taken out as long as the bound is the better for it. The first of
    `n_init` starts is that of `n_init=1`, so that more never end lower. Components come by size.

    With `"full"` and `"dirichlet_distribution"` the priors are scikit-learn's, and so is the
    posterior from the same start. What differs otherwise: the last stick of a Dirichlet process is
    all that is left, where scikit-learn's leaves some of it; and `"diag"` and `"spherical"` have
    the expected log-determinant of such covariances, where scikit-learn takes that of full ones.
    There is no `"tied"`, and no `reg_covar`: the prior keeps covariances from zero.

    Arguments:
        n_components: The most components, `K`: those not needed stay empty.
        covariance_type: `"full"`, `"diag"` or `"spherical"`.
        tol: Stop when a step raises the bound by no more, in nats of all rows.
        reg_covar: 0: what is added to covariances, beside the prior, belongs to no posterior.
        max_iter: The largest number of steps, from where a few of them have found the best start.
        n_init: The number of starts, of which the best end is kept.
        init_params: `"kmeans"`: the best of clusterings with 1, 2, ... and `K` clusters. Else one
            start: `"k-means++"`, `"random_from_data"` or `"random"`.
        weight_concentration_prior_type: `"dirichlet_process"` or `"dirichlet_distribution"`.
        weight_concentration_prior: :math:`\alpha`. Default: `1 / K`.
        mean_precision_prior: :math:`\kappa_0`, how many rows `mean_prior` is worth. Default: 1.
        mean_prior: :math:`m_0`, `(D,)`. Default: the mean of the rows.
        degrees_of_freedom_prior: :math:`\nu_0`, more than `D - 1`. Default: `D`.
        covariance_prior: :math:`\Psi_0`, `(D, D)` if full, `(D,)` if diagonal, else a number; about
            :math:`\nu_0` times a covariance. Default: that of the rows.
        random_state: Of the starts, and of `sample`.
        warm_start: Whether a fit goes on where the one before has ended.

    Attributes:
        model_: The `ppl_models.BayesianGaussianMixture`, with these priors.
        posterior_: The mean field, in the parameters of the library: as a guide,
            `lambda x, size=None: model_.sample_shared(posterior_)`.
        weights_: The posterior means of the weights, `(K,)`.
        means_: The posterior means of the means, `(K, D)`.
        precisions_: Those of the precisions, in the shapes of scikit-learn.
        covariances_: Their inverses.
        mean_precision_: Of the posterior, by component.
        degrees_of_freedom_: Of the posterior, by component.
        weight_concentration_prior_: Of the prior, as are `mean_precision_prior_`, `mean_prior_`,
            `degrees_of_freedom_prior_` and `covariance_prior_`.
        converged_: Whether the best start got to `tol`.
        n_iter_: Its steps.
        lower_bound_: The lower bound of the log evidence of all rows, in nats, at its end.
            scikit-learn's lacks constants.
        lower_bounds_: The same after each step.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> mixture = BayesianGaussianMixture(n_components=6, n_init=3, random_state=0).fit(x)
        >>> mixture.means_.shape, (mixture.weights_ > 0.05).sum().item()
        ((6, 4), 2)
    """

    posterior_: ConjugateMixture

    def __init__(
        self,
        *,
        n_components: int = 1,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 0.0,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weight_concentration_prior_type: str = "dirichlet_process",
        weight_concentration_prior: float | None = None,
        mean_precision_prior: float | None = None,
        mean_prior: Any = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.random_state = random_state
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "BayesianGaussianMixture":
        """Fits the rows `X`, `(N, D)`, which count `sample_weight` times; `y` is ignored."""
        x = self._rows(X, reset=True)
        weight = self._weight(sample_weight, x)
        if weight is not None:
            x, weight = x[weight > 0], weight[weight > 0]
        with said_in_their_words(), seeded(self.random_state):
            self._check(x)
            model = self._with_priors(x, weight)
            resumed = self.warm_start and hasattr(self, "model_")
            best = self._ascent(model.prior, x, weight, resumed)
        before = [self.lower_bound_] if resumed else []
        tell(self, [*before, *best.bounds], resumed)
        self.model_, self.posterior_ = model, best.posterior
        return self

    def _check(self, x: Tensor) -> None:
        """Raises unless the arguments are some, and there are rows enough, which differ."""
        check_choice("covariance_type", self.covariance_type, ["full", "diag", "spherical"])
        check_choice(
            "weight_concentration_prior_type", self.weight_concentration_prior_type, list(OURS)
        )
        check_choice("init_params", self.init_params, KINDS)
        check_count(n_init=operator.index(self.n_init))
        check_at_least(0, max_iter=operator.index(self.max_iter))
        if not self.tol >= 0:
            raise ValueError(f"tol: expected a number of nats, 0 or more, got {self.tol!r}.")
        if self.reg_covar != 0:
            raise ValueError(
                f"reg_covar: expected 0, as what is added to covariances belongs to no posterior, "
                f"got {self.reg_covar!r}. Try covariance_prior, which keeps them from zero."
            )
        name, count = type(self).__name__, operator.index(self.n_components)
        check_count(n_components=count)
        check_finite(x, name, minimum=max(2, count))
        check_resolution(x.mean(0), x.std(0, correction=0), x.dtype, name)

    def _with_priors(self, x: Tensor, weight: Tensor | None) -> Any:
        """The model with the priors that are given, or those of rows like these."""
        count, features = operator.index(self.n_components), x.shape[1]
        alpha, kappa, nu = (
            default if given is None else given
            for given, default in (
                (self.weight_concentration_prior, 1 / count),
                (self.mean_precision_prior, 1.0),
                (self.degrees_of_freedom_prior, features),
            )
        )
        check_positive(weight_concentration_prior=alpha, mean_precision_prior=kappa)
        if not features - 1 < nu < np.inf:
            raise ValueError(
                f"degrees_of_freedom_prior: expected a number above {features - 1}, one less than "
                f"the number of features, got {nu!r}."
            )
        of_rows = _moments(x, weight)
        self.weight_concentration_prior_, self.mean_precision_prior_ = alpha, kappa
        self.degrees_of_freedom_prior_ = nu
        self.mean_prior_ = _given("mean_prior", self.mean_prior, of_rows.mean)
        self.covariance_prior_ = self._covariance_prior(of_rows)

        weights = OURS[self.weight_concentration_prior_type]
        kind = bayesian.BayesianGaussianMixture
        model = kind(features, count, self.covariance_type, weights, concentration=1.0).double()
        (model.sticks[:, 1:] if model.stick_breaking else model.sticks).mul_(alpha)
        repeats = features if self.covariance_type == "spherical" else 1
        model.loc.copy_(torch.as_tensor(self.mean_prior_))
        model.strength.fill_(kappa)
        model.df.fill_(repeats * nu)  # of as many numbers, all of one variance
        model.scale.copy_(repeats * _blocks(self.covariance_prior_, self.covariance_type))
        return model

    def _covariance_prior(self, of_rows: "Moments") -> Any:
        """The prior of covariances, in the shape of scikit-learn."""
        full = self.covariance_type == "full"
        known = None
        if self.covariance_prior is None:
            known = of_rows.covariance()
            known = known if full else known.diagonal()
            known = known.mean() if self.covariance_type == "spherical" else known
        shape = (len(of_rows.mean),) * {"full": 2, "diag": 1, "spherical": 0}[self.covariance_type]
        prior = _given("covariance_prior", self.covariance_prior, known, shape)
        matrix = torch.as_tensor(prior)
        least = _least_eigenvalue(matrix) if full else matrix.min().item()
        if not least > (SINGULAR if full else 0):
            kind = "a symmetric, positive-definite matrix" if full else "positive variances"
            whose = ""
            if known is not None:
                whose = " for rows of which some columns are constant or follow from others"
            raise ValueError(
                f"covariance_prior: expected {kind}, got a smallest "
                f"{'eigenvalue of its correlations' if full else 'one'} of {least:.3g}{whose}. Try "
                f"one of your own, or fewer columns."
            )
        return prior

    def _ascent(
        self, prior: ConjugateMixture, x: Tensor, weight: Tensor | None, resumed: bool
    ) -> Ascent:
        """The best of all starts, or the one that goes on."""
        steps, tolerance = operator.index(self.max_iter), self.tol / len(x)
        if resumed:
            _check_alike(self.posterior_, prior)
            start: Tensor = self.posterior_.expected_log_joint(x).softmax(1)
            return ascend(prior, x, start, max(steps, 1), tolerance, weight)
        ends = []
        for _ in range(operator.index(self.n_init)):  # in turn, so that more begin as fewer do
            labels = Start(self.init_params, None, None, None).labels(x, weight, len(prior.loc))
            if labels is None:
                ends.append(best_ascent(prior, x, 1, steps + 1, tolerance, weight))
            else:
                start = one_hot(labels, len(prior.loc)).to(x.dtype)
                ends.append(ascend(prior, x, start, steps + 1, tolerance, weight))
        return max(ends, key=lambda end: end.bound)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probabilities of the components for each row in the mean field, `(N, K)`."""
        return self._map(lambda x: self.posterior_.expected_log_joint(x).softmax(1), X)

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns the log density of each row, in nats: that of new ones, given those fitted.

        A mixture of Student's t, by the mean field, `posterior_.predictive()`. It integrates to
        one; scikit-learn's, a mixture of exponentials of expected logarithms, to less.
        """
        return self._map(lambda x: self._predictive().log_prob(x), X)

    @torch.no_grad()
    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Returns new rows given those fitted, each by itself, and the components of them."""
        check_is_fitted(self, "model_")
        check_count(n_samples=n_samples)
        predictive: Any = self._predictive()
        with seeded(self.random_state):
            z = predictive.mixture_distribution.sample((n_samples,))
            each = predictive.component_distribution.sample((n_samples,))  # (N, K, D)
        return each[torch.arange(n_samples), z].numpy(), z.numpy()

    def _predictive(self) -> TorchDistribution:
        return self.posterior_.predictive()

    @property
    def weights_(self) -> np.ndarray:
        return self.posterior_.expected_weights().numpy()

    @property
    def means_(self) -> np.ndarray:
        return self.posterior_.loc.numpy()

    @property
    def covariances_(self) -> np.ndarray:
        found = self.posterior_.scale / self.posterior_.df[:, None, None, None]  # (K, G, F, F)
        return {"full": found[:, 0], "diag": found[:, :, 0, 0], "spherical": found[:, 0, 0, 0]}[
            self.model_.covariance
        ].numpy()

    @property
    def precisions_cholesky_(self) -> np.ndarray:
        """U, with which precisions are U U^T."""
        covariances = torch.from_numpy(self.covariances_)
        if self.model_.covariance != "full":
            return covariances.rsqrt().numpy()
        root = torch.linalg.cholesky(covariances)
        identity = torch.eye(root.shape[-1], dtype=root.dtype)
        return torch.linalg.solve_triangular(root, identity, upper=False).mT.numpy()

    @property
    def weight_concentration_(self) -> Any:
        """Of the Dirichlet, `(K,)`; or both parameters of each stick, the last one being whole."""
        count = self.posterior_.strength[-1:] - self.model_.strength
        ours, others = self.posterior_.sticks.unbind(1)
        if self.model_.stick_breaking:
            return torch.cat([ours, 1 + count]).numpy(), torch.cat([others, 0 * count]).numpy()
        last = others[-1:] if len(others) else self.weight_concentration_prior_ + count
        return torch.cat([ours, last]).numpy()

    @property
    def mean_precision_(self) -> np.ndarray:
        return self.posterior_.strength.numpy()

    @property
    def degrees_of_freedom_(self) -> np.ndarray:
        repeats = self.posterior_.loc.shape[1] if self.model_.covariance == "spherical" else 1
        return (self.posterior_.df / repeats).numpy()


class Moments(NamedTuple):
    """The mean of some rows, `(D,)`, what they differ from it by, and how often each counts."""

    mean: Tensor
    rest: Tensor
    weight: Tensor

    def covariance(self) -> Tensor:
        """The covariance, `(D, D)`, for which one of the rows is not counted."""
        count = self.weight.sum() - 1
        if count <= 0:
            raise ValueError(
                f"covariance_prior: expected one, or weights whose sum is more than 1, got "
                f"sample_weight with sum {self.weight.sum().item():.3g}."
            )
        return (self.weight[:, None] * self.rest).mT @ self.rest / count


def _moments(x: Tensor, weight: Tensor | None) -> Moments:
    weight = x.new_ones(len(x)) if weight is None else weight
    rest = x - x[0]  # exactly zero where a column is constant
    shift = weight @ rest / weight.sum()
    return Moments(x[0] + shift, rest - shift, weight)


def _given(name: str, value: Any, known: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """What is given, or else what is known, in double precision and of that shape."""
    found = known.numpy() if value is None else np.asarray(value, dtype=np.float64)
    wanted = tuple(known.shape) if shape is None else shape
    if found.shape != wanted or not np.isfinite(found).all():
        raise ValueError(
            f"{name}: expected finite numbers with shape {wanted}, got {found.shape} with "
            f"{int((~np.isfinite(found)).sum())} that are not finite."
        )
    return found


def _least_eigenvalue(matrix: Tensor) -> float:
    """The least eigenvalue of the correlations; NaN of what is not symmetric, or has none."""
    scale = matrix.diagonal().clamp(min=0).sqrt()
    if not torch.allclose(matrix, matrix.mT) or not (scale > 0).all():
        return math.nan
    return torch.linalg.eigvalsh(matrix / scale / scale[:, None])[0].item()


def _blocks(prior: np.ndarray, covariance: str) -> Tensor:
    """The prior of covariances as one of blocks, `(G, F, F)`."""
    found = torch.as_tensor(prior)
    return found[None] if covariance == "full" else found.reshape(-1, 1, 1)


def _check_alike(before: ConjugateMixture, now: ConjugateMixture) -> None:
    """Raises where a fit cannot go on from the one before."""
    was, is_now = ((*p.loc.shape, *p.scale.shape[1:3]) for p in (before, now))
    if was != is_now:
        raise ValueError(
            f"warm_start: expected the n_components, features and blocks of covariance_type of "
            f"the fit before, {was}, got {is_now}. Try warm_start=False."
        )
