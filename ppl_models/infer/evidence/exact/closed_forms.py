r"""What some models know exactly: their evidence, their posterior, what is missing of a row.

They are methods beside `forward`, and are used instead of draws wherever a model has them.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import pyro
import pyro.distributions as dist
from pyro import poutine
from torch import Tensor

from ppl_models.infer.evidence.weights import Draws
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.program import Program
from ppl_models.plates import data_plate
from ppl_models.scoped import kept_rng


@runtime_checkable
class HasEvidence(Protocol):
    """A model that knows p(x)."""

    def evidence(self) -> dist.TorchDistribution:
        """Returns the distribution of a row."""


@runtime_checkable
class HasPosterior(Protocol):
    """A model that knows p(z | x)."""

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Returns the distribution of the latents of the rows `x`, with batch shape `(B,)`."""


@runtime_checkable
class HasImpute(Protocol):
    """A model that knows what is missing of a row, given the rest."""

    def impute(self, x: Tensor, num_samples: int) -> Tensor:
        """Returns draws of rows with their missing entries (NaN) filled in, `(S, B, D)`."""


def is_of_its_program(model: Any, name: str) -> bool:
    """Whether a method is of the program that runs, not of a `forward` that was replaced.

    A subclass may replace it, or the object itself, by an attribute of that name.
    """
    places = [getattr(model, "__dict__", {}), *map(vars, type(model).__mro__)]

    def place(name: str) -> int:
        return next((i for i, names in enumerate(places) if name in names), len(places))

    return place(name) <= min(place("forward"), place("__call__")) < len(places)


def posterior_guide(model: Program, data: tuple[Tensor, ...]) -> Callable[..., Any] | None:
    """The posterior that a model knows, as a guide, or None.

    It stands for site `"z"` of the rows, where that is all that the model leaves to a guide.
    """
    known = model.program
    if not isinstance(known, HasPosterior) or len(data) != 1:
        return None
    rows = data[0][:2]
    with checks.noting_batch((rows,)), kept_rng(rows.device):
        trace = poutine.trace(model).get_trace(rows, size=len(rows))
    latents = sites.latent_sites(trace)
    left = latents.keys() - sites.enumerated_sites(trace)
    if left != {"z"} or not sites.in_data_plate(latents["z"]):
        return None

    def guide(x: Tensor, size: int | None = None) -> None:
        with data_plate(x, size):
            pyro.sample("z", known.posterior(x))

    return guide


def check_posterior(draws: Draws, model: Program) -> None:
    r"""Raises unless some draws are of the posterior: all draws of a row have the same weight then.

    .. math:: \frac{p(x, z)}{p(z \mid x)} = p(x)

    It is another where a class has a new `forward`, and a posterior from the class that it is of.
    """
    size = 1 + draws.log_p.abs().amax(0)
    if not ((draws.log_weight - draws.log_weight[:1]).abs() <= 1e-4 * size).all():
        raise ValueError(
            f"model: {type(model.program).__name__}.posterior(x) is not the posterior of the "
            f"program, whose draws of a row differ in weight. Try a guide, such as "
            f"AmortizedNormal(num_features, num_latents), or .double() where these are rounding."
        )
