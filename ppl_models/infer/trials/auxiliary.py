r"""What a guide draws beside the latents of the model: auxiliaries, from which these are made.

.. math::
    q(z \mid x) = \int q(a \mid x) \, q(z \mid a, x) \, da

A weight is of this. What a trace has is :math:`q(a \mid x) \, q(z \mid a, x)`, which is the same
only where the latents tell what `a` was: where they are an invertible function of it, by a `Delta`
whose log-density is the change of volume. That is tried on the guide itself. Of finitely many
values the sum is formed, and what is left has no weight, unless the model has a reverse model
:math:`r(a \mid z, x)` of it; then it is a latent like others, and not among these.

References:
    | Hierarchical Variational Models (Ranganath et al., 2016)
    | https://arxiv.org/abs/1511.02386
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoCallable, AutoGuide
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import Transform, biject_to

from ppl_models.infer.programs import sites
from ppl_models.scoped import own_rng

MOST = 256  # values of all auxiliaries together, in which the guide is run for each weight
TRIES = 8  # draws at which the change of volume is looked at
LARGEST = 128  # numbers of auxiliaries beyond which their function has too many derivatives
ROUNDING = 0.02  # nats of a change of volume, for each number

Draw = Callable[[poutine.Trace], poutine.Trace]  # a trace of the guide, with some sites given


def auxiliary_sites(model: poutine.Trace, guide: poutine.Trace) -> dict[str, dict]:
    """What is marked as auxiliary in the guide, is drawn, and is no latent of the model."""
    latent = sites.latent_sites(model)
    return {
        name: site
        for name, site in sites.latent_sites(guide).items()
        if site["infer"].get("is_auxiliary")
        and name not in latent
        and sites.kind(site["fn"]) != "Delta"
    }


def is_of_pyro(guide: Callable) -> bool:
    """Whether all of a guide are autoguides of Pyro: invertible functions of their auxiliaries."""
    if not isinstance(guide, AutoGuide):
        return False
    parts = [part for part in guide.modules() if isinstance(part, AutoGuide)]
    return all(
        type(part).__module__.startswith("pyro.") and not isinstance(part, AutoCallable)
        for part in parts
    )


def check_told(model: poutine.Trace, guide: poutine.Trace, draw: Draw) -> None:
    """Raises unless the latents tell what the auxiliaries were, so that no sum is needed."""
    if reason := why_unknown(model, guide, draw, by_row=True):
        raise ValueError(reason)
    discrete = [n for n, s in auxiliary_sites(model, guide).items() if sites.is_discrete(s)]
    for _ in range(TRIES if discrete else 0):
        drawn = draw(poutine.Trace())
        for other in each_value(draw, drawn, set(sites.latent_sites(model)), by_row=True):
            same = all(torch.equal(_value(other, n), _value(drawn, n)) for n in discrete)
            if not same and math.isfinite(other.log_prob_sum()):
                raise ValueError(_unknown(discrete, "several of its values lead to the same ones"))


def why_unknown(model: poutine.Trace, guide: poutine.Trace, draw: Draw, by_row: bool) -> str | None:
    """Why the density of the latents that a guide draws cannot be told, or None.

    Arguments:
        model: A trace of the model.
        guide: One of the guide.
        draw: Draws another of the guide, with some sites given.
        by_row: Whether rows have weights of their own.
    """
    auxiliary = auxiliary_sites(model, guide)
    if not auxiliary:
        return None
    latent = set(sites.latent_sites(model))
    drawn = draw(poutine.Trace())
    discrete = [name for name, site in auxiliary.items() if sites.is_discrete(site)]
    continuous = [name for name in auxiliary if name not in discrete]
    if _num_in_all([drawn.nodes[n] for n in discrete if n in drawn.nodes], by_row) > MOST:
        return _unknown(discrete, f"its values are masked, or not finitely many, {MOST} in all")
    if discrete and _moves(draw, drawn, latent, model, by_row):
        return _unknown(discrete, "a `Delta` of continuous numbers depends on it")
    return _why_not_told(model, continuous, draw) if continuous else None


def each_value(
    draw: Draw, drawn: poutine.Trace, latent: set[str], by_row: bool
) -> Iterator[poutine.Trace]:
    """Traces with the latents of one, and with all values of its discrete auxiliaries in turn.

    All rows have the same value at once, where each has a weight of its own.

    Arguments:
        draw: Draws a trace of the guide, with some sites given.
        drawn: One that it drew.
        latent: The latents of the model.
        by_row: Whether rows have weights of their own.
    """
    given = poutine.Trace()
    for name, site in sites.latent_sites(drawn).items():
        if name in latent or not (_is_summed(site) or sites.kind(site["fn"]) == "Delta"):
            given.add_node(name, **site)
    yield from _each(draw, given, drawn, set(given.nodes), by_row)


def _each(
    draw: Draw, given: poutine.Trace, trace: poutine.Trace, fixed: set[str], by_row: bool
) -> Iterator[poutine.Trace]:
    found = sites.latent_sites(trace)
    left = [n for n in found if n not in given.nodes and sites.kind(found[n]["fn"]) != "Delta"]
    if other := [n for n in left if not _is_summed(found[n])] or sorted(fixed - found.keys()):
        raise ValueError(
            f"guide: whether it has a site {other[0]!r} depends on its auxiliary sites. Expected "
            f"the same sites for all values. Try a distribution without spread, or a mixture."
        )
    if not left:
        yield trace
        return
    site = found[left[0]]
    for value in _values(site, by_row):
        more = given.copy()
        more.add_node(left[0], **{**site, "value": value})
        yield from _each(draw, more, draw(more), fixed, by_row)


def is_summed(guide: poutine.Trace, latent: set[str], by_row: bool) -> bool:
    """Whether a guide has discrete auxiliaries, all of so few values that they can be summed."""
    found = [s for n, s in sites.latent_sites(guide).items() if n not in latent and _is_summed(s)]
    return bool(found) and _num_in_all(found, by_row) <= MOST


def _is_summed(site: dict) -> bool:
    marked = bool(site["infer"].get("is_auxiliary")) and sites.kind(site["fn"]) != "Delta"
    return marked and sites.is_discrete(site)


def _num_in_all(found: list[dict], by_row: bool) -> int:
    """How many values some sites have together; more than `MOST` where that is not known."""
    return math.prod(_num_values(site, by_row) or MOST + 1 for site in found)


def _num_values(site: dict, by_row: bool) -> int | None:
    """How many values a discrete site has; None where that is not finite, or not known."""
    if sites.is_masked(site):  # what does not count would be counted once for each value
        return None
    try:
        support = sites.base(site["fn"]).enumerate_support(expand=False)
    except NotImplementedError:
        return None
    entries = math.prod(_entries(site, by_row))
    few = entries * math.log(len(support)) <= math.log(MOST + 1)
    return len(support) ** entries if few else None


def _values(site: dict, by_row: bool) -> Iterator[Tensor]:
    """All values of a discrete site, one choice for each entry of its plates but that of rows."""
    fn, value, entries = sites.base(site["fn"]), site["value"], _entries(site, by_row)
    support = fn.enumerate_support(expand=False)
    support = support.reshape(len(support), *fn.event_shape).to(value)
    for chosen in product(range(len(support)), repeat=math.prod(entries)):
        index = torch.tensor(chosen, device=value.device).reshape(entries)
        yield support[index].expand(value.shape)


def _entries(site: dict, by_row: bool) -> list[int]:
    """The shape of what is chosen apart, with the dimensions of the batch."""
    value = site["value"]
    entries = list(value.shape[: value.dim() - sites.base(site["fn"]).event_dim])
    for frame in site["cond_indep_stack"]:
        axis = value.dim() - site["fn"].event_dim + frame.dim
        if by_row and frame.name == "data" and axis >= 0:
            entries[axis] = 1
    return entries


def _moves(
    draw: Draw, drawn: poutine.Trace, latent: set[str], model: poutine.Trace, by_row: bool
) -> bool:
    """Whether a `Delta` of a continuous latent is elsewhere for other values of an auxiliary."""
    names = _targets(model, drawn)
    for other in each_value(draw, drawn, latent, by_row):
        for name in names:
            if not torch.equal(sites.base(other.nodes[name]["fn"]).v, _value(drawn, name)):
                return True
    return False


def _targets(model: poutine.Trace, guide: poutine.Trace) -> list[str]:
    """The continuous latents of the model that are functions in the guide."""
    latent = {n: s for n, s in sites.latent_sites(model).items() if not sites.is_discrete(s)}
    drawn = sites.latent_sites(guide)
    return [n for n, s in drawn.items() if n in latent and sites.kind(s["fn"]) == "Delta"]


def _value(trace: poutine.Trace, name: str) -> Tensor:
    return trace.nodes[name]["value"]


def _why_not_told(model: poutine.Trace, names: list[str], draw: Draw) -> str | None:
    """Why continuous auxiliaries are no invertible function of the latents, or None."""
    signs = set()
    for _ in range(TRIES):
        function = _Function(model, draw(poutine.Trace()), names, draw)
        rows, columns = function.shape
        if columns > rows:
            return _unknown(names, f"of {columns} numbers {rows} are in the latents")
        if columns > LARGEST:
            return None
        slopes = function.slopes()
        if not slopes.isfinite().all():
            continue
        if torch.linalg.matrix_rank(slopes / slopes.norm(dim=0).clamp(min=1e-30)) < columns:
            return _unknown(names, "the latents are the same for several of its values")
        if columns < rows or function.is_random():
            continue
        sign, volume = torch.linalg.slogdet(slopes)
        signs.add(sign.item())
        if len(signs) > 1:
            return _unknown(names, "two of its values lead to the same latents")
        expected, got = function.expected(volume), function.log_density()
        if not abs(expected - got) <= ROUNDING * (columns + abs(expected)):
            return (
                f"guide: of its auxiliary site(s) {_quoted(names)} it makes the latents "
                f"{_quoted(function.targets)}, whose log-density lacks the change of volume. "
                f"Expected {expected:.4g} nats in all, got {got:.4g}. Try "
                f"dist.Delta(value, log_density), where log_density is minus the "
                f"log_abs_det_jacobian of the function."
            )
    return None


class _Function:
    """The latents as a function of continuous auxiliaries, both unconstrained."""

    def __init__(
        self, model: poutine.Trace, drawn: poutine.Trace, names: list[str], draw: Draw
    ) -> None:
        self.draw, self.drawn, self.names = draw, drawn, names
        self.targets = _targets(model, drawn)
        self.into = [_unconstrained(model.nodes[n], _value(drawn, n)) for n in self.targets]
        self.outof = [_unconstrained(drawn.nodes[n], _value(drawn, n)) for n in names]

    @property
    def shape(self) -> tuple[int, int]:
        """How many numbers the latents have, and how many the auxiliaries."""
        return sum(x.value.numel() for x in self.into), sum(x.value.numel() for x in self.outof)

    def __call__(self, *free: Tensor) -> tuple[Tensor, ...]:
        given = poutine.Trace()
        for name, site in sites.latent_sites(self.drawn).items():
            if sites.kind(site["fn"]) != "Delta":
                given.add_node(name, **site)
        for name, x, known in zip(self.names, free, self.outof, strict=True):
            given.nodes[name]["value"] = known.transform(x)
        device = free[0].device
        with own_rng("a trial", 0, device):  # of what it draws without a site
            trace = self.draw(given)
        pairs = zip(self.targets, self.into, strict=True)
        return tuple(known.transform.inv(_value(trace, name)) for name, known in pairs)

    def slopes(self) -> Tensor:
        """The derivatives, in float64, with a row for each number of the latents."""
        with torch.enable_grad():
            blocks = jacobian(self, tuple(x.value for x in self.outof))
        rows = [
            torch.cat([b.reshape(x.value.numel(), -1) for b in row], 1)
            for x, row in zip(self.into, blocks, strict=True)
        ]
        return torch.cat(rows).double().cpu()

    def is_random(self) -> bool:
        """Whether the latents depend on what is drawn without a site."""
        given = poutine.Trace()
        for name, site in sites.latent_sites(self.drawn).items():
            if sites.kind(site["fn"]) != "Delta":
                given.add_node(name, **site)
        again = self.draw(given)
        return not all(
            torch.allclose(_value(again, n), _value(self.drawn, n), 1e-3) for n in self.targets
        )

    def log_density(self) -> float:
        """What the `Delta`s say of it."""
        found = sites.latent_sites(self.drawn).values()
        points = [site for site in found if sites.kind(site["fn"]) == "Delta"]
        return sum(s["fn"].log_prob(s["value"]).double().sum().item() for s in points)

    def expected(self, volume: Tensor) -> float:
        """What these should say, by the derivatives."""
        inside = sum(x.volume() for x in self.outof) - sum(x.volume() for x in self.into)
        return inside - volume.item()


class _Unconstrained(NamedTuple):
    """A value without constraints, and what makes it one of a site."""

    value: Tensor
    transform: Transform

    def volume(self) -> float:
        there = self.transform(self.value)
        return self.transform.log_abs_det_jacobian(self.value, there).double().sum().item()


def _unconstrained(site: dict, value: Tensor) -> _Unconstrained:
    transform = biject_to(site["fn"].support)
    return _Unconstrained(transform.inv(value), transform)


def _unknown(names: list[str], why: str) -> str:
    return (
        f"guide: its auxiliary site(s) {_quoted(names)} are not told by the latents: {why}. The "
        f"density of these is then unknown, and the numbers would be no bound on the evidence. "
        f"Try pyro.sample({names[0]!r}, ...) in the model, too, after the other latents and given "
        f"these, as its reverse model, or a guide that draws from a mixture, such as "
        f"dist.MixtureSameFamily."
    )


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names))
