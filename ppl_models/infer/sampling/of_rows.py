r"""The log-densities of tiled rows over real numbers, those of the model and of the guide.

.. math::
    \log p(x_r, z(u_r)), \qquad \log q(z(u_r) \mid x_r), \qquad
    \log \left| \det \frac{\partial z}{\partial u_r} \right|

where each latent :math:`z` comes from its part of :math:`u` by the bijection to its support, and
discrete latents that the model enumerates are summed out. In double precision.

Shapes: `K` chains of `R` rows, as `K * R` rows of `D` real numbers each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to

from ppl_models.infer.evidence.joint import Joint
from ppl_models.infer.evidence.weights import log_density, row_dim, sum_out
from ppl_models.infer.trials.precision import in_double


class Densities(NamedTuple):
    """At some positions, one number for each row: `(K * R,)`."""

    log_p: Tensor
    log_q: Tensor
    log_det: Tensor

    @property
    def log_ratio(self) -> Tensor:
        r"""Is :math:`\log p(x, z) - \log q(z \mid x)`."""
        return self.log_p - self.log_q

    def between(self, beta: Tensor) -> Tensor:
        r"""Is :math:`\log q^{1 - \beta} p^\beta`, as a density of `u`."""
        return self.log_q + beta * self.log_ratio + self.log_det


class OfRows:
    """A model and its guide on some rows, several times each, given the latents of all.

    Arguments:
        joint: Model, guide and data, whose rows have latents of their own and are tiled.
        rows: Some of the rows, `R`.
        count: How often each is there, `K`.
    """

    def __init__(self, joint: Joint, rows: slice, count: int) -> None:
        self.joint = joint
        self.call, batch = joint._call_on(rows, count)
        self.num_rows, self.device = len(batch[0]), batch[0].device
        self.names = [n for n in joint.latent if n not in joint.enumeration.names]

    def draw(self) -> Tensor:
        """Positions of draws from the guide, `(K * R, D)`."""
        trace = self.call(poutine.trace(self.joint.guide).get_trace)
        return self.of({name: trace.nodes[name]["value"] for name in self.names})

    def of(self, latents: dict[str, Tensor]) -> Tensor:
        """The positions of latents, given as the sites have them, `(K * R, D)`."""
        taken = _Taken(latents)
        with in_double():
            self._trace_of_model(taken)
        self.parts = taken.parts
        return torch.cat([_by_rows(u, taken.parts[n].axis) for n, u in taken.found.items()], 1)

    def at(self, position: Tensor) -> Densities:
        """The log-densities at positions, `(K * R, D)`."""
        given = _Given(self.parts, position)
        with in_double():
            model = self._trace_of_model(given)
            held = poutine.condition(self.joint.guide, data=given.latents)
            guide = prune_subsample_sites(self.call(poutine.trace(held).get_trace))
            for trace in (model, guide):
                trace.compute_log_prob()
            summed = sum_out(model, guide) if self.joint.enumeration.names else None
            log_p = log_density(model, self.num_rows, self.device, summed)
            log_q = log_density(guide, self.num_rows, self.device)
        return Densities(log_p, log_q, given.log_det)

    def _trace_of_model(self, handler: Messenger) -> poutine.Trace:
        program: Callable[..., Any] = handler(self.joint.model)
        if self.joint.enumeration.names:
            program = EnumMessenger(first_available_dim=self.joint.enumeration.first_dim)(program)
        return prune_subsample_sites(self.call(poutine.trace(program).get_trace))


class _Part(NamedTuple):
    """Where a latent is in the positions of rows."""

    start: int
    stop: int
    shape: torch.Size  # of its real numbers, for all rows
    axis: int  # that of the rows in it


class _Taken(Messenger):
    """Takes the real numbers of given latents."""

    def __init__(self, latents: dict[str, Tensor]) -> None:
        super().__init__()
        self.latents = latents
        self.found: dict[str, Tensor] = {}
        self.parts: dict[str, _Part] = {}

    def _pyro_sample(self, message: dict) -> None:
        name = message["name"]
        if name not in self.latents or message["done"]:
            return
        value = self.latents[name].double()
        free = biject_to(message["fn"].support).inv(value)
        dim = row_dim(message)
        assert dim is not None
        axis = value.dim() - message["fn"].event_dim + dim
        start = max((part.stop for part in self.parts.values()), default=0)
        size = free.numel() // free.shape[axis]
        self.parts[name] = _Part(start, start + size, free.shape, axis)
        self.found[name] = free
        message["value"], message["done"] = value, True


class _Given(Messenger):
    """Gives latents the values at positions, and sums what the change of variables counts."""

    def __init__(self, parts: dict[str, _Part], position: Tensor) -> None:
        super().__init__()
        self.parts, self.position = parts, position
        self.latents: dict[str, Tensor] = {}
        self.log_det = torch.zeros(len(position), dtype=position.dtype, device=position.device)

    def _pyro_sample(self, message: dict) -> None:
        part = self.parts.get(message["name"])
        if part is None or message["done"]:
            return
        own = self.position[:, part.start : part.stop]
        others = [*part.shape[: part.axis], *part.shape[part.axis + 1 :]]
        free = own.reshape(len(own), *others).movedim(0, part.axis)
        transform = biject_to(message["fn"].support)
        value = transform(free)
        volume = transform.log_abs_det_jacobian(free, value)
        self.log_det = self.log_det + _by_rows(volume, part.axis).sum(1)
        message["value"], message["done"] = value, True
        self.latents[message["name"]] = value


def _by_rows(x: Tensor, axis: int) -> Tensor:
    """A tensor with the rows in front and the rest in one dimension, `(K * R, *)`."""
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)
