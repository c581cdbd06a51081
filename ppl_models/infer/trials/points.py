"""Guides that say no more of a latent than a point: they have no density, and draw no posterior."""

import math

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from ppl_models.infer.programs.sites import base, is_discrete, kind, latent_sites
from ppl_models.infer.trials.auxiliary import Draw, auxiliary_sites
from ppl_models.user_line import warn


def check_no_point(model: poutine.Trace, guide: poutine.Trace, draw: Draw) -> None:
    """Raises where the guide is a point, such as that of `AutoDelta`, which has no density."""
    for name in point_sites(model, guide, draw):
        raise ValueError(
            f"guide: its site {name!r} is a point, or a function of others, which has no density, "
            f"so that there is no bound on the evidence. Try AutoNormal, or another guide that "
            f"spreads.{_of_laplace(guide)}"
        )


def check_meant(model: poutine.Trace, guide: poutine.Trace, draw: Draw) -> None:
    """Warns of points, and raises where a guide is one that was meant to spread."""
    for name in point_sites(model, guide, draw):
        text = (
            f"guide: its site {name!r} is a point, or a function of others, and its draws have no "
            f"spread of their own."
        )
        if before := _of_laplace(guide):
            raise ValueError(text + before)
        warn(f"{text} Try AutoNormal, or another guide that spreads.")
        return


def point_sites(model: poutine.Trace, guide: poutine.Trace, draw: Draw) -> list[str]:
    """The continuous latents of which a guide says no more than a point.

    Two draws are the same there. Or it is a `Delta` that moves, and that no density is of: it is no
    function of the sites of the guide, or there are more such numbers than auxiliary sites have.

    Arguments:
        model: A trace of the model.
        guide: One of the guide.
        draw: Draws another of the guide, with some sites given.
    """
    latent = latent_sites(guide)
    names = [n for n in latent if n in model.nodes and not is_discrete(model.nodes[n])]
    if not names:
        return []
    first, sources = draw(poutine.Trace()), poutine.Trace()
    for name, site in latent_sites(first).items():
        if kind(site["fn"]) != "Delta":
            sources.add_node(name, **site)
    points = [n for n in names if n in sources.nodes and _is_narrow(sources.nodes[n])]
    deltas = [n for n in names if n not in sources.nodes]
    if not deltas:
        return points
    same, again = draw(sources), draw(poutine.Trace())

    def moved(trace: poutine.Trace, name: str) -> Tensor:
        return (trace.nodes[name]["value"] - first.nodes[name]["value"]).abs()

    points += [n for n in deltas if not moved(again, n).any()]
    deltas = [n for n in deltas if n not in points]
    of_sources = [n for n in deltas if (moved(same, n) <= 1e-3 * moved(again, n).amax()).all()]
    bare = [n for n in deltas if not torch.as_tensor(base(first.nodes[n]["fn"]).log_density).any()]
    points += [n for n in bare if n not in of_sources]
    auxiliary = auxiliary_sites(model, sources).values()
    room = sum(_freedom(site, site) for site in auxiliary if not is_discrete(site))
    if room < sum(_freedom(first.nodes[n], model.nodes[n]) for n in of_sources):
        points += [n for n in bare if n in of_sources] or of_sources
    return points


def _is_narrow(site: dict) -> bool:
    """Whether the draws of a distribution are the same, as numbers of this precision."""
    return site["value"].numel() > 0 and torch.equal(site["fn"].sample(), site["value"])


def _freedom(drawn: dict, site: dict) -> int:
    """How many numbers are free in the value of a site, whose support is that of another."""
    shape = drawn["value"].shape
    try:
        return math.prod(biject_to(site["fn"].support).inverse_shape(shape))
    except NotImplementedError:
        return math.prod(shape)


def _of_laplace(guide: poutine.Trace) -> str:
    """What to do about a guide that is a point behind an auxiliary site, before it spreads."""
    for name, site in latent_sites(guide).items():
        if site["infer"].get("is_auxiliary") and kind(site["fn"]) == "Delta":
            return (
                f" It comes from {name!r}. Where that is of AutoLaplaceApproximation, try "
                f"guide = guide.laplace_approximation(*data) after the fit."
            )
    return ""
