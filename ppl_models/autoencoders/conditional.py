r"""Conditional variational autoencoder: rows given their labels.

.. math::
    z_n &\sim \mathcal{N}(0, I) \\
    x_n \mid z_n, y_n &\sim p(x \mid \mathrm{decoder}(z_n, y_n))

The labels are given, and have no density: evidences are of rows given labels. What the label says
the latent need not, so that `z` is left with what is common to all classes, such as the style of
a hand.

Shapes: `B` rows, `D` features, `K` latents, `C` classes.

References:
    | Learning Structured Output Representation using Deep Conditional Generative Models
    | (Sohn et al., 2015)
    | https://papers.nips.cc/paper/5775
"""

import pyro
import torch
from torch import Tensor, nn

from ppl_models.checks import check_count, check_labels, check_rows
from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood, check_outputs
from ppl_models.nn import MLP
from ppl_models.plates import data_plate
from ppl_models.priors import StandardNormal, check_prior
from ppl_models.prompt.lines import in_a_line


class ConditionalVAE(nn.Module):
    r"""The generative side of a VAE of rows with labels, with latent site `z`.

    As a program it takes rows and labels, `model(x, y)`, or labels alone, `model(y=y)`, to sample a
    row of each. Its guide is `ConditionalNormal`.

    Arguments:
        num_features: The length of a row, `D`.
        num_classes: The number of classes, `C`.
        num_latents: The length of its latent vector, `K`.
        likelihood: What the outputs of the decoder mean.
        decoder: A module from `(B, K + C)`, the latents and then the label as zeros and a one, to
            `(B, D * likelihood.num_outputs)`. Default: a multilayer perceptron with two hidden
            layers of 128.
        prior: As in `VAE`; the same for all classes.

    Raises:
        TypeError: If `likelihood` or `prior` is none.
        ValueError: If there are no classes, or the prior is not one of vectors of `num_latents`.

    Example:
        >>> vae = ConditionalVAE(num_features=64, num_classes=10, num_latents=8)
        >>> vae(y=torch.arange(10)).shape  # a row of each class
        torch.Size([10, 64])
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_latents: int,
        likelihood: Likelihood = Bernoulli(),
        decoder: nn.Module | None = None,
        prior: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_likelihood(likelihood)
        check_count(num_classes=num_classes)
        self.num_features = num_features
        self.num_classes, self.num_latents = num_classes, num_latents
        self.likelihood = likelihood
        inputs, outputs = num_latents + num_classes, num_features * likelihood.num_outputs
        self.decoder = MLP(inputs, outputs) if decoder is None else decoder
        self.prior = StandardNormal(num_latents) if prior is None else prior
        check_prior(self.prior, num_latents)

    def forward(
        self, x: Tensor | None = None, y: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Scores rows `x` given labels `y`, of `size` in all, or draws a row of each."""
        check_rows(x, self.num_features, "ConditionalVAE")
        if y is None:
            raise ValueError(
                "ConditionalVAE: expected labels, got none. Try model(x, y) to score rows, "
                "model(y=y) to sample a row of each label, or SemiSupervisedVAE, which draws them."
            )
        check_labels(y, self.num_classes, None if x is None else len(x), "ConditionalVAE")

        with data_plate(y if x is None else x, size):
            z = pyro.sample("z", self.prior())  # (B, K)
            return pyro.sample("x", self.likelihood(self._outputs(z, y)), obs=x)

    def mean(self, z: Tensor, y: Tensor) -> Tensor:
        r"""Returns :math:`\mathbb{E}[x \mid z, y]`, `(B, D)`, for `(B, K)` and labels `(B,)`."""
        check_labels(y, self.num_classes, len(z), "ConditionalVAE.mean")
        return self.likelihood(self._outputs(z, y)).mean

    def _outputs(self, z: Tensor, y: Tensor) -> Tensor:
        outputs = self.decoder(torch.cat([z, one_hot(y, self.num_classes, z)], 1)).to(z.dtype)
        return check_outputs(outputs, self.num_features, self.likelihood, "ConditionalVAE")


def one_hot(y: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Labels of any shape as zeros and a one, `(*, C)`, in the precision of another tensor."""
    return (y.unsqueeze(-1) == torch.arange(num_classes, device=y.device)).to(like.dtype)
