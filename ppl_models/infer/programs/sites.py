"""What a first run of a model and a guide tells: the sites of their traces.

A site is a dict of Pyro's: its name, its distribution `fn`, its `value`, its plates.
"""

from pyro import poutine
from pyro.distributions.torch_distribution import (
    ExpandedDistribution,
    MaskedDistribution,
    TorchDistributionMixin,
)
from pyro.poutine.util import site_is_subsample
from torch.distributions import Independent

from ppl_models.infer.programs.pyro_internals import is_deterministic


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
    """The sites with data, `pyro.deterministic` and `pyro.factor` left out."""
    return {
        name: site
        for name, site in reported_sites(trace).items()
        if site["is_observed"] and is_datum(site)
    }


def is_datum(site: dict) -> bool:
    """Whether a site, if observed, holds data: not `pyro.deterministic` or `pyro.factor`."""
    return not is_deterministic(site) and kind(site["fn"]) != "Unit"


def is_factor(site: dict) -> bool:
    """Whether a site is a `pyro.factor`."""
    return kind(site["fn"]) == "Unit"


def is_masked(site: dict) -> bool:
    """Whether some of a site may be left out, by `poutine.mask` or a masked distribution."""
    fn = site["fn"]
    while isinstance(fn, (Independent, ExpandedDistribution)):
        fn = fn.base_dist
    mask = site.get("mask")
    return not (mask is None or mask is True) or isinstance(fn, MaskedDistribution)


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
    """Whether a site belongs to a row."""
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def random_sites(trace: poutine.Trace) -> list[dict]:
    """The sites that contribute to the log-density of a trace, `pyro.factor` included."""
    return [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site) and not is_deterministic(site)
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
