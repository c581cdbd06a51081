r"""Amortised guides: one network gives the posterior of every row.

.. math:: q_\phi(z_n \mid x_n) = \mathcal{N}(\mu_\phi(x_n), \mathrm{diag}(\sigma_\phi^2(x_n)))

Shapes: `B` rows, `D` features, `K` latents.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114
"""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_models.checks import check_means_and_scales, check_rows
from ppl_models.nn import MLP
from ppl_models.plates import data_plate


class AmortizedNormal(nn.Module):
    r"""A diagonal Gaussian guide for any model with one latent vector per row.

    It knows nothing of the model but the name of that site, so the same class serves a
    VAE, factor analysis and a model written elsewhere. Labels beside the rows are not looked at.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of its latent vector, `K`.
        encoder: A module from `(B, D)` to `(B, 2 * K)`, the means and the log-scales. Default:
            a multilayer perceptron with two hidden layers of 128.
        site: The name of the latent site.

    Raises:
        ValueError: At a call, if the encoder does not give `2 * K` outputs.

    Example:
        >>> import torch
        >>> guide = AmortizedNormal(num_features=64, num_latents=8)
        >>> guide.posterior(torch.zeros(5, 64)).mean.shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        encoder: nn.Module | None = None,
        site: str = "z",
    ) -> None:
        super().__init__()
        self.num_features, self.num_latents = num_features, num_latents
        self.site = site
        self.encoder = MLP(num_features, 2 * num_latents) if encoder is None else encoder

    def forward(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        with data_plate(x, size):
            return pyro.sample(self.site, self.posterior(x))

    def posterior(self, x: Tensor) -> dist.Independent:
        r"""Returns :math:`q_\phi(z \mid x)`, under the name that exact models use.

        For `x` of shape `(B, D)` it has batch shape `(B,)` and event shape `(K,)`.
        """
        check_rows(x, self.num_features, "AmortizedNormal")
        outputs = self.encoder(x).to(x.dtype)  # (B, 2 * K)
        check_means_and_scales(outputs, self.num_latents, "AmortizedNormal", "encoder")
        loc, log_scale = outputs.chunk(2, dim=-1)  # (B, K) each
        return dist.Normal(loc, log_scale.exp()).to_event(1)
