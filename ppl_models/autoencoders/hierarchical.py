r"""Variational autoencoder with two layers of latents.

.. math::
    z^{(2)}_n &\sim \mathcal{N}(0, I) \\
    z_n \mid z^{(2)}_n &\sim \mathcal{N}(\mu(z^{(2)}_n), \mathrm{diag}(\sigma^2(z^{(2)}_n))) \\
    x_n \mid z_n &\sim p(x \mid \mathrm{decoder}(z_n))

The layer that touches the row is site `z`, as in other models; the one above it is site `z2`. With
the upper one integrated out it is a VAE with a learned prior, an infinite mixture.

Shapes: `B` rows, `D` features, `K` latents, `K2` latents above them.

References:
    | Stochastic Backpropagation (Rezende et al., 2014), https://arxiv.org/abs/1401.4082
    | Ladder Variational Autoencoders (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_means_and_scales, check_rows
from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood, check_outputs
from ppl_models.nn import MLP
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line


class HierarchicalVAE(nn.Module):
    r"""The generative side, with latent sites `z2` and `z`.

    Its evidence has no closed form: `log_evidence` gives a lower bound, with a guide.
    `BottomUpNormal` draws the layers from the row upwards, `LadderNormal` from the top downwards,
    with this model's own opinion of the lower layer, which keeps the upper one in use more often.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of the latent vector that touches it, `K`.
        num_top_latents: The length of the one above, `K2`.
        likelihood: What the outputs of the decoder mean.
        decoder: A module from `(B, K)` to `(B, D * likelihood.num_outputs)`. Default: a
            multilayer perceptron with two hidden layers of 128.
        top_decoder: A module from `(B, K2)` to `(B, 2 * K)`, means and log-scales. Default:
            likewise.

    Raises:
        TypeError: If `likelihood` is none.

    Example:
        >>> vae = HierarchicalVAE(num_features=64, num_latents=8, num_top_latents=4)
        >>> vae(size=5).shape  # five fresh rows
        torch.Size([5, 64])
    """

    top_loc: Tensor

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        num_top_latents: int,
        likelihood: Likelihood = Bernoulli(),
        decoder: nn.Module | None = None,
        top_decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_likelihood(likelihood)
        self.num_features = num_features
        self.num_latents, self.num_top_latents = num_latents, num_top_latents
        self.likelihood = likelihood
        num_outputs = num_features * likelihood.num_outputs
        self.decoder = MLP(num_latents, num_outputs) if decoder is None else decoder
        above = MLP(num_top_latents, 2 * num_latents) if top_decoder is None else top_decoder
        self.top_decoder = above
        self.register_buffer("top_loc", torch.zeros(num_top_latents), persistent=False)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, D)`, of `size` in all; without them draws `size` rows."""
        check_rows(x, self.num_features, "HierarchicalVAE")
        top = dist.Normal(self.top_loc, torch.ones_like(self.top_loc)).to_event(1)

        with data_plate(x, size):
            z2 = pyro.sample("z2", top)  # (B, K2)
            z = pyro.sample("z", self.conditional(z2))  # (B, K)
            return pyro.sample("x", self._density(z), obs=x)

    def conditional(self, z2: Tensor) -> dist.Independent:
        r"""Returns :math:`p(z \mid z^{(2)})`, for `z2` of shape `(B, K2)`."""
        outputs = self.top_decoder(z2).to(z2.dtype)  # (B, 2 * K)
        check_means_and_scales(outputs, self.num_latents, "HierarchicalVAE", "top_decoder")
        loc, log_scale = outputs.chunk(2, dim=-1)  # (B, K) each
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def mean(self, z: Tensor) -> Tensor:
        r"""Returns :math:`\mathbb{E}[x \mid z]`, with shape `(*, D)`."""
        return self._density(z).mean

    def _density(self, z: Tensor) -> dist.TorchDistribution:
        outputs = self.decoder(z).to(z.dtype)  # (B, D * num_outputs)
        check_outputs(outputs, self.num_features, self.likelihood, "HierarchicalVAE")
        return self.likelihood(outputs)
