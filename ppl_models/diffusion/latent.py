r"""Latent diffusion: a variational autoencoder whose prior is a diffusion model.

.. math::
    z_n &\sim p_{\mathrm{diffusion}}(z) \\
    x_n \mid z_n &\sim p(x \mid \mathrm{decoder}(z_n))

The posteriors of a VAE's rows, put together, are not quite its prior: some of what is drawn from
there lies where no row has been. A diffusion model learns where they are, in two stages: the VAE
first, then the diffusion model on draws of :math:`q(z \mid x)`. The evidence is a lower bound,

.. math::
    \log p(x) \ge \mathbb{E}_{q(z \mid x)} \left[ \log p(x \mid z) - \log q(z \mid x)
    + \mathbb{E}_{q(z_{0:T} \mid z)} \log \frac{p(z, z_{0:T})}{q(z_{0:T} \mid z)} \right]

Shapes: `B` rows, `D` features, `K` latents, `T` steps.

References:
    | Score-Based Generative Modeling in Latent Space (Vahdat et al., 2021)
    | https://arxiv.org/abs/2106.05931
    | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)
    | https://arxiv.org/abs/2112.10752
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_models.autoencoders.vae import VAE
from ppl_models.checks import check_rows
from ppl_models.diffusion.model import Diffusion
from ppl_models.likelihoods import check_outputs
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line


class LatentDiffusion(nn.Module):
    r"""A VAE with a diffusion prior, with latent sites `z` and, above it, `z_0` to `z_T`.

    Arguments:
        vae: A variational autoencoder. Its own prior is not used.
        diffusion: A diffusion model of its latent vectors, without a likelihood.

    Raises:
        TypeError: If the diffusion model is one of grey levels.
        ValueError: If its rows are no latent vectors of the VAE.

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import elbo, fit
        >>> from ppl_models.diffusion.denoising import denoising
        >>> x = torch.rand(100, 64).round()
        >>> vae, guide = VAE(num_features=64, num_latents=8), AmortizedNormal(64, 8)
        >>> _ = fit(elbo(vae, guide), x, epochs=2, seed=0)
        >>> diffusion = Diffusion(num_features=8, num_steps=10)
        >>> z = guide.posterior(x).sample()  # or Transformed(x, transform=...), anew each batch
        >>> _ = fit(denoising(diffusion), z, epochs=2, seed=0)
        >>> model = LatentDiffusion(vae, diffusion)
        >>> model(size=5).shape, elbo(model, model.noising(guide)).loss(x).shape
        (torch.Size([5, 64]), torch.Size([]))
    """

    __repr__ = in_a_line

    def __init__(self, vae: VAE, diffusion: Diffusion) -> None:
        super().__init__()
        if diffusion.likelihood is not None:
            raise TypeError(
                f"diffusion: latent vectors are real numbers, got a model of grey levels, "
                f"{diffusion.likelihood!r}. Try Diffusion(num_features={vae.num_latents})."
            )
        if diffusion.num_features != vae.num_latents:
            raise ValueError(
                f"diffusion: expected rows of {vae.num_latents} numbers, the latents of the VAE, "
                f"got num_features={diffusion.num_features}."
            )
        self.vae = vae
        self.diffusion = diffusion

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, D)`, of `size` in all; without them draws `size` rows."""
        check_rows(x, self.vae.num_features, "LatentDiffusion")

        with data_plate(x, size):
            z = pyro.sample("z", self.diffusion.read(self.diffusion.generate()))  # (B, K)
            outputs = self.vae.decoder(z).to(z.dtype)  # (B, D * num_outputs)
            check_outputs(outputs, self.vae.num_features, self.vae.likelihood, "LatentDiffusion")
            return pyro.sample("x", self.vae.likelihood(outputs), obs=x)

    def noising(self, guide: Any) -> "LatentNoising":
        """Returns the guide: that of the VAE, and the noising process above it."""
        return LatentNoising(guide, self.diffusion)

    @torch.no_grad()
    def sample(
        self,
        size: int,
        sampler: Callable[..., Tensor],
        num_steps: int | None = None,
        compile: bool = False,
        progress: bool = True,
    ) -> Tensor:
        r"""Returns the means :math:`\mathbb{E}[x \mid z]` of fresh latent vectors, `(size, D)`.

        The arguments are those of `Diffusion.sample`.
        """
        drawn = self.diffusion.sample(size, sampler, num_steps, compile=compile, progress=progress)
        return self.vae.mean(drawn)


class LatentNoising(nn.Module):
    r"""The guide of a latent diffusion model, :math:`q(z \mid x) \, q(z_{0:T} \mid z)`.

    Arguments:
        guide: A guide of the VAE with `posterior(x)`, such as `AmortizedNormal`.
        diffusion: The diffusion model.

    Raises:
        TypeError: If the guide has no posterior.
    """

    __repr__ = in_a_line

    def __init__(self, guide: Any, diffusion: Diffusion) -> None:
        super().__init__()
        if not hasattr(guide, "posterior"):
            raise TypeError(
                f"guide: expected one with posterior(x), got {type(guide).__name__}. "
                f"Try AmortizedNormal(num_features, num_latents)."
            )
        self.guide = guide
        self.diffusion = diffusion

    def forward(self, x: Tensor, size: int | None = None) -> Tensor:
        with data_plate(x, size):
            z = pyro.sample("z", self.guide.posterior(x))  # (B, K)
            self.diffusion.diffuse(z)
            return z
