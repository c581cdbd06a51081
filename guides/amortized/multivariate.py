r"""Gaussians whose latents depend on each other in the posterior.

.. math::
    q(z_n \mid x_n) &= \mathcal{N}(\mu_n, L_n L_n^\top) \\
    q(z_n \mid x_n) &= \mathcal{N}(\mu_n, \mathrm{diag}(\sigma_n^2) + F_n F_n^\top)

A diagonal one is as narrow, along each axis, as the posterior is with all other latents held: where
two latents have the correlation :math:`\rho` that is :math:`\sqrt{1 - \rho^2}` of their scale, and
costs :math:`-\frac{1}{2} \log(1 - \rho^2)` nats.

Shapes: `B` rows, `D` features, `K` latents, `R` directions.

References:
    | Auto-Encoding Variational Bayes, appendix F of An Introduction to Variational Autoencoders
    | (Kingma & Welling, 2019), https://arxiv.org/abs/1906.02691
    | Gaussian Variational Approximation With a Factor Covariance Structure (Ong et al., 2018)
    | https://arxiv.org/abs/1701.03208
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from guides.amortized.outputs import AmortizedGuide
from ppl_models.checks import check_count


class AmortizedMultivariateNormal(AmortizedGuide):
    r"""A Gaussian guide with a full covariance for each row.

    The exact posterior of a linear Gaussian model is one of these.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of its latent vector, `K`.
        encoder: A module from `(B, D)` to `(B, K + K * (K + 1) / 2)`: the means, the logarithms of
            the diagonal of :math:`L`, and what is below it, row by row, in units of the diagonal.
            Default: a multilayer perceptron with two hidden layers of 128.
        site: The name of the latent site.

    Raises:
        ValueError: At a call, if the encoder gives another number of outputs.

    Example:
        >>> guide = AmortizedMultivariateNormal(num_features=64, num_latents=8)
        >>> guide.posterior(torch.zeros(5, 64)).covariance_matrix.shape
        torch.Size([5, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        encoder: nn.Module | None = None,
        site: str = "z",
    ) -> None:
        num_outputs = 2 * num_latents + num_latents * (num_latents - 1) // 2
        super().__init__(num_features, num_latents, num_outputs, encoder, site)

    def family(self, outputs: Tensor) -> dist.MultivariateNormal:
        K = self.num_latents
        loc, log_scale, below = outputs.split([K, K, self.num_outputs - 2 * K], dim=-1)
        rows, columns = torch.tril_indices(K, K, offset=-1, device=outputs.device)
        unit = torch.eye(K, dtype=outputs.dtype, device=outputs.device)
        unit = unit.expand(*outputs.shape[:-1], K, K).clone()
        unit[..., rows, columns] = below
        # In units of the diagonal: as the scales shrink, the correlations stay.
        tril = log_scale.exp().unsqueeze(-1) * unit  # L, (B, K, K)
        return dist.MultivariateNormal(loc, scale_tril=tril)


class AmortizedLowRankNormal(AmortizedGuide):
    r"""A Gaussian guide with a covariance of low rank beside its diagonal, for each row.

    Arguments:
        num_features: The length of a row, `D`.
        num_latents: The length of its latent vector, `K`.
        rank: The number of directions, `R`. Default: about the square root of `K`.
        encoder: A module from `(B, D)` to `(B, K * (2 + R))`: the means, the log-scales, and the
            directions :math:`F`, one latent after the other. Default: a multilayer perceptron with
            two hidden layers of 128.
        site: The name of the latent site.

    Raises:
        ValueError: If the rank is none; at a call, if the encoder gives another number of outputs.

    Example:
        >>> guide = AmortizedLowRankNormal(num_features=64, num_latents=8, rank=2)
        >>> guide.posterior(torch.zeros(5, 64)).cov_factor.shape
        torch.Size([5, 8, 2])
    """

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        rank: int | None = None,
        encoder: nn.Module | None = None,
        site: str = "z",
    ) -> None:
        rank = math.isqrt(num_latents) if rank is None else rank
        check_count(rank=rank)
        super().__init__(num_features, num_latents, num_latents * (2 + rank), encoder, site)
        self.rank = rank

    def family(self, outputs: Tensor) -> dist.LowRankMultivariateNormal:
        K = self.num_latents
        loc, log_scale, factor = outputs.split([K, K, K * self.rank], dim=-1)
        factor = factor.unflatten(-1, (K, self.rank))  # F, (B, K, R)
        return dist.LowRankMultivariateNormal(loc, factor, (2 * log_scale).exp())
