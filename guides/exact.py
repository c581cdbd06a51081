r"""The exact posterior of a model that knows it, as a guide.

.. math:: q(z_n \mid x_n) = p(z_n \mid x_n)

With it the ELBO equals the log evidence for any draw and any minibatch.
"""

from typing import Protocol

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line


class HasPosterior(Protocol):
    """A model with `posterior(x)`: a distribution over the latents of the rows `x`."""

    def posterior(self, x: Tensor) -> dist.TorchDistribution: ...


class ExactPosterior:
    r"""A guide without parameters of its own, for models with `posterior(x)`.

    Arguments:
        model: A model with a closed-form posterior, such as factor analysis.
        site: The name of the latent site.

    Raises:
        TypeError: If the model has no `posterior`.

    Example:
        >>> import torch
        >>> from ppl_models import FactorAnalysis
        >>> guide = ExactPosterior(FactorAnalysis(num_features=5, num_factors=2))
        >>> guide(torch.zeros(3, 5)).shape
        torch.Size([3, 2])
    """

    __repr__ = in_a_line

    def __init__(self, model: HasPosterior, site: str = "z") -> None:
        if not hasattr(model, "posterior"):
            raise TypeError(
                f"ExactPosterior: {type(model).__name__} has no posterior(x). "
                f"Try AmortizedNormal, or an autoguide of Pyro."
            )
        self.model = model
        self.site = site

    def __call__(self, x: Tensor, size: int | None = None) -> Tensor:
        with data_plate(x, size):
            return pyro.sample(self.site, self.model.posterior(x))
