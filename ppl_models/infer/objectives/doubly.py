r"""The importance-weighted bound with a gradient of the guide that is reparameterised twice.

.. math::
    \nabla_\theta &= \sum_k \tilde{w}_k \, \nabla_\theta \log p_\theta(x, z_k) \\
    \nabla_\phi &= \sum_k \tilde{w}_k^2 \, \frac{\partial}{\partial z_k}
    \left[ \log p(x, z_k) - \log q(z_k \mid x) \right] \frac{\partial z_k}{\partial \phi}

Both come from log-densities at the draws and at the same draws held, :math:`\bar{z}`, whose
gradients are those of what is not held,

.. math::
    \sum_k \tilde{w}_k^2 \left[ \log p_\theta(x, z_k) - \log q_\phi(z_k \mid x)
    + \log q_\phi(\bar{z}_k \mid x) \right]
    + (\tilde{w}_k - \tilde{w}_k^2) \log p_\theta(x, \bar{z}_k)

Where the guide is the posterior its gradient is zero, for any draws.

Shapes: `B` rows, `K` particles.

References:
    | Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019)
    | https://arxiv.org/abs/1810.04152
"""

import math

import torch
from pyro import poutine
from torch import Tensor

from ppl_models.infer.objectives.iwae import ImportanceWeightedBound
from ppl_models.infer.programs import sites


class DoublyReparameterisedBound(ImportanceWeightedBound):
    """The objective that `iwae(..., doubly_reparameterised=True)` returns."""

    name = "iwae"

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return super().loss(*batch, size=size)
        if self.enumeration is None:
            self.enumeration = self._enumeration(batch)
            self._look_once(batch, self.enumeration)
        with self._calling(batch, self._sees_once()) as call:
            moving = self._draw(call, self._guide, batch, self.enumeration)
            guide = poutine.replay(self._guide, trace=_held(moving.guide))
            held = self._draw(call, guide, batch, self.enumeration)
        log_weight = moving.log_weight.detach()  # (K, B)
        share = log_weight.softmax(0)
        both = share.square() * _slope(moving.log_weight + held.log_q)
        of_model = (share - share.square()) * _slope(held.log_p)
        bound = log_weight.logsumexp(0) - math.log(self.num_particles)
        return -(bound + (both + of_model).sum(0)).mean()

    def _check_trace(self, trace: poutine.Trace, program: str, rows: int) -> None:
        super()._check_trace(trace, program, rows)
        for name, site in sites.latent_sites(trace).items():
            made = sites.kind(site["fn"]) == "Delta" or site["infer"].get("is_auxiliary")
            if program == "guide" and made:
                raise ValueError(
                    f"iwae: site {name!r} of the guide is a function of others, or one that others "
                    f"are made of, whose density cannot be held while the draw moves. Expected "
                    f"latents that are drawn themselves. Try doubly_reparameterised=False."
                )


def _slope(x: Tensor) -> Tensor:
    """Zero, with a gradient."""
    return torch.where(x.isfinite(), x - x.detach(), 0.0)  # a weight may be zero


def _held(drawn: poutine.Trace) -> poutine.Trace:
    """A trace from which a program takes the values of another, which stay where they are."""
    trace = poutine.Trace()
    for name, site in sites.latent_sites(drawn).items():
        held = {"name": name, "type": "sample", "is_observed": False, "infer": {}}
        trace.add_node(name, value=site["value"].detach(), **held)
    return trace
