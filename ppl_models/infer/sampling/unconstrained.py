r"""The posterior density of a program over real numbers, one vector for all latents.

.. math:: \log p(x, z(u)) + \log \left| \det \frac{\partial z}{\partial u} \right|

where each latent :math:`z` comes from its part of :math:`u` by the bijection to its support, as
the support is where the program runs, and discrete latents are summed out. In double precision,
whatever the program computes in: a sampler follows the density over thousands of nats.

Shapes: `D` real numbers.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from ppl_models.infer.compiled.replaced import replaced
from ppl_models.infer.compiled.waits import without_waits
from ppl_models.infer.evidence.weights import log_density, sum_out
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.program import Program
from ppl_models.infer.programs.rows import Rows
from ppl_models.infer.sampling.bijections import bijection
from ppl_models.infer.sampling.latents import check_latent
from ppl_models.infer.trials.precision import in_double
from ppl_models.infer.trials.shapes import check_rows


class Part(NamedTuple):
    """Where a latent is in the vector."""

    start: int
    stop: int
    shape: torch.Size  # of its real numbers
    whole: torch.Size  # of its value


class OtherSitesError(ValueError):
    """A run of a program with other latents than its first one had."""


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
        lengths = [len(x) for x in data if isinstance(x, Tensor) and x.ndim]
        self.rows = torch.arange(lengths[0] if lengths else 1)
        with in_double(), checks.noting_batch(data):
            first = prune_subsample_sites(self.call(poutine.trace(_Improper()(program)).get_trace))
        checks.check_unscaled(first)
        check_rows(first, "model", tuple(x for x in data if isinstance(x, Tensor) and x.ndim))
        self.first = first
        self.depth = sites.plate_depth(first)
        self.parts, at = {}, 0
        for name, site in sites.latent_sites(first).items():
            check_latent(site)
            if sites.is_discrete(site):
                continue
            shape = bijection(site["fn"].support).inverse_shape(site["value"].shape)
            self.parts[name] = Part(at, at := at + shape.numel(), shape, site["value"].shape)
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
        with in_double(), pyro.validation_enabled(False):
            trace = self._run(given)
            trace.compute_log_prob()
            summed = sum_out(trace, poutine.Trace()) if sites.enumerated_sites(trace) else None
            density = log_density(trace, None, position.device, summed).squeeze(0)
        return density + given.log_det

    def flat(self, position: Tensor) -> Tensor:
        """The latents at a position in a row, `(L,)`."""
        given = _Given(self.parts, position)
        with in_double(), pyro.validation_enabled(False), without_waits(position.device):
            self._run(given)
        return torch.cat([given.latents[name].reshape(-1).double() for name in self.parts])

    def _run(self, given: "_Given") -> poutine.Trace:
        """The trace at a position, with every discrete latent enumerated.

        Raises:
            OtherSitesError: If it has other latents than the first one.
        """
        program: Callable[..., Any] = config_enumerate(self.program)
        program = given(EnumMessenger(first_available_dim=-1 - self.depth)(program))
        trace = prune_subsample_sites(self.call(poutine.trace(program).get_trace))
        now, before = sites.latent_sites(trace).keys(), sites.latent_sites(self.first).keys()
        if now != before:
            names = ", ".join(map(repr, sorted(now ^ before)))
            raise OtherSitesError(
                f"nuts: the site(s) {names} are latents of one run of the model and not of "
                f"another: which latents there are depends on their values, or on how often it "
                f"ran. Expected the same latents in each run. Try a latent that is always there, "
                f"and a mask or torch.where on what it gives."
            )
        return trace

    def samples(self, flat: Tensor) -> dict[str, Tensor]:
        """Latents with their own shapes, in double precision, from rows `(*, L)`."""
        found, at = {}, 0
        for name in self.parts:
            value = self.first.nodes[name]["value"]
            part = flat[..., at : (at := at + value.numel())]
            found[name] = part.reshape(*flat.shape[:-1], *value.shape)
        return found

    def of(self, latents: dict[str, Tensor]) -> Tensor:
        """The position of latents, `(D,)`."""
        taken = _Taken(self.parts, latents)
        with in_double():
            self.call(poutine.trace(taken(self.program)).get_trace)
        return torch.cat([taken.found[name] for name in self.parts])

    def call(self, run: Callable[..., Any]) -> Any:
        """Runs a program on the data."""
        number = len(self.rows)
        with Rows(self.rows, number, number), _counting():
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
        transform = bijection(message["fn"].support)
        value = transform(free)
        if value.shape != part.whole:
            raise OtherSitesError(
                f"nuts: site {message['name']!r} has the shape {tuple(value.shape)} in one run of "
                f"the model, and {tuple(part.whole)} in its first: its support depends on a "
                f"discrete latent, or its size on values. Expected the same shape in each run. Try "
                f"a latent with a support of its own, and a transform of it."
            )
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
            free = bijection(message["fn"].support).inv(value)
            self.found[name] = free.detach().reshape(-1)
            message["value"], message["done"] = value, True


@contextmanager
def _counting() -> Iterator[None]:
    """A context in which loops over all of a plate count on the host.

    Pyro asks a tensor of indices for each of them, which a trace cannot answer.
    """
    ask = IndepMessenger.__iter__

    def count(plate: IndepMessenger) -> Iterator[Any]:
        if getattr(plate, "subsample_size", None) == plate.size:
            plate._indices = range(plate.size)
        return ask(plate)

    with replaced(IndepMessenger, "__iter__", count):
        yield


class _Improper(Messenger):
    """Gives a latent of which no prior can be drawn a value of its support."""

    def _pyro_sample(self, message: dict) -> None:
        fn = message["fn"]
        if sites.kind(fn) == "ImproperUniform" and not (message["done"] or message["is_observed"]):
            transform = bijection(fn.support)
            message["value"] = transform(torch.zeros(transform.inverse_shape(fn.shape())))
            message["done"] = True
