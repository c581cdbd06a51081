r"""Gaussian autoguides, one site after the other: the chain rule by a Cholesky factor.

With the unconstrained latents :math:`u = (u_1, \dots, u_K)` of the sites, in their order:

.. math::
    q(u) = \mathcal{N}(m, L L^\top), \qquad
    q(u_k \mid u_{<k}) = \mathcal{N}\left(m_k + L_{k,<k} \, \epsilon_{<k}, \; L_{kk} L_{kk}^\top
    \right), \qquad \epsilon_{<k} = L_{<k,<k}^{-1} (u_{<k} - m_{<k})

The product over the sites is the density of the guide to rounding. Each factor is a distribution
like any other, of which one can draw, and that can be conditioned upon. The factor is dense, also
that of a low-rank guide; with independent entries it is a vector.

References:
    | Automatic Differentiation Variational Inference (Kucukelbir et al., 2017)
    | https://arxiv.org/abs/1603.00788
"""

import math
from operator import attrgetter
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.autoguide import AutoContinuous, AutoGuide, AutoGuideList, AutoNormal
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import ReshapeTransform

from ppl_models.infer.programs import sites


class Constrained(dist.TransformedDistribution):
    """A Gaussian in the space that an autoguide works in, with the support of the site."""

    site_support: constraints.Constraint

    @property
    def support(self) -> constraints.Constraint:
        """That of the model's site: a composed transform knows its own in part."""
        return self.site_support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Constrained":
        """The same with another batch shape."""
        new = super().expand(batch_shape, self._get_checked_instance(Constrained, _instance))
        new.site_support = self.site_support
        return new


class Block(NamedTuple):
    """A site of the guide: its place in the vector of all, and how it gets its shape."""

    place: slice
    shape: torch.Size  # unconstrained
    event_dim: int  # of these
    transform: Transform  # to the support
    support: constraints.Constraint


class GaussianPrior:
    """The density of a Gaussian autoguide, site by site.

    Arguments:
        guide: A fitted autoguide.

    Raises:
        ValueError: If it was not called before, has latents of rows, is a point or no Gaussian.
    """

    def __init__(self, guide: AutoGuide) -> None:
        kind = type(guide).__name__
        trace = guide.prototype_trace
        if trace is None:
            raise ValueError(
                f"guide: this {kind} has not been fitted: it has no parameters yet. Try "
                f"fit(elbo(model, guide), data, steps=1000) before."
            )
        self.blocks: dict[str, Block] = {}
        self.size = 0
        for name, site in trace.iter_stochastic_nodes():
            self._add(name, site, kind)
        loc, factor = (x.detach().clone() for x in _moments(guide, self.blocks))
        self.loc, self.factor = loc, factor  # m, (D,); L, (D, D), or the scales, (D,)
        if self.factor.dim() == 2:
            self._check_uncoupled(kind)

    def _add(self, name: str, site: dict, kind: str) -> None:
        if sites.in_data_plate(site):
            raise ValueError(
                f"guide: {kind} has parameters for the latents {name!r} of its rows, which say "
                f"nothing of other rows. Expected a guide of what all rows share: try "
                f"{kind}(poutine.block(model, hide=[{name!r}])), fitted in an AutoGuideList with "
                f"another guide of the rows, and give that part of it."
            )
        support = site["fn"].support
        transform = biject_to(support)
        shape = transform.inv(site["value"].detach()).shape
        event_dim = site["fn"].event_dim + len(shape) - site["value"].dim()
        place = slice(self.size, self.size + math.prod(shape))
        self.blocks[name] = Block(place, shape, event_dim, transform, support)
        self.size = place.stop

    def _check_uncoupled(self, kind: str) -> None:
        """Raises where a guide ties together what a plate of the model says is independent."""
        for name, block in self.blocks.items():
            if len(block.shape) > block.event_dim:
                raise ValueError(
                    f"guide: {kind} ties together the entries of {name!r}, which are independent "
                    f"by a plate of the model. Try AutoNormal or AutoDiagonalNormal, or "
                    f".to_event({len(block.shape) - block.event_dim}) in place of the plate."
                )

    @property
    def names(self) -> set[str]:
        """The sites that it is of."""
        return set(self.blocks)

    def distribution(
        self, name: str, values: dict[str, Tensor], like: Tensor
    ) -> TorchDistributionMixin:
        """Returns q of a site given the values of those before, on the device of a tensor."""
        block = self.blocks[name]
        loc, factor = self.loc.to(like), self.factor.to(like)
        if factor.dim() == 1:
            loc, scale = (x[block.place].reshape(block.shape) for x in (loc, factor))
            return _constrained(dist.Normal(loc, scale).to_event(block.event_dim), [], block)
        mean, place = loc[block.place], block.place
        if place.start:
            before = slice(0, place.start)
            rest = self._before(name, values) - loc[before]
            own = factor[before, before]
            noise = torch.linalg.solve_triangular(own, rest[..., None], upper=False)
            mean = mean + (factor[place, before] @ noise)[..., 0]
        normal = dist.MultivariateNormal(mean, scale_tril=factor[place, place])
        flat = torch.Size([place.stop - place.start])
        return _constrained(normal, [ReshapeTransform(flat, block.shape)], block)

    def _before(self, name: str, values: dict[str, Tensor]) -> Tensor:
        """The unconstrained values of the sites before one, side by side."""
        parts = []
        for other, block in self.blocks.items():
            if other == name:
                break
            if other not in values:
                raise ValueError(
                    f"model: expected its site {other!r} before {name!r}, as in the model of the "
                    f"guide. Try the model that the guide was fitted with."
                )
            free = block.transform.inv(values[other])
            parts.append(free.flatten(-block.event_dim) if block.event_dim else free[..., None])
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


def gaussians(guide: AutoGuide) -> list[GaussianPrior]:
    """The Gaussians that an autoguide is made of: one, or those of a list."""
    if not isinstance(guide, AutoGuideList):
        return [GaussianPrior(guide)]
    return [prior for part in guide for prior in gaussians(part)]


def _constrained(
    base: TorchDistributionMixin, before: list[Transform], block: Block
) -> Constrained:
    prior = Constrained(base, [*before, block.transform])
    prior.site_support = block.support
    return prior


def _moments(guide: AutoGuide, blocks: dict[str, Block]) -> tuple[Tensor, Tensor]:
    """The mean of an autoguide, and its Cholesky factor, or the scales if that is diagonal."""
    if isinstance(guide, AutoNormal):
        both = [
            [attrgetter(name)(of).flatten() for name in blocks] for of in (guide.locs, guide.scales)
        ]
        return torch.cat(both[0]), torch.cat(both[1])
    posterior = guide.get_posterior() if isinstance(guide, AutoContinuous) else None
    if isinstance(posterior, dist.Independent) and isinstance(posterior.base_dist, dist.Normal):
        return posterior.mean, posterior.stddev
    if isinstance(posterior, dist.MultivariateNormal):
        return posterior.loc, posterior.scale_tril
    if isinstance(posterior, dist.LowRankMultivariateNormal):
        return posterior.loc, posterior.scale_tril
    raise ValueError(
        f"guide: {type(guide).__name__} is no Gaussian whose sites have a density each. "
        f"{_instead(guide)}"
    )


def _instead(guide: AutoGuide) -> str:
    name = type(guide).__name__
    if name == "AutoLaplaceApproximation":
        return "Try guide = guide.laplace_approximation(*data) after the fit, which has one."
    if name == "AutoDelta":
        return "It is a point, which no data would move. Try AutoNormal."
    return "Try AutoNormal or AutoMultivariateNormal."
