r"""Variational autoencoder: a neural network from a latent vector to a row.

.. math::
    z_n &\sim p(z), \quad \mathcal{N}(0, I) \text{ by default} \\
    x_n \mid z_n &\sim p(x \mid \mathrm{decoder}(z_n))

Shapes: `B` rows, `D` features, `K` latents.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114
"""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_models.checks import check_rows
from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood, check_outputs
from ppl_models.missing import check_missing, observed_only
from ppl_models.nn import MLP
from ppl_models.plates import data_plate
from ppl_models.priors import StandardNormal, check_prior
from ppl_models.prompt.lines import in_a_line


class VAE(nn.Module):
    r"""The generative side of a variational autoencoder, with latent site `z`.

    Its evidence has no closed form: `log_evidence` gives a lower bound, with a guide.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of its latent vector, `K`.
        likelihood: What the outputs of the decoder mean.
        decoder: A module from `(B, K)` to `(B, D * likelihood.num_outputs)`. Default: a
            multilayer perceptron with two hidden layers of 128.
        prior: A module whose call gives the distribution of a latent vector, such as
            `MixturePrior`, `VampPrior` or `FlowPrior` of `ppl_models.priors`; it is learned with
            the rest. Default: the standard normal distribution.
        missing: What NaN in a row means: `"error"`, or `"marginalise"` for a pixel that was not
            observed, and counts nothing: given `z` pixels are independent, so that leaving one out
            of the likelihood integrates it out, exactly. The guide's encoder has to take such rows:
            `MissingInput` of `ppl_models.nn`. `impute(vae, guide, x)` draws what is missing.

    Raises:
        TypeError: If `likelihood` or `prior` is none.
        ValueError: If the prior is not one of vectors of `num_latents`, or `missing` is neither.

    Example:
        >>> vae = VAE(num_features=64, num_latents=8, likelihood=Bernoulli())
        >>> vae(size=5).shape  # five fresh rows
        torch.Size([5, 64])
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        likelihood: Likelihood = Bernoulli(),
        decoder: nn.Module | None = None,
        prior: nn.Module | None = None,
        missing: str = "error",
    ) -> None:
        super().__init__()
        check_likelihood(likelihood)
        self.num_features = num_features
        self.num_latents = num_latents
        self.likelihood = likelihood
        check_missing(missing)
        self.missing = missing
        num_outputs = num_features * likelihood.num_outputs
        self.decoder = MLP(num_latents, num_outputs) if decoder is None else decoder
        self.prior = StandardNormal(num_latents) if prior is None else prior
        check_prior(self.prior, num_latents)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, D)`, of `size` in all; without them draws `size` rows."""
        check_rows(x, self.num_features, "VAE")

        with data_plate(x, size):
            z = pyro.sample("z", self.prior())  # (B, K)
            density = self._density(z)
            if self.missing == "marginalise":
                density = observed_only(density)
            return pyro.sample("x", density, obs=x)

    def mean(self, z: Tensor) -> Tensor:
        r"""Returns :math:`\mathbb{E}[x \mid z]`, with shape `(*, D)`."""
        return self._density(z).mean

    def _density(self, z: Tensor) -> dist.TorchDistribution:
        # Densities are summed in the precision of the latent, whatever the network's.
        outputs = self.decoder(z).to(z.dtype)  # (B, D * num_outputs)
        check_outputs(outputs, self.num_features, self.likelihood, "VAE")
        return self.likelihood(outputs)
