r"""Guides of two layers of latents: from the row upwards, or from the top downwards.

The plain one follows the arrows of the model backwards,

.. math:: q(z \mid x) \, q(z^{(2)} \mid z)

The ladder draws the upper layer first, and then the lower one by both what the row says of it, with
mean :math:`\hat\mu(x)` and variance :math:`\hat\sigma^2(x)`, and what the model says, with mean
:math:`\mu(z^{(2)})` and variance :math:`\sigma^2(z^{(2)})`: two Gaussians, multiplied.

.. math::
    q(z \mid x, z^{(2)}) = \mathcal{N} \left(
    \frac{\hat\mu \hat\sigma^{-2} + \mu \sigma^{-2}}{\hat\sigma^{-2} + \sigma^{-2}},
    \frac{1}{\hat\sigma^{-2} + \sigma^{-2}} \right)

which is the form of the exact posterior where the row says something Gaussian of each latent.

Shapes: `B` rows, `D` features, `K` latents, `K2` latents above them.

References:
    | Ladder Variational Autoencoders (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282
"""

import copy
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_models.checks import check_means_and_scales, check_rows
from ppl_models.nn import MLP
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line


class HasConditional(Protocol):
    """A model with `conditional(z2)`: a normal distribution over vectors `z`."""

    def conditional(self, z2: Tensor) -> dist.Independent: ...


class BottomUpNormal(nn.Module):
    """A guide of sites `z` and `z2`, from the row upwards.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of `z`, `K`.
        num_top_latents: The length of `z2`, `K2`.
        encoder: A module from `(B, D)` to `(B, 2 * K)`, means and log-scales. Default: a
            multilayer perceptron with two hidden layers of 128.
        top_encoder: A module from `(B, K)` to `(B, 2 * K2)`. Default: likewise.

    Example:
        >>> import torch
        >>> guide = BottomUpNormal(num_features=64, num_latents=8, num_top_latents=4)
        >>> guide(torch.zeros(5, 64)).shape
        torch.Size([5, 8])
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        num_top_latents: int,
        encoder: nn.Module | None = None,
        top_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_latents, self.num_top_latents = num_latents, num_top_latents
        self.encoder = MLP(num_features, 2 * num_latents) if encoder is None else encoder
        above = MLP(num_latents, 2 * num_top_latents) if top_encoder is None else top_encoder
        self.top_encoder = above

    def forward(self, x: Tensor, size: int | None = None) -> Tensor:
        """Draws `z` and, from it, `z2` of rows `x`, `(B, D)`, of `size` in all."""
        with data_plate(x, size):
            z = pyro.sample("z", self.posterior(x))  # (B, K)
            pyro.sample("z2", _normal(self, "top_encoder", z))  # (B, K2)
            return z

    def posterior(self, x: Tensor) -> dist.Independent:
        r"""Returns :math:`q(z \mid x)`."""
        check_rows(x, self.num_features, "BottomUpNormal", self)
        return _normal(self, "encoder", x)


class LadderNormal(nn.Module):
    """A guide of sites `z2` and `z`, from the top downwards, for a model with `conditional(z2)`.

    The parameters of the model's conditional are the model's: they are trained with it, and are
    not among those of this module.

    Arguments:
        model: The model it is for, such as `HierarchicalVAE`.
        num_features: The length of a row, `D`.
        num_latents: The length of `z`, `K`.
        num_top_latents: The length of `z2`, `K2`.
        encoder: A module from `(B, D)` to `(B, 2 * K)`, what a row says of `z`. Default: a
            multilayer perceptron with two hidden layers of 128.
        top_encoder: A module from `(B, D)` to `(B, 2 * K2)`, of `z2`. Default: likewise.

    Raises:
        TypeError: If the model has no `conditional`.

    Example:
        >>> import torch
        >>> from ppl_models.autoencoders.hierarchical import HierarchicalVAE
        >>> guide = LadderNormal(HierarchicalVAE(64, 8, 4), 64, 8, 4)
        >>> guide(torch.zeros(5, 64)).shape
        torch.Size([5, 8])
    """

    __repr__ = in_a_line

    def __init__(
        self,
        model: HasConditional,
        num_features: int,
        num_latents: int,
        num_top_latents: int,
        encoder: nn.Module | None = None,
        top_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(model, "conditional"):
            raise TypeError(
                f"LadderNormal: {type(model).__name__} has no conditional(z2). "
                f"Try a HierarchicalVAE, or BottomUpNormal."
            )
        self.num_features = num_features
        self.num_latents, self.num_top_latents = num_latents, num_top_latents
        self.conditional = model.conditional  # a method: the model does not become a part
        self.encoder = MLP(num_features, 2 * num_latents) if encoder is None else encoder
        above = MLP(num_features, 2 * num_top_latents) if top_encoder is None else top_encoder
        self.top_encoder = above

    def forward(self, x: Tensor, size: int | None = None) -> Tensor:
        """Draws `z2` and, from it, `z` of rows `x`, `(B, D)`, of `size` in all."""
        check_rows(x, self.num_features, "LadderNormal", self)
        with data_plate(x, size):
            z2 = pyro.sample("z2", _normal(self, "top_encoder", x))  # (B, K2)
            return pyro.sample("z", self.posterior(x, z2))  # (B, K)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LadderNormal":
        """Copies the guide along with its model: a copy alone would have a model that none trains.

        Raises:
            ValueError: If its model is not copied before it.
        """
        model = getattr(self.conditional, "__self__", None)
        if model is not None and id(model) not in memo:
            raise ValueError(
                "LadderNormal: a copy of it alone would have the conditional of a model that is "
                "not trained. Try both at once, model, guide = copy.deepcopy((model, guide))."
            )
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def posterior(self, x: Tensor, z2: Tensor) -> dist.Independent:
        r"""Returns :math:`q(z \mid x, z^{(2)})`."""
        said = _normal(self, "encoder", x).base_dist
        prior = self.conditional(z2).base_dist
        precision = said.scale**-2 + prior.scale**-2
        loc = (said.loc * said.scale**-2 + prior.loc * prior.scale**-2) / precision
        return dist.Normal(loc, precision**-0.5).to_event(1)


def _normal(guide: BottomUpNormal | LadderNormal, network: str, inputs: Tensor) -> dist.Independent:
    """The Gaussian whose means and log-scales a network of a guide gives."""
    outputs = getattr(guide, network)(inputs).to(inputs.dtype)
    count = guide.num_latents if network == "encoder" else guide.num_top_latents
    check_means_and_scales(outputs, count, type(guide).__name__, network)
    loc, log_scale = outputs.chunk(2, dim=-1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)
