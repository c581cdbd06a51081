r"""A diagonal Gaussian for each row.

.. math:: q_\phi(z_n \mid x_n) = \mathcal{N}(\mu_\phi(x_n), \mathrm{diag}(\sigma_\phi^2(x_n)))

Shapes: `B` rows, `D` features, `K` latents.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114
"""

import pyro.distributions as dist
from torch import Tensor, nn

from guides.amortized.outputs import AmortizedGuide
from ppl_models.checks import check_means_and_scales


class AmortizedNormal(AmortizedGuide):
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
        super().__init__(num_features, num_latents, 2 * num_latents, encoder, site)

    def family(self, outputs: Tensor) -> dist.Independent:
        loc, log_scale = outputs.chunk(2, dim=-1)  # (B, K) each
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def check_outputs(self, outputs: Tensor) -> None:
        check_means_and_scales(outputs, self.num_latents, "AmortizedNormal", "encoder")
