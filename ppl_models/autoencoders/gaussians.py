r"""Densities of latent vectors that are Gaussians, or mixtures of them: moments and coordinates.

.. math::
    q(z) = \sum_c \pi_c \, \mathcal{N}(z \mid \mu_c, \Sigma_c), \qquad
    q(z_k) = \sum_c \pi_c \, \mathcal{N}(z_k \mid \mu_{ck}, \Sigma_{ckk})

Shapes: `*` any, such as rows; `C` components, 1 of a Gaussian; `K` latents.
"""

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Mixtures of Gaussians, one for each row, in float64."""

    logits: Tensor  # log pi, (*, C)
    locs: Tensor  # mu, (*, C, K)
    covariances: Tensor  # Sigma, (*, C, K, K)

    @classmethod
    def of(cls, density: Distribution) -> "Gaussians | None":
        """Those that a distribution is, its events as vectors; None where it is something else."""
        inner = _inner(density)
        if not isinstance(inner, MixtureSameFamily):
            found = _gaussian(density)
            if found is None:
                return None
            loc, covariance = found
            return cls(
                loc.new_zeros(*loc.shape[:-1], 1), loc.unsqueeze(-2), covariance[..., None, :, :]
            )
        found = _gaussian(inner.component_distribution)
        if found is None or inner.event_shape != density.event_shape:
            return None
        shape = density.batch_shape
        logits, (loc, covariance) = inner.mixture_distribution.logits.double(), found
        return cls(
            logits.expand(*shape, *logits.shape[-1:]),
            loc.expand(*shape, *loc.shape[-2:]),
            covariance.expand(*shape, *covariance.shape[-3:]),
        )

    @property
    def is_normal(self) -> bool:
        return self.logits.shape[-1] == 1

    def moments(self) -> tuple[Tensor, Tensor]:
        """The means, `(*, K)`, and the means of `z z'`, `(*, K, K)`."""
        weights = self.logits.softmax(-1)  # (*, C)
        second = self.covariances + self.locs.unsqueeze(-1) * self.locs.unsqueeze(-2)
        mean = (weights.unsqueeze(-1) * self.locs).sum(-2)
        return mean, (weights[..., None, None] * second).sum(-3)

    def coordinates(self) -> Distribution:
        """The densities of single coordinates, with batch shape `(*, K)`."""
        scales = self.covariances.diagonal(dim1=-2, dim2=-1).sqrt()  # (*, C, K)
        if self.is_normal:
            return Normal(self.locs[..., 0, :], scales[..., 0, :])
        parts = Normal(self.locs.mT, scales.mT)  # (*, K, C)
        logits = self.logits.unsqueeze(-2).expand(parts.batch_shape)
        return MixtureSameFamily(Categorical(logits=logits), parts)

    def divergence(self, other: "Gaussians") -> Tensor:
        r"""KL divergences in nats, `(*,)`, of single Gaussians."""
        return kl_divergence(self._normal(), other._normal())

    def _normal(self) -> Distribution:
        return MultivariateNormal(self.locs[..., 0, :], self.covariances[..., 0, :, :])


def num_components(density: Distribution) -> int:
    """How many densities a density is a mixture of."""
    inner = _inner(density)
    if not isinstance(inner, MixtureSameFamily):
        return 1
    number: int = inner.mixture_distribution.logits.shape[-1]
    return number


def _inner(density: Any) -> Any:
    """The distribution inside of `to_event` and `expand`."""
    while isinstance(density, (Independent, ExpandedDistribution)):
        density = density.base_dist
    return density


def _gaussian(density: Distribution) -> tuple[Tensor, Tensor] | None:
    """The means, `(*, K)`, and covariances, `(*, K, K)`, of a Gaussian."""
    inner, shape = _inner(density), density.batch_shape
    if isinstance(inner, Normal):
        whole = (*shape, *density.event_shape)
        loc, scale = inner.loc.double().expand(whole), inner.scale.double().expand(whole)
        return loc.reshape(*shape, -1), torch.diag_embed(scale.square().reshape(*shape, -1))
    if not isinstance(inner, (MultivariateNormal, LowRankMultivariateNormal)):
        return None
    if inner.event_shape != density.event_shape:  # several vectors
        return None
    covariance = inner.covariance_matrix.double()
    return (
        inner.loc.double().expand(*shape, *inner.event_shape),
        covariance.expand(*shape, *covariance.shape[-2:]),
    )
