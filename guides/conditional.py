r"""Amortised guides of rows with labels.

.. math::
    q_\phi(z_n \mid x_n, y_n) = \mathcal{N}(\mu_\phi(x_n, y_n), \mathrm{diag}(\sigma_\phi^2)),
    \qquad q_\phi(y_n \mid x_n) = \mathrm{Categorical}(\pi_\phi(x_n))

The second is a classifier, for labels that are not known.

Shapes: `B` rows, `D` features, `K` latents, `C` classes.

References:
    | Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014)
    | https://arxiv.org/abs/1406.5298
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_models.checks import check_means_and_scales, check_rows
from ppl_models.nn import MLP
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line

UNKNOWN = -1


class ConditionalNormal(nn.Module):
    """A diagonal Gaussian guide for a model with one latent vector a row, given its label.

    Arguments:
        num_features: The length of a row, `D`.
        num_classes: The number of classes, `C`.
        num_latents: The length of its latent vector, `K`.
        encoder: A module from `(B, D + C)`, the row and then the label as zeros and a one, to
            `(B, 2 * K)`, means and log-scales. Default: a multilayer perceptron with two hidden
            layers of 128.

    Example:
        >>> guide = ConditionalNormal(num_features=64, num_classes=10, num_latents=8)
        >>> guide.posterior(torch.zeros(5, 64), torch.arange(5)).mean.shape
        torch.Size([5, 8])
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_latents: int,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.num_classes = num_features, num_classes
        self.num_latents = num_latents
        inputs = num_features + num_classes
        self.encoder = MLP(inputs, 2 * num_latents) if encoder is None else encoder

    def forward(self, x: Tensor, y: Tensor, size: int | None = None) -> Tensor:
        """Draws `z` of rows `x` with labels `y`, of `size` in all."""
        _check_shape(x, y, type(self).__name__)
        with data_plate(x, size):
            return pyro.sample("z", self.posterior(x, y))

    def posterior(self, x: Tensor, y: Tensor) -> dist.Independent:
        r"""Returns :math:`q(z \mid x, y)`, for labels `(B,)`, or `(C, B)` where enumerated."""
        check_rows(x, self.num_features, type(self).__name__, self)
        return self._normal(x, y)

    def _normal(self, rows: Tensor, y: Tensor) -> dist.Independent:
        """What the encoder makes of rows, `(B, *)`, and labels."""
        label = (y.unsqueeze(-1) == torch.arange(self.num_classes, device=y.device)).to(rows.dtype)
        rows = rows.expand(*y.shape[:-1], *rows.shape)
        inputs = torch.cat([rows, label.expand(*rows.shape[:-1], self.num_classes)], -1)
        outputs = self.encoder(inputs.flatten(0, -2)).to(rows.dtype)  # one dimension of rows
        check_means_and_scales(outputs, self.num_latents, type(self).__name__, "encoder")
        loc, log_scale = outputs.unflatten(0, inputs.shape[:-1]).chunk(2, dim=-1)  # (*, B, K)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class LabelNormal(ConditionalNormal):
    r"""A guide of a label, where it is not known, and of the latent vector given it.

    A label that is known, and not -1, is itself; where it is not it is summed over. So
    `elbo(model, guide)` is the bound of Kingma et al. (M2), without their weight on the classifier,
    which learns from rows without labels only. With the weight:
    `fit(weighted({elbo(model, guide): 1.0, elbo(guide.classify): alpha}), (x, y))`.

    Arguments:
        num_features, num_classes, num_latents, encoder: As in `ConditionalNormal`.
        classifier: A module from `(B, D)` to `(B, C)`, the logits of the classes. Default: a
            multilayer perceptron with two hidden layers of 128.

    Example:
        >>> guide = LabelNormal(num_features=64, num_classes=10, num_latents=8)
        >>> guide.label(torch.zeros(5, 64)).probs.shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_latents: int,
        encoder: nn.Module | None = None,
        classifier: nn.Module | None = None,
    ) -> None:
        super().__init__(num_features, num_classes, num_latents, encoder)
        self.classifier = MLP(num_features, num_classes) if classifier is None else classifier

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Draws labels that `y` does not give, and `z`, of rows `x`, of `size` in all."""
        with data_plate(x, size):
            label = pyro.sample("y", self.label(x, y), infer={"enumerate": "parallel"})  # (B,)
            return pyro.sample("z", self.posterior(x, label))

    def label(self, x: Tensor, y: Tensor | None = None) -> dist.Categorical:
        r"""Returns :math:`q(y \mid x)`, all on the label of a row that has one."""
        check_rows(x, self.num_features, type(self).__name__, self)
        logits = self.classifier(x).to(x.dtype).log_softmax(-1)  # (B, C)
        if logits.shape != (len(x), self.num_classes):
            raise ValueError(
                f"{type(self).__name__}: expected its classifier to give a logit for each of "
                f"{self.num_classes} classes, with shape {(len(x), self.num_classes)}, got "
                f"{tuple(logits.shape)}. Try a network with {self.num_classes} outputs."
            )
        if y is None:
            return dist.Categorical(logits=logits)
        _check_shape(x, y, type(self).__name__)
        here = y.unsqueeze(-1) == torch.arange(self.num_classes, device=y.device)  # (B, C)
        given = torch.zeros_like(logits).masked_fill(~here, -torch.inf)
        # What is no label at all is left to the model to refuse.
        return dist.Categorical(logits=torch.where(here.any(-1, keepdim=True), given, logits))

    def classify(self, x: Tensor, y: Tensor, size: int | None = None) -> None:
        r"""A program: the known labels given the rows, :math:`q(y \mid x)`, for `elbo`."""
        density = self.label(x)
        with data_plate(x, size), poutine.mask(mask=y != UNKNOWN):
            pyro.sample("label", density, obs=y.clamp(min=0))


def _check_shape(x: Tensor, y: Tensor, where: str) -> None:
    """Raises unless there is one label for each row; which ones there are the model knows."""
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"{where}: expected one label for each row, with shape ({len(x)},), got "
            f"{tuple(y.shape)}. Try y.flatten(), or y.argmax(1) for one-hot labels."
        )
