r"""Variational autoencoder: a neural network from a Gaussian latent to a row.

.. math::
    z_n &\sim \mathcal{N}(0, I) \\
    x_n \mid z_n &\sim p(x \mid \mathrm{decoder}(z_n))

Shapes: `B` rows, `D` features, `K` latents.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood
from ppl_models.nn import MLP
from ppl_models.plates import check_rows, data_plate


class VAE(nn.Module):
    r"""The generative side of a variational autoencoder, with latent site `z`.

    Its evidence has no closed form: `log_evidence` gives a lower bound, with a guide.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of its latent vector, `K`.
        likelihood: What the outputs of the decoder mean.
        decoder: A module from `(B, K)` to `(B, D * likelihood.num_outputs)`. Default: a
            multilayer perceptron with two hidden layers of 128.

    Raises:
        TypeError: If `likelihood` is none.

    Example:
        >>> vae = VAE(num_features=64, num_latents=8, likelihood=Bernoulli())
        >>> vae(size=5).shape  # five fresh rows
        torch.Size([5, 64])
    """

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        likelihood: Likelihood = Bernoulli(),
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_likelihood(likelihood)
        self.num_features = num_features
        self.num_latents = num_latents
        self.likelihood = likelihood
        num_outputs = num_features * likelihood.num_outputs
        self.decoder = MLP(num_latents, num_outputs) if decoder is None else decoder
        self.register_buffer("prior_loc", torch.zeros(num_latents), persistent=False)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        check_rows(x, self.num_features, "VAE")
        prior = dist.Normal(self.prior_loc, 1.0).to_event(1)

        with data_plate(x, size):
            z = pyro.sample("z", prior)  # (B, K)
            # Densities are summed in the precision of the latent, whatever the network's.
            outputs = self.decoder(z).to(z.dtype)  # (B, D * num_outputs)
            return pyro.sample("x", self.likelihood(outputs), obs=x)

    def mean(self, z: Tensor) -> Tensor:
        r"""Returns :math:`\mathbb{E}[x \mid z]`, with shape `(*, D)`."""
        return self.likelihood(self.decoder(z).to(z.dtype)).mean
