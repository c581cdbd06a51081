r"""The posterior density of a program over real numbers, one vector for all latents.

.. math:: \log p(x, z(u)) + \log \left| \det \frac{\partial z}{\partial u} \right|

where each latent :math:`z` comes from its part of :math:`u` by the bijection to its support, as
the support is where the program runs, and discrete latents are summed out. In double precision,
whatever the program computes in: a sampler follows the density over thousands of nats.

Shapes: `D` real numbers.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import biject_to

from ppl_models.infer.compiled.waits import without_waits
from ppl_models.infer.evidence.weights import log_density, sum_out
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.program import Program
from ppl_models.infer.programs.rows import Rows
from ppl_models.infer.trials.precision import in_double


class Part(NamedTuple):
    """Where a latent is in the vector."""

    start: int
    stop: int
    shape: torch.Size  # of its real numbers


class Unconstrained:
    """The log-density of the latents of a program, with the data given.

    It is what is traced: its one parameter is the vector.

    Arguments:
        program: The model.
        data: Its rows.

    Raises:
        ValueError: If there are no continuous latents, or discrete ones that cannot be summed out.
    """

    name = "nuts"
    eager_because: str | None = None

    def __init__(self, program: Program, data: tuple[Tensor, ...]) -> None:
        self.program, self.data = program, data
        first = prune_subsample_sites(self.call(poutine.trace(program).get_trace))
        checks.check_unscaled(first)
        self.first = first
        self.depth = sites.plate_depth(first)
        self.parts, at = {}, 0
        for name, site in sites.latent_sites(first).items():
            _check(site)
            if sites.is_discrete(site):
                continue
            shape = biject_to(site["fn"].support).inverse_shape(site["value"].shape)
            self.parts[name] = Part(at, at := at + shape.numel(), shape)
        if not self.parts:
            raise ValueError(
                "nuts: expected a model with continuous latents, got none. Its evidence and "
                "posterior are sums: try log_evidence(model, None, *data), or infer_discrete."
            )
        self.position = nn.Parameter(torch.zeros(at, dtype=torch.float64))

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """The vector."""
        yield "position", self.position

    def modules(self) -> dict[str, nn.Module]:
        """Those of the model."""
        return self.program.modules()

    @property
    def size(self) -> int:
        """How many real numbers, `D`."""
        return self.position.numel()

    @property
    def count(self) -> int:
        """How many numbers all latents are, `L`."""
        return sum(self.first.nodes[name]["value"].numel() for name in self.parts)

    def at(self, position: Tensor) -> Tensor:
        """The log-density at a position, `(D,)`."""
        given = _Given(self.parts, position)
        program: Callable[..., Any] = config_enumerate(given(self.program))
        program = EnumMessenger(first_available_dim=-1 - self.depth)(program)
        with in_double(), pyro.validation_enabled(False):
            trace = prune_subsample_sites(self.call(poutine.trace(program).get_trace))
            trace.compute_log_prob()
            summed = sum_out(trace, poutine.Trace()) if sites.enumerated_sites(trace) else None
            density = log_density(trace, None, position.device, summed).squeeze(0)
        return density + given.log_det

    def flat(self, position: Tensor) -> Tensor:
        """The latents at a position in a row, `(L,)`."""
        given = _Given(self.parts, position)
        with in_double(), pyro.validation_enabled(False), without_waits(position.device):
            self.call(given(self.program))
        latents = given.latents
        return torch.cat([latents[name].reshape(-1).double() for name in self.parts])

    def samples(self, flat: Tensor) -> dict[str, Tensor]:
        """Latents with their own shapes, from rows `(*, L)`."""
        found, at = {}, 0
        for name in self.parts:
            value = self.first.nodes[name]["value"]
            part = flat[..., at : (at := at + value.numel())]
            found[name] = part.reshape(*flat.shape[:-1], *value.shape).to(value.dtype)
        return found

    def of(self, latents: dict[str, Tensor]) -> Tensor:
        """The position of latents, `(D,)`."""
        taken = _Taken(self.parts, latents)
        with in_double():
            self.call(poutine.trace(taken(self.program)).get_trace)
        return torch.cat([taken.found[name] for name in self.parts])

    def call(self, run: Callable[..., Any]) -> Any:
        """Runs a program on the data."""
        number = len(self.data[0]) if self.data else 1
        rows = torch.arange(number)
        with Rows(rows, number, number):
            return run(*self.data, size=number)


class _Given(Messenger):
    """Gives latents the values at a position, and sums what the change of variables counts."""

    def __init__(self, parts: dict[str, Part], position: Tensor) -> None:
        super().__init__()
        self.parts, self.position = parts, position
        self.latents: dict[str, Tensor] = {}
        self.log_det: Tensor = torch.zeros((), dtype=torch.float64)

    def _pyro_sample(self, message: dict) -> None:
        part = self.parts.get(message["name"])
        if part is None or message["done"]:
            return
        free = self.position[part.start : part.stop].view(part.shape)
        transform = biject_to(message["fn"].support)
        value = transform(free)
        self.log_det = self.log_det + transform.log_abs_det_jacobian(free, value).sum()
        message["value"], message["done"] = value, True
        self.latents[message["name"]] = value


class _Taken(Messenger):
    """Takes the real numbers of given latents."""

    def __init__(self, parts: dict[str, Part], latents: dict[str, Tensor]) -> None:
        super().__init__()
        self.parts, self.latents = parts, latents
        self.found: dict[str, Tensor] = {}

    def _pyro_sample(self, message: dict) -> None:
        name = message["name"]
        if name in self.parts and not message["done"]:
            value = self.latents[name].double()
            free = biject_to(message["fn"].support).inv(value)
            self.found[name] = free.detach().reshape(-1)
            message["value"], message["done"] = value, True


def _check(site: dict) -> None:
    """Raises where a latent can be neither moved nor summed out."""
    name = site["name"]
    if sites.is_masked(site) and not sites.counting(site).all():
        raise ValueError(
            f"nuts: site {name!r} is a latent that is masked, so that nothing holds it where it "
            f"counts for nothing. Expected latents that all count. Try the rows that are there "
            f"instead of a mask."
        )
    if sites.is_discrete(site) and not site["fn"].has_enumerate_support:
        raise ValueError(
            f"nuts: site {name!r} is a discrete latent, {sites.kind(site['fn'])}, that cannot be "
            f"summed out, as it has no end. Expected continuous latents, or discrete ones with a "
            f"finite support. Try to integrate it out by hand, or SVI."
        )
