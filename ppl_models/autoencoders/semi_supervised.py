r"""Semi-supervised variational autoencoder: a few rows have labels, most have none.

.. math::
    y_n &\sim \mathrm{Categorical}(\pi) \\
    z_n &\sim \mathcal{N}(0, I) \\
    x_n \mid z_n, y_n &\sim p(x \mid \mathrm{decoder}(z_n, y_n))

A label that is not known is a latent, and is summed over. With the guide :math:`q(y \mid x) \, q(z
\mid x, y)` the bound of a row without a label is (M2 of Kingma et al.)

.. math::
    \mathcal{U}(x) = \sum_y q(y \mid x) \left[ \mathcal{L}(x, y) - \log q(y \mid x) \right], \qquad
    \mathcal{L}(x, y) = \mathbb{E}_{q(z \mid x, y)}
    \left[ \log \frac{p(x, y, z)}{q(z \mid x, y)} \right]

and that of a row with one is :math:`\mathcal{L}(x, y)`.

Shapes: `B` rows, `D` features, `K` latents, `C` classes.

References:
    | Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014)
    | https://arxiv.org/abs/1406.5298
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.autoencoders.conditional import one_hot
from ppl_models.checks import check_count, check_labels, check_rows
from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood, check_outputs
from ppl_models.nn import MLP
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line

WHERE = "SemiSupervisedVAE"
UNKNOWN = -1


class SemiSupervisedVAE(nn.Module):
    r"""The generative side, with latent sites `y` and `z`.

    As a program it takes rows and labels, `model(x, y)`, of which those that are not known are -1;
    rows alone, `model(x)`, without any label; labels alone, `model(y=y)`, to sample a row of each;
    or neither, `model(size=10)`. Its density is that of the rows and of the labels that are known.

    There are two guides. `LabelNormal` has a classifier. With `AmortizedNormal`, whose latents
    know nothing of the label, the labels are summed over in the model, exactly.

    Arguments:
        num_features: The length of a row, `D`.
        num_classes: The number of classes, `C`.
        num_latents: The length of its latent vector, `K`.
        likelihood: What the outputs of the decoder mean.
        decoder: A module from `(B, K + C)`, the latents and then the label as zeros and a one, to
            `(B, D * likelihood.num_outputs)`. Default: a multilayer perceptron with two hidden
            layers of 128.

    Raises:
        TypeError: If `likelihood` is none.
        ValueError: If there are no classes.

    Example:
        >>> from guides.conditional import LabelNormal
        >>> from ppl_models import elbo
        >>> vae = SemiSupervisedVAE(num_features=64, num_classes=10, num_latents=8)
        >>> x, y = vae(size=5), torch.tensor([3, -1, -1, 7, -1])
        >>> elbo(vae, LabelNormal(64, 10, 8)).loss(x, y).shape
        torch.Size([])
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_latents: int,
        likelihood: Likelihood = Bernoulli(),
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_likelihood(likelihood)
        check_count(num_classes=num_classes)
        self.num_features = num_features
        self.num_classes, self.num_latents = num_classes, num_latents
        self.likelihood = likelihood
        inputs, outputs = num_latents + num_classes, num_features * likelihood.num_outputs
        self.decoder = MLP(inputs, outputs) if decoder is None else decoder
        self.logits = nn.Parameter(torch.zeros(num_classes))  # log pi, up to a constant, (C,)
        self.register_buffer("prior_loc", torch.zeros(num_latents), persistent=False)

    prior_loc: Tensor

    def forward(
        self, x: Tensor | None = None, y: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Scores rows `x` with labels `y` (-1: unknown), of `size` in all, or draws."""
        check_rows(x, self.num_features, WHERE)
        self._check_known_labels(x, y)
        classes = dist.Categorical(logits=self.logits)
        prior = dist.Normal(self.prior_loc, torch.ones_like(self.prior_loc)).to_event(1)

        with data_plate(y if x is None else x, size):
            # Labels to sample rows of are given; beside rows some may be latent, and all are.
            given = y if x is None else None
            label = pyro.sample("y", classes, obs=given, infer={"enumerate": "parallel"})
            if x is not None and y is not None:
                wrong = (y != UNKNOWN) & (label != y)  # (B,), or (C, 1, B) enumerated
                pyro.factor("known", torch.where(wrong, -torch.inf, 0.0).to(x.dtype))
            z = pyro.sample("z", prior)  # (B, K)
            return pyro.sample("x", self.likelihood(self._outputs(z, label)), obs=x)

    def mean(self, z: Tensor, y: Tensor) -> Tensor:
        r"""Returns :math:`\mathbb{E}[x \mid z, y]`, `(B, D)`, for `(B, K)` and labels `(B,)`."""
        check_labels(y, self.num_classes, len(z), WHERE)
        return self.likelihood(self._outputs(z, y)).mean

    def _outputs(self, z: Tensor, y: Tensor) -> Tensor:
        """The outputs of the decoder, also with dimensions of enumerated labels in front."""
        label = one_hot(y, self.num_classes, z)
        shape = torch.broadcast_shapes(z.shape[:-1], label.shape[:-1])
        inputs = torch.cat([z.expand(*shape, -1), label.expand(*shape, -1)], -1)
        outputs = self.decoder(inputs.flatten(0, -2)).to(z.dtype)
        check_outputs(outputs, self.num_features, self.likelihood, WHERE)
        return outputs.unflatten(0, shape)

    def _check_known_labels(self, x: Tensor | None, y: Tensor | None) -> None:
        """Raises unless labels are those of rows, or, beside rows, not known."""
        where = type(self).__name__
        if x is None or not isinstance(y, Tensor):
            check_labels(y, self.num_classes, None if x is None else len(x), where)
        else:
            check_labels(y.where(y != UNKNOWN, y.new_zeros(())), self.num_classes, len(x), where)
