"""What a first run of a model and a guide tells: the sites of their traces.

A site is a dict of Pyro's: its name, its distribution `fn`, its `value`, its plates.
"""

from collections.abc import Iterator

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import (
    ExpandedDistribution,
    MaskedDistribution,
    TorchDistributionMixin,
)
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.distributions import Independent

from ppl_models.infer.programs.pyro_internals import is_deterministic, is_reparameterised


def latent_sites(trace: poutine.Trace) -> dict[str, dict]:
    """The random sites of a trace: neither observed, nor a subsample, nor deterministic."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def reported_sites(trace: poutine.Trace) -> dict[str, dict]:
    """The sites that have a value to report: no subsamples, no `pyro.factor`."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and kind(site["fn"]) != "Unit"
    }


def observed_sites(trace: poutine.Trace) -> dict[str, dict]:
    """The sites with data: what is a function of other sites, and `pyro.factor`, left out."""
    return {
        name: site
        for name, site in reported_sites(trace).items()
        if site["is_observed"] and is_datum(site)
    }


def is_datum(site: dict) -> bool:
    """Whether a site, if observed, holds data: no function of other sites, and no `pyro.factor`."""
    return not is_derived(site) and kind(site["fn"]) != "Unit"


def is_derived(site: dict) -> bool:
    """Whether a site is a function of other sites, which says nothing of its own.

    That is a `pyro.deterministic`, or what `poutine.reparam` leaves of a site, or one that is
    written as these are: a `Delta` that "observes" its own value.
    """
    if is_deterministic(site):
        return True
    point = base(site["fn"])
    if not site["is_observed"] or not isinstance(point, Delta) or not _is(point.v, site["value"]):
        return False
    return is_reparameterised(site) or not has_density(site)


def has_density(site: dict) -> bool:
    """Whether a `Delta` brings a log-density, as of a likelihood or a change of variables."""
    if getattr(site["fn"], "_mask", None) is False:
        return False
    log_density = base(site["fn"]).log_density
    # Of draws side by side it may not be looked at; of them all, only what was computed is.
    return is_batchedtensor(log_density) or bool((log_density != 0).any())


def _is(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same one, but for an `expand`."""
    first, second = (x if x._base is None else x._base for x in (one, other))
    return one is other or first is second


def is_factor(site: dict) -> bool:
    """Whether a site is a `pyro.factor`."""
    return kind(site["fn"]) == "Unit"


def is_masked(site: dict) -> bool:
    """Whether some of a site may be left out, by `poutine.mask` or a masked distribution."""
    mask = site.get("mask")
    return not (mask is None or mask is True) or has_masked_distribution(site)


def has_masked_distribution(site: dict) -> bool:
    """Whether some of a site may be left out by its distribution itself."""
    fn = site["fn"]
    while isinstance(fn, (Independent, ExpandedDistribution)):
        fn = fn.base_dist
    return isinstance(fn, MaskedDistribution)


def mask_of(site: dict) -> Tensor | None:
    """Which entries of a site count, with the shape of its log-density; None where all do."""
    event_dim = site["fn"].event_dim
    masks = [_any(mask, event_dim - events) for mask, events in _masks(site)]
    given = [mask for mask in masks if mask is not True]
    if not given:
        return None
    whole = torch.ones_like(site["log_prob"], dtype=torch.bool)
    for mask in given:
        whole = whole & mask
    return whole


def _any(mask: Tensor | bool, dims: int) -> Tensor | bool:
    """Whether anything counts over the last dimensions of a mask."""
    return over_events(mask, dims) if isinstance(mask, Tensor) else mask


def over_events(mask: Tensor, dims: int) -> Tensor:
    """Whether anything counts over the last dimensions of a mask."""
    return mask.flatten(-dims).any(-1) if dims else mask


def is_masked_by_itself(site: dict) -> bool:
    """Whether a distribution leaves out all of its density, as `.mask(False)` does."""
    return any(mask is False for mask, _ in _masks({**site, "mask": None}))


def counting(site: dict) -> Tensor:
    """Which elements of the value of a site count, with its shape."""
    counts = torch.ones_like(site["value"], dtype=torch.bool)
    for mask, events in _masks(site):
        if isinstance(mask, Tensor):
            counts = counts & mask.reshape(mask.shape + (1,) * events)
        elif not mask:
            counts = torch.zeros_like(counts)
    return counts


def is_masked_inside(site: dict) -> bool:
    """Whether a mask tells the elements of an event apart."""
    return any(events < site["fn"].event_dim for _, events in _masks(site))


def _masks(site: dict) -> Iterator[tuple[Tensor | bool, int]]:
    """The masks of a site, and how many dimensions of an event are right of each."""
    fn = site["fn"]
    if site.get("mask") is not None:
        yield site["mask"], fn.event_dim
    while isinstance(fn, (Independent, ExpandedDistribution, MaskedDistribution)):
        if isinstance(fn, MaskedDistribution):
            yield fn._mask, fn.event_dim
        fn = fn.base_dist


def reparameterised_sites(trace: poutine.Trace) -> dict[str, dict]:
    """What `poutine.reparam` makes of sites, as functions of others."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and is_reparameterised(site)
        and not is_deterministic(site)
        and is_derived(site)
    }


def is_discrete(site: dict) -> bool:
    """Whether a site is known to take discrete values."""
    try:
        return bool(site["fn"].support.is_discrete)
    except NotImplementedError:
        return False


def enumerated_sites(trace: poutine.Trace) -> set[str]:
    """The names of the latent sites that are enumerated in parallel: those that are summed out.

    A handler sums over no others: `"sequential"` is for guides, and `num_samples` draws values.
    """
    return {
        name
        for name, site in latent_sites(trace).items()
        if site["infer"].get("enumerate") == "parallel" and not site["infer"].get("num_samples")
    }


def marked_sites(trace: poutine.Trace) -> set[str]:
    """The names of the latent sites that are marked for enumeration, of whatever kind."""
    return {name for name, site in latent_sites(trace).items() if site["infer"].get("enumerate")}


def summed_out_sites(model: poutine.Trace, guide: poutine.Trace) -> set[str]:
    """The latent sites that the model enumerates; what the guide draws is not among them."""
    return enumerated_sites(model) - set(latent_sites(guide))


def in_data_plate(site: dict) -> bool:
    """Whether a site belongs to a row: to an entry of their plate, which is no loop."""
    return any(f.name == "data" and f.vectorized for f in site["cond_indep_stack"])


def has_entries(site: dict, rows: int) -> bool:
    """Whether a site has an entry for each of so many rows, by their plate."""
    frames = [f for f in site["cond_indep_stack"] if f.name == "data" and f.vectorized]
    return any(frame.size == rows for frame in frames)


def random_sites(trace: poutine.Trace) -> list[dict]:
    """The sites that contribute to the log-density of a trace, `pyro.factor` included."""
    return [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and (not is_derived(site) or (is_reparameterised(site) and has_density(site)))
    ]


def plate_depth(*traces: poutine.Trace) -> int:
    """How many dimensions from the right are taken by plates."""
    sites = [s for trace in traces for s in trace.nodes.values() if s["type"] == "sample"]
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


def base(fn: TorchDistributionMixin) -> TorchDistributionMixin:
    """The distribution inside of `to_event`, `expand` and `mask`."""
    while isinstance(fn, (Independent, ExpandedDistribution, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def kind(fn: TorchDistributionMixin) -> str:
    return type(base(fn)).__name__
