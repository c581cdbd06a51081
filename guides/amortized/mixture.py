r"""A mixture of diagonal Gaussians for each row.

.. math::
    q(z \mid x) = \sum_c \pi_c(x) \, \mathcal{N}(z \mid \mu_c(x), \mathrm{diag}(\sigma_c^2(x)))

Its density is the sum itself, so that each weight of a draw is exact; a component is no site. Draws
have gradients by implicit reparameterisation: of the distribution functions of a draw's elements,
each given those before it, :math:`F_k(z_k \mid z_{<k}; \phi) = u_k` is held, and so

.. math::
    \frac{\partial z}{\partial \phi} =
    - \left( \frac{\partial F}{\partial z} \right)^{-1} \frac{\partial F}{\partial \phi}

with a lower triangular matrix, known in closed form. This has the gradient of the weights, too,
where draws of a component would have none of them. (A site for the component would make the bound a
looser one, unless it is enumerated, which runs the model once for each.) Pyro's own
`MixtureOfDiagNormals` is not it: its gradient of the weights is another one where scales are not 1.

Shapes: `B` rows, `D` features, `K` latents, `C` components.

References:
    | Implicit Reparameterization Gradients (Figurnov et al., 2018)
    | https://arxiv.org/abs/1805.08498
"""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from guides.amortized.outputs import AmortizedGuide
from ppl_models.checks import check_at_least


class AmortizedMixture(AmortizedGuide):
    r"""A guide that is a mixture of diagonal Gaussians for each row.

    A component that is far from the posterior loses its weight before it gets there, the sooner
    the larger the steps are: with a learning rate of 0.001 they find their places, with 0.01 one is
    often left.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of its latent vector, `K`.
        num_components: The number of Gaussians, `C`.
        encoder: A module from `(B, D)` to `(B, C * (1 + 2 * K))`: the logits of the components,
            their means and their log-scales, one component after the other. Default: a multilayer
            perceptron with two hidden layers of 128.
        site: The name of the latent site.

    Raises:
        ValueError: If there are not two components or more; at a call, if the encoder gives
            another number of outputs.

    Example:
        >>> guide = AmortizedMixture(num_features=64, num_latents=8, num_components=3)
        >>> guide.posterior(torch.zeros(5, 64)).mean.shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        num_components: int = 4,
        encoder: nn.Module | None = None,
        site: str = "z",
    ) -> None:
        check_at_least(2, num_components=num_components)
        num_outputs = num_components * (1 + 2 * num_latents)
        super().__init__(num_features, num_latents, num_outputs, encoder, site)
        self.num_components = num_components
        # Drawn, not zero: components that are alike would stay alike.
        self.register_buffer("starts", torch.randn(num_components, num_latents))  # (C, K)

    starts: Tensor

    def family(self, outputs: Tensor) -> "ReparameterisedMixture":
        C, K = self.num_components, self.num_latents
        logits, locs, log_scales = outputs.split([C, C * K, C * K], dim=-1)
        locs = locs.unflatten(-1, (C, K)) + self.starts.to(outputs.dtype)  # (B, C, K)
        parts = dist.Normal(locs, log_scales.unflatten(-1, (C, K)).exp()).to_event(1)
        return ReparameterisedMixture(dist.Categorical(logits=logits), parts)


class ReparameterisedMixture(dist.MixtureSameFamily):
    """A mixture of diagonal Gaussians whose draws have gradients.

    Arguments are those of `MixtureSameFamily`, whose components are `Normal(...).to_event(1)`.
    """

    has_rsample = True

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        z = self.sample(torch.Size(sample_shape))  # (*, K)
        if not torch.is_grad_enabled():
            return z
        functions = self._distribution_functions(z)  # F, (*, K)
        moved = (functions - functions.detach()).unsqueeze(-1)
        slopes = self._slopes(z)  # (*, K, K)
        return z - torch.linalg.solve_triangular(slopes, moved, upper=False).squeeze(-1)

    def _of_components(self, z: Tensor) -> tuple[dist.Normal, Tensor, Tensor, Tensor]:
        """Components, log-densities of elements, and weights given those before: `(*, C, K)`."""
        normal = self.component_distribution.base_dist
        value = z.unsqueeze(-2)
        log_prob = normal.log_prob(value)
        before = log_prob.cumsum(-1) - log_prob
        weights = (self.mixture_distribution.logits.unsqueeze(-1) + before).softmax(-2)
        return normal, value, log_prob, weights

    def _distribution_functions(self, z: Tensor) -> Tensor:
        r"""Returns :math:`F_k = \sum_c w_c(z_{<k}) \, \Phi((z_k - \mu_{ck}) / \sigma_{ck})`."""
        normal, value, _, weights = self._of_components(z)
        return (weights * normal.cdf(value)).sum(-2)

    @torch.no_grad()
    def _slopes(self, z: Tensor) -> Tensor:
        r"""Returns :math:`\partial F_k / \partial z_j`, `(*, K, K)`: of what is not after `k`."""
        normal, value, log_prob, weights = self._of_components(z)
        weighted = weights * normal.cdf(value)  # (*, C, K)
        scores = (normal.loc - value) / normal.scale.square()  # of log N, by its element
        # By the weights: d w_c / d z_j = w_c (s_cj - sum_b w_b s_bj), where the w are those at k.
        means = torch.einsum("...ck,...cj->...kj", weights, scores)
        through = torch.einsum("...ck,...cj->...kj", weighted, scores)
        slopes = through - weighted.sum(-2).unsqueeze(-1) * means
        density = (weights * log_prob.exp()).sum(-2)  # of an element given those before
        return slopes.tril(-1) + torch.diag_embed(density)
