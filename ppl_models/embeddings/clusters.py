r"""From rows to one of `C` clusters: a variational autoencoder with a discrete latent at its top.

.. math::
    c_n &\sim \mathrm{Categorical}(\pi) \\
    z_n \mid c_n &\sim \mathcal{N}(\mu_{c_n}, \mathrm{diag}(\sigma_{c_n}^2)) \\
    x_n \mid z_n &\sim p(x \mid \mathrm{decoder}(z_n))

Rows have the density of a `VAE` with a `MixturePrior`; here the component is a site, and can be
read. It is summed over in the model, exactly, so that a guide of `z` is enough:

.. math::
    q(z, c \mid x) = q(z \mid x) \, p(c \mid z), \qquad
    p(c \mid z) \propto \pi_c \, \mathcal{N}(z \mid \mu_c, \mathrm{diag}(\sigma_c^2))

A one-hot `c` is the shortest of all embeddings: a row is one of `C` words.

Shapes: `B` rows, `D` features, `K` latents, `C` clusters.

References:
    | Variational Deep Embedding: An Unsupervised and Generative Approach to Clustering
    | (Jiang et al., 2017), https://arxiv.org/abs/1611.05148
"""

from typing import Protocol

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_at_least, check_count, check_finite, check_rows
from ppl_models.likelihoods import Bernoulli, Likelihood, check_likelihood, check_outputs
from ppl_models.nn import MLP
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line

WHERE = "ClusteredVAE"


class HasPosterior(Protocol):
    """A guide with `posterior(x)`: a distribution over the latents of the rows `x`."""

    def posterior(self, x: Tensor) -> dist.TorchDistribution: ...


class ClusteredVAE(nn.Module):
    r"""A VAE with latent site `z`, and above it the enumerated site `cluster`.

    Clusters that start at random often end in one: start the decoder and the guide as those of a
    `VAE`, by `warm_start(model, from_=vae)`, and the clusters by `initialise` at the guide's draws.

    Arguments:
        num_features: The length of a row, `D`.
        num_clusters: The number of clusters, `C`.
        num_latents: The length of a latent vector, `K`.
        likelihood: What the outputs of the decoder mean.
        decoder: A module from `(B, K)` to `(B, D * likelihood.num_outputs)`. Default: a
            multilayer perceptron with two hidden layers of 128.

    Raises:
        TypeError: If `likelihood` is none.
        ValueError: If a size is not positive.

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import elbo
        >>> model, guide = ClusteredVAE(64, num_clusters=10, num_latents=8), AmortizedNormal(64, 8)
        >>> x = model(size=5)
        >>> elbo(model, guide).loss(x).shape, model.assignments(guide, x).shape
        (torch.Size([]), torch.Size([5, 10]))
    """

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_clusters: int,
        num_latents: int,
        likelihood: Likelihood = Bernoulli(),
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_likelihood(likelihood)
        check_count(num_features=num_features, num_latents=num_latents)
        check_at_least(2, num_clusters=num_clusters)
        self.num_features, self.num_clusters = num_features, num_clusters
        self.num_latents, self.likelihood = num_latents, likelihood
        num_outputs = num_features * likelihood.num_outputs
        self.decoder = MLP(num_latents, num_outputs) if decoder is None else decoder
        self.logits = nn.Parameter(torch.zeros(num_clusters))  # log pi, up to a constant, (C,)
        self.locs = nn.Parameter(torch.randn(num_clusters, num_latents))  # mu, (C, K)
        self.log_scales = nn.Parameter(torch.zeros(num_clusters, num_latents))  # log sigma

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, D)`, of `size` in all; without them draws `size` rows."""
        check_rows(x, self.num_features, WHERE)
        clusters = dist.Categorical(logits=self.logits)

        with data_plate(x, size):
            c = pyro.sample("cluster", clusters, infer={"enumerate": "parallel"})  # (B,)
            prior = dist.Normal(self.locs[c], self.log_scales[c].exp())
            z = pyro.sample("z", prior.to_event(1))  # (B, K)
            return pyro.sample("x", self._density(z), obs=x)

    def cluster(self, z: Tensor) -> dist.Categorical:
        r"""Returns :math:`p(c \mid z)`, exactly, with the batch shape of the latents `(*, K)`."""
        parts = dist.Normal(self.locs, self.log_scales.exp()).to_event(1)
        joint = self.logits.log_softmax(0) + parts.log_prob(z.unsqueeze(-2))  # (*, C)
        return dist.Categorical(logits=joint)

    @torch.no_grad()
    def assignments(self, guide: HasPosterior, x: Tensor, num_samples: int = 50) -> Tensor:
        r"""Returns the mean of :math:`p(c \mid z)` over draws of the guide, `(B, C)`.

        Arguments:
            guide: A guide with `posterior(x)`, such as `AmortizedNormal`.
            x: The rows, `(B, D)`.
            num_samples: The number of draws of each row.
        """
        check_count(num_samples=num_samples)
        z = guide.posterior(x).sample((num_samples,))  # (S, B, K)
        return self.cluster(z).probs.mean(0)

    @torch.no_grad()
    def initialise(self, z: Tensor, restarts: int = 10, seed: int = 0) -> None:
        """Sets the clusters to a mixture of Gaussians of latents, by scikit-learn's EM.

        Arguments:
            z: Draws of a guide, `(N, K)`, of more rows than clusters. Its means would not do: a
                latent that is not used has no spread of means, and that of the prior in its draws.
            restarts: The number of runs of EM.
            seed: Seeds them.
        """
        from sklearn.mixture import GaussianMixture  # here, because it is slow to import

        check_rows(z, self.num_latents, f"{WHERE}.initialise")
        check_finite(z, "z", minimum=self.num_clusters + 1)
        mixture = GaussianMixture(
            self.num_clusters, covariance_type="diag", n_init=restarts, random_state=seed
        ).fit(z.double().cpu().numpy())
        self.logits.copy_(torch.from_numpy(mixture.weights_).log())
        self.locs.copy_(torch.from_numpy(mixture.means_))
        self.log_scales.copy_(torch.from_numpy(mixture.covariances_).log() / 2)

    def mean(self, z: Tensor) -> Tensor:
        r"""Returns :math:`\mathbb{E}[x \mid z]`, with shape `(*, D)`."""
        return self._density(z).mean

    def _density(self, z: Tensor) -> dist.TorchDistribution:
        outputs = self.decoder(z).to(z.dtype)  # (B, D * num_outputs)
        check_outputs(outputs, self.num_features, self.likelihood, WHERE)
        return self.likelihood(outputs)
