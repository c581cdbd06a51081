r"""Latents of which a mask leaves out some entries: the guide counts those that the model counts.

.. math::
    p(x) = \int p(x, z_C) \, dz_C
         = \mathbb{E}_{q(z_C, z_M)} \left[ \frac{p(x, z_C)}{q(z_C)} \right]

where the entries `C` count and those of `M` are masked, as `obs_mask`, `poutine.mask` and
`Distribution.mask` do it. A guide knows of no mask, draws them all, and would count an entropy of
`M` that no prior holds. So it is given the mask of the model, batch by batch. What is left of its
density is :math:`q(z_C)` where nothing else in it reads :math:`z_M`, and what is left of the model
is :math:`p(x, z_C)` where nothing that counts reads them there. Both are tried: the entries of `M`
are changed, and no density that counts may be another.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from torch import Tensor
from torch.distributions import constraints

from ppl_models.infer.programs import sites
from ppl_models.infer.programs.program import Program, no_latents
from ppl_models.infer.programs.pyro_internals import active_handlers, is_reparameterised
from ppl_models.infer.trials.independence import Pair, Trial
from ppl_models.scoped import own_rng

TRIES = 8  # other values of what is masked, to see whether something depends on it
MORE = 2  # of each minibatch after the first
FAR = 3.0  # by how much the auxiliary numbers of a guide are moved
NEAR = 1e-2  # by how much parameters are moved
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}

Sources = dict[str, list[str]]  # the auxiliary sites behind each latent of a guide


class SameMasks(Messenger):
    """Gives the sites of a guide the masks of the model, which is replayed on what it drew.

    Densities are computed after both have run. In between, the masks of a batch are known.

    Arguments:
        latents: The masked latents.
        sources: The auxiliary sites that these are functions of, if they are.
    """

    def __init__(self, latents: Collection[str], sources: Sources) -> None:
        super().__init__()
        self.latents, self.sources = latents, sources

    def _pyro_post_sample(self, message: dict) -> None:
        if message["name"] not in self.latents:
            return
        for handler in active_handlers():
            if isinstance(handler, ReplayMessenger) and handler.trace is not None:
                for name in (message["name"], *self.sources.get(message["name"], ())):
                    drawn = handler.trace.nodes.get(name, {})
                    if "fn" in drawn:  # none, where Pyro replays values alone
                        _leave_out(drawn, message)


class OwnWhereMasked(Messenger):
    """Draws entries that are masked from the model's own distribution, where they are replayed.

    Nobody has learned anything of them: what a guide draws there is no posterior.

    Arguments:
        latents: The masked latents.
    """

    def __init__(self, latents: Collection[str]) -> None:
        super().__init__()
        self.latents = latents

    def _pyro_sample(self, message: dict) -> None:
        if message["name"] not in self.latents or not message["done"]:
            return
        with suppress(NotImplementedError):  # an improper prior
            fresh = message["fn"].sample()
            message["value"] = torch.where(sites.counting(message), message["value"], fresh)


def _leave_out(drawn: dict, site: dict) -> None:
    """Masks a site of a guide as that of the model is, which holds the same entries."""
    counts, inner = sites.counting(site), sites.base(drawn["fn"])
    depth = drawn["fn"].event_dim - inner.event_dim
    if drawn["value"].shape != counts.shape:  # other numbers in an event, as of a simplex
        mask = sites.over_events(counts, site["fn"].event_dim)
    elif depth and (sites.is_masked_inside(site) or drawn["fn"].event_dim > site["fn"].event_dim):
        mask = sites.over_events(counts, inner.event_dim)
        drawn["fn"] = inner.mask(mask).to_event(depth)
        return
    else:
        mask = sites.over_events(counts, drawn["fn"].event_dim)
    drawn["mask"] = mask if drawn["mask"] is None else drawn["mask"] & mask


def follow_masks(
    model: Program,
    guide: Program,
    first: Pair,
    trial: Trial,
    width: int | None = None,
    trained: bool = False,
) -> list[str]:
    """Has a guide count the entries of latents that the model counts, from now on.

    Arguments:
        model: The model, whose masks are given to whatever it is replayed on.
        guide: Its guide.
        first: Traces of both.
        trial: Runs both on the data, which are tried.
        width: How many rows are run at once; None for all.
        trained: Whether parameters are yet to be moved, so that what reads nothing where some are
            zero may do so later.

    Returns:
        The masked latents.

    Raises:
        ValueError: If a mask is larger than what it masks, entries are masked in the guide alone,
            or something that counts reads what is masked.
    """
    for trace, program in zip(first, ("model", "guide"), strict=True):
        _check_shapes(trace, program)
    latents = sites.latent_sites(first.model)
    for name in sites.summed_out_sites(*first):
        _check_enumerated(latents[name])
    masked = [name for name, site in latents.items() if sites.is_masked(site)]
    if not masked and not any(map(sites.is_masked, sites.random_sites(first.guide))):
        return []
    with trial.quietly(), _moved_parameters(model, guide) if trained else nullcontext():
        places = list(_places(len(trial.data[0]), width))
        masked = [name for name in masked if not _is_base(name, trial, places[0])]
        sources = _sources(trial, places[0], masked)
        masks = SameMasks(masked, sources)
        model.around = lambda: masks
        _check_masks(trial, places[0], masked, sources)
        for n, part in enumerate(places):
            _try(trial, part, masked, sources, range(n, n + (MORE if n else TRIES)))
    return masked


@contextmanager
def _moved_parameters(*programs: Program) -> Iterator[None]:
    """A context in which all parameters are others, a little."""
    modules = [m for program in programs for m in program.modules().values()]
    found = [x for program in programs for x in program.found.values()]
    found += [x for module in modules for x in module.parameters()]
    kept = {id(x): (x, x.detach().clone()) for x in found if x.is_floating_point()}
    try:
        for x, before in kept.values():
            x.data.add_(NEAR * (1 + before.abs()) * torch.randn_like(before))
        yield
    finally:
        for x, before in kept.values():
            x.data.copy_(before)


def _check_shapes(trace: poutine.Trace, program: str) -> None:
    """Raises where a mask would count a density several times, by its shape."""
    for site in sites.random_sites(trace):
        mask, events = site.get("mask"), site["fn"].event_dim
        of_value = site["value"].shape[: site["value"].dim() - events]
        batch = torch.broadcast_shapes(site["fn"].batch_shape, of_value)
        shape = mask.shape if isinstance(mask, Tensor) else ()
        if _is_larger(shape, batch):
            raise ValueError(
                f"site {site['name']!r} of the {program}: its mask has shape {tuple(shape)}, and "
                f"its log-density {tuple(batch)}, which would count once for each entry of the "
                f"mask. Try the mask around the sites of its plate alone."
            )
        if sites.is_masked(site) and not site["is_observed"]:
            _check_value(site, program)


def _is_larger(shape: Sequence[int], batch: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, batch) != batch
    except RuntimeError:  # of all rows, where a first run has some of them
        return False


def _check_value(site: dict, program: str) -> None:
    value, shape = site["value"].shape, site["fn"].shape()
    if value != shape:
        raise ValueError(
            f"site {site['name']!r} of the {program}: it is masked, its distribution has shape "
            f"{tuple(shape)}, and the guide draws {tuple(value)}. Expected a value for each entry. "
            f"Try the plates of the model in the guide."
        )


def _check_enumerated(site: dict) -> None:
    """Raises where a masked distribution is summed over, whose outcomes would count one each."""
    if sites.has_masked_distribution(site):
        raise ValueError(
            f"site {site['name']!r}: its distribution is masked and enumerated, and each of its "
            f"outcomes would count with probability one. Try `with poutine.mask(mask=mask):` "
            f"around it, which leaves the sum of their probabilities."
        )


def _places(count: int, width: int | None) -> Iterator[Tensor]:
    """All rows, some after the other, always as many."""
    width = count if width is None else min(width, count)
    for start in range(0, count, width):
        yield torch.arange(count)[min(start, count - width) :][:width]


def _is_base(name: str, trial: Trial, places: Tensor) -> bool:
    """Whether a latent has its density elsewhere, in a `pyro.factor` or by `poutine.reparam`.

    `.mask(False)` is how it is written then, and what it has there is for all of its entries.
    """
    drawn = Pair(trial.run(places).model, poutine.Trace())
    site = drawn.model.nodes[name]
    if not sites.is_masked_by_itself(site):
        return False
    alone = Program(no_latents, "guide")
    without = Trial(trial.model, alone, trial.data, trial.rows, trial.size)
    before, after = (
        _again(without, places, drawn, values).model
        for values in ({}, {name: _other(site["fn"], site["fn"], 0)})
    )
    return any(
        not torch.equal(other["log_prob"], after.nodes[other["name"]]["log_prob"])
        for other in sites.random_sites(before)
        if sites.is_factor(other) or is_reparameterised(other)
    )


def _sources(trial: Trial, places: Tensor, masked: list[str]) -> Sources:
    """The auxiliary sites behind each masked latent of a guide that is a function of such sites."""
    drawn = trial.run(places)
    deltas = {n: s for n, s in sites.latent_sites(drawn.guide).items() if _is_function(s)}
    of_interest = [name for name in masked if name in deltas]
    if not of_interest:
        return {}
    found: Sources = {name: [] for name in of_interest}
    for name, site in sites.latent_sites(drawn.guide).items():
        if not site["infer"].get("is_auxiliary"):
            continue
        behind: set[str] = set()
        for number in range(TRIES if sites.is_discrete(site) else 1):
            moved = _again(trial, places, drawn, {name: _moved(site, number)})
            behind |= {n for n in deltas if not _same(deltas[n], moved.guide.nodes[n])}
        for latent in behind & set(of_interest):
            if len(behind) > 1 or not _fits(site, drawn.model.nodes[latent]):
                raise ValueError(_joint(name, latent, behind))
            found[latent].append(name)
    for latent, sources in found.items():
        if not sources and sites.has_density(deltas[latent]):
            raise ValueError(_joint(latent, latent, {latent}))
    return found


def _is_function(site: dict) -> bool:
    return sites.kind(site["fn"]) == "Delta" and not site["infer"].get("is_auxiliary")


def _fits(auxiliary: dict, site: dict) -> bool:
    """Whether an auxiliary site has the entries of a latent, to be masked alike."""
    if auxiliary["value"].shape == site["value"].shape:
        return True
    return auxiliary["fn"].batch_shape == site["fn"].batch_shape and not sites.is_masked_inside(
        site
    )


def _joint(name: str, latent: str, behind: set[str]) -> str:
    others = ", ".join(map(repr, sorted(behind)))
    return (
        f"guide: its site {name!r} draws all entries of {others} by one density, and the model "
        f"masks entries of {latent!r}, which count in no density of its own. Expected a density "
        f"for each entry. Try AutoNormal, or, for the other sites, this guide in an AutoGuideList "
        f"beside AutoNormal(poutine.block(model, expose=[{latent!r}]))."
    )


def _try(trial: Trial, places: Tensor, masked: list[str], sources: Sources, tries: range) -> None:
    """Raises unless the guide counts what the model does, and what is masked is read by nothing."""
    drawn = trial.run(places)
    counts = _counts(drawn.model, masked)
    _check_guide(drawn, counts, sources)
    if all(bool(x.all()) for x in counts.values()):
        return
    before = _again(trial, places, drawn, {})
    for number in tries:
        after = _again(trial, places, drawn, _altered(drawn, counts, sources, number))
        _check_drawn(before.model, after.model, counts)
        for one, other, program in zip(before, after, ("model", "guide"), strict=True):
            _check_unread(one, other, program, sorted(counts))


def _counts(model: poutine.Trace, masked: list[str]) -> dict[str, Tensor]:
    """Which entries of the masked latents count."""
    return {name: sites.counting(model.nodes[name]) for name in masked if name in model}


def _check_guide(drawn: Pair, counts: dict[str, Tensor], sources: Sources) -> None:
    """Raises where a mask of the guide leaves out what the model counts."""
    latent_of = {name: latent for latent, names in sources.items() for name in names}
    for site in sites.random_sites(drawn.guide):
        if not sites.is_masked(site):
            continue
        name = latent_of.get(site["name"], site["name"])
        ours = sites.over_events(sites.counting(site), site["fn"].event_dim)
        whole = counts.get(name)
        if whole is None and name in drawn.model.nodes:
            whole = torch.ones_like(drawn.model.nodes[name]["value"], dtype=torch.bool)
        if whole is None:  # an auxiliary site by itself, or a `pyro.factor`
            left_out = ~ours
        else:
            left_out = sites.over_events(whole, whole.dim() - ours.dim()) & ~ours
        if left_out.any():
            raise ValueError(
                f"guide: a mask leaves out entries of its site {site['name']!r} that count in the "
                f"model. Expected the masks of the model, which it is given. Try the guide without "
                f"a mask, or the same mask in the model."
            )


def _check_masks(trial: Trial, places: Tensor, masked: list[str], sources: Sources) -> None:
    """Raises where a mask is another with other latents."""
    drawn = trial.run(places)
    none = {
        name: torch.zeros_like(site["value"], dtype=torch.bool)
        for name, site in sites.latent_sites(drawn.model).items()
    }
    counts = _counts(drawn.model, masked)
    for number in range(TRIES if masked else 0):
        try:
            other = _again(trial, places, drawn, _altered(drawn, none, sources, number)).model
        except Exception:  # whatever a program does with draws of its prior: it takes its guide's
            other = trial.run(places).model
        _check_same(counts, _counts(other, masked))


def _check_same(counts: dict[str, Tensor], again: dict[str, Tensor]) -> None:
    for name, mask in counts.items():
        if name not in again or not torch.equal(mask, again[name]):
            raise ValueError(
                f"model: the mask of its latent site {name!r} depends on latents, or on chance, so "
                f"that its entries count in some draws only. Expected a mask of data. Try the "
                f"latent without a mask, and torch.where where it is read."
            )


def _check_drawn(one: poutine.Trace, other: poutine.Trace, counts: dict[str, Tensor]) -> None:
    """Raises where the guide draws what counts by what is masked."""
    for name, site in sites.latent_sites(one).items():
        a, b = site["value"], other.nodes[name]["value"]
        if name in counts:
            a, b = a[counts[name]], b[counts[name]]
        if not _near(a, b):
            raise ValueError(_by_guide(name, sorted(counts)))


def _near(a: Tensor, b: Tensor) -> bool:
    near = ROUNDING.get(a.dtype, ROUNDING[torch.float32])
    return a.shape == b.shape and torch.allclose(a, b, near, near, equal_nan=True)


def _by_guide(name: str, masked: list[str]) -> str:
    return (
        f"guide: the density of its site {name!r} depends on entries of "
        f"{', '.join(map(repr, masked))} that the model masks, and cannot leave them out. Expected "
        f"entries that are drawn independently. Try AutoNormal, or, in both programs, a plate of "
        f"entries instead of .to_event()."
    )


def _check_unread(one: poutine.Trace, other: poutine.Trace, program: str, names: list[str]) -> None:
    """Raises where a density that counts is another than before."""
    for site in sites.random_sites(one):
        a, b = site["log_prob"], other.nodes[site["name"]]["log_prob"]
        if _near(a, b):
            continue
        if program == "guide":
            raise ValueError(_by_guide(site["name"], names))
        masked = ", ".join(map(repr, names))
        raise ValueError(
            f"model: its site {site['name']!r} depends on entries of {masked} that a mask leaves "
            f"out: they would have no prior. Expected masked latents that nothing reads which "
            f"counts. Try the mask around {site['name']!r}, too, or none around the latents."
        )


def _altered(
    drawn: Pair, counts: dict[str, Tensor], sources: Sources, number: int
) -> dict[str, Tensor]:
    """Other values of the entries that do not count, also behind latents that are functions."""
    values: dict[str, Tensor] = {}
    for name, kept in counts.items():
        site = drawn.model.nodes[name]
        guided = drawn.guide.nodes.get(name, site)
        if not _is_function(guided):
            other = _other(site["fn"], guided["fn"], number)
            values[name] = torch.where(kept, site["value"], other)
        for source in sources.get(name, ()):
            auxiliary = drawn.guide.nodes[source]
            value, same = auxiliary["value"], kept
            if value.shape != kept.shape:
                same = sites.over_events(kept, site["fn"].event_dim)
                same = same.reshape(same.shape + (1,) * auxiliary["fn"].event_dim)
            values[source] = torch.where(same, value, _moved(auxiliary, number))
    return values


def _other(prior: Any, guide: Any, number: int) -> Tensor:
    """Other values: each outcome in turn where there are some, else a draw from the prior.

    Of the guide, where the prior cannot be sampled.
    """
    with suppress(NotImplementedError):
        if prior.has_enumerate_support:
            outcomes = prior.enumerate_support(expand=False)
            outcome: Tensor = outcomes[number % len(outcomes)]
            return outcome.expand(prior.shape())
    try:
        value: Tensor = prior.sample()
    except NotImplementedError:
        value = guide.sample()
    return value


def _moved(site: dict, number: int) -> Tensor:
    """Other numbers of an auxiliary site, where it may have them."""
    value: Tensor = site["value"]
    if sites.is_discrete(site):  # of which a draw may be the same
        return _other(sites.base(site["fn"]), site["fn"], number).expand(value.shape)
    support = site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support in (constraints.real, constraints.real_vector):
        return value + FAR * torch.randn_like(value)
    fresh: Tensor = site["fn"].sample()
    return fresh


def _again(trial: Trial, places: Tensor, drawn: Pair, values: dict[str, Tensor]) -> Pair:
    """Runs both with the latents that were drawn, but for some, and the same chance beside."""
    given = Pair(poutine.Trace(), poutine.Trace())
    for trace, old in zip(given, drawn, strict=True):
        for name, site in sites.latent_sites(old).items():
            if not _is_function(site):
                trace.add_node(name, **{**site, "value": values.get(name, site["value"])})
    with own_rng("a trial", 0, trial.data[0].device):
        return trial.run(places, given)


def _same(one: dict, other: dict) -> bool:
    return torch.equal(one["value"], other["value"])
