r"""Whether independent restarts agree: R-hat of the posteriors that they came to.

.. math::
    \hat{R}^2 = 1 + \frac{B}{W} - \frac{1}{S}

of the variance :math:`B` of the means of `K` restarts and the mean :math:`W` of their variances:
of ranks, of halves, and of distances from the median too, as ArviZ has it, so that restarts that
differ in their spread are seen as well. Draws of a guide are independent: what is left of R-hat
above one is not the noise of a sampler but what the restarts differ by, in the units of the
posterior. A shift of some 0.5 standard deviations between four of them gives 1.1.

What it catches: a fit that has not converged, or one with several ends: modes, columns that change
places or signs (`relabel`, `align` first). What it cannot: restarts that agree on the wrong
posterior: see `khat` and `sbc`.

References:
    | Robust, Accurate Stochastic Optimization for Variational Inference (Dhaka et al., 2020)
    | https://arxiv.org/abs/2009.00666
    | Rank-Normalization, Folding, and Localization: An Improved R-hat (Vehtari et al., 2021)
    | https://doi.org/10.1214/20-BA1221
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ppl_models.checks import check_at_least
from ppl_models.infer.evidence.arviz import from_pyro_svi
from ppl_models.infer.evidence.groups import groups_of
from ppl_models.prompt.lines import in_words

THRESHOLD = 1.1
Fit = tuple[Callable[..., Any], Callable[..., Any] | None]


@dataclass(frozen=True)
class Rhat:
    """R-hat of each latent, over independent restarts.

    Attributes:
        value: By site, with the shape of its value; infinite where restarts are points that differ.
        restarts: How many there are.
        threshold: Above which they do not agree.

    Example:
        >>> import numpy as np
        >>> found = Rhat({"z": np.array([1.001, 1.52])}, restarts=4)
        >>> found.agree
        False
    """

    value: dict[str, np.ndarray]
    restarts: int
    threshold: float = THRESHOLD

    __repr__ = in_words

    @property
    def largest(self) -> float:
        """The largest R-hat of all."""
        return max(float(values.max()) for values in self.value.values())

    @property
    def agree(self) -> bool:
        """Whether the restarts came to one posterior."""
        return self.largest <= self.threshold

    def __str__(self) -> str:
        worst = sorted(self.value, key=lambda name: -self.value[name].max())
        shown = ", ".join(f"{name} {self.value[name].max():.3f}" for name in worst[:5])
        shown += ", ..." if len(worst) > 5 else ""
        verdict = "agree" if self.agree else "do not agree"
        return (
            f"{self.restarts} restarts {verdict}: R-hat up to {self.largest:.3f} (threshold "
            f"{self.threshold:g}); {shown}"
        )


def rhat(
    fits: Sequence[Fit], *data: Tensor, num_samples: int = 1000, seed: int | None = None
) -> Rhat:
    """Returns R-hat of the latents, with the draws of each restart as a chain.

    Arguments:
        fits: A model and its guide for each restart, fitted from different seeds.
        data: The rows, as the models take them.
        num_samples: The number of draws of each.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Raises:
        TypeError: If they are no pairs of a model and a guide.
        ValueError: If there are fewer than two, one comes twice, or their latents differ.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from ppl_models import data_plate, elbo, fit
        >>> def model(x=None, size=None):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with data_plate(x, size):
        ...         return pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> x, fits = torch.randn(20), []
        >>> for seed in range(3):
        ...     objective = elbo(model, AutoNormal)
        ...     run = fit(objective, x, epochs=500, lr=0.02, seed=seed)
        ...     fits.append((model, objective.guide))
        >>> rhat(fits, x, seed=0).agree
        True
    """
    check_at_least(4, num_samples=num_samples)
    _check_fits(fits)
    posteriors = [
        _posterior(*fit, data, num_samples, None if seed is None else seed + n)
        for n, fit in enumerate(fits)
    ]
    _check_alike(posteriors)
    return Rhat({name: _rhat([p[name] for p in posteriors]) for name in posteriors[0]}, len(fits))


def _posterior(
    model: Any, guide: Any, data: tuple[Tensor, ...], num_samples: int, seed: int | None
) -> dict[str, np.ndarray]:
    """The draws of each latent, `(S, *)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not looked at here, such as a log-likelihood
        found = from_pyro_svi(model, guide, *data, num_samples=num_samples, seed=seed)
    posterior = groups_of(found).get("posterior")
    if posterior is None:
        raise ValueError(
            "rhat: expected latents that a guide draws, got a model without any, or with "
            "enumerated ones alone. Try the losses of the restarts, run.history."
        )
    return {str(name): variable.values[0] for name, variable in posterior.data_vars.items()}


def _rhat(chains: list[np.ndarray]) -> np.ndarray:
    """That of each number of a latent; one of points that are the same."""
    import arviz as az  # slow to import
    import xarray

    stacked = np.stack(chains).astype(np.float64)  # (K, S, *)
    names = ["chain", "draw", *(f"dim_{n}" for n in range(stacked.ndim - 2))]
    with np.errstate(all="ignore"):
        found = az.rhat(xarray.Dataset({"x": (names, stacked)}))["x"].values
    still = np.ptp(stacked, axis=1).max(0) == 0  # points, of which there is no spread to compare
    apart = np.ptp(stacked, axis=(0, 1)) > 0
    values: np.ndarray = np.where(still, np.where(apart, np.inf, 1.0), found)
    return values


def _check_fits(fits: Any) -> None:
    pairs = isinstance(fits, Sequence) and all(isinstance(f, tuple) and len(f) == 2 for f in fits)
    if not pairs:
        raise TypeError(
            "rhat: expected a list of pairs, a model and its guide for each restart. Try "
            "rhat([(model, first), (model, second)], x)."
        )
    if len(fits) < 2:
        raise ValueError(
            f"rhat: expected two restarts or more, got {len(fits)}. Try the same fit from another "
            f"seed, with a guide that is made anew."
        )
    guides = [id(guide) if guide is not None else id(model) for model, guide in fits]
    if len(set(guides)) < len(guides):
        raise ValueError(
            "rhat: expected independent restarts, got one guide several times. Try a guide that is "
            "made anew for each, and fitted from another seed."
        )


def _check_alike(posteriors: list[dict[str, np.ndarray]]) -> None:
    shapes = [{name: x.shape for name, x in posterior.items()} for posterior in posteriors]
    for n, other in enumerate(shapes[1:], 2):
        if other != shapes[0]:
            raise ValueError(
                f"rhat: expected the same latents in each restart, got {shapes[0]} in the first "
                f"and {other} in number {n}. Try the same model for all."
            )
