"""Whether a guide draws what its model has a density for, by the supports of their distributions.

A draw outside comes up once in so many: then the loss is undefined, some thousand steps later.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ppl_models.infer.programs import sites


class Range(NamedTuple):
    """The ends of a support of numbers, and whether these are whole ones."""

    low: Tensor | float
    high: Tensor | float
    whole: bool


def outside(model: poutine.Trace, guide: poutine.Trace) -> Iterator[str]:
    """What to say of each site of a guide that may draw values without a density in the model.

    Points are left out, which say nothing of what they may be.
    """
    latent = sites.latent_sites(model)
    for name, drawn in sites.latent_sites(guide).items():
        if name not in latent or sites.kind(drawn["fn"]) == "Delta":
            continue
        ours, theirs = _support(drawn), _support(latent[name])
        if ours is not None and theirs is not None and _leaves(ours, theirs):
            q, p = sites.kind(drawn["fn"]), sites.kind(latent[name]["fn"])
            yield (
                f"guide: its site {name!r} is a {q} and may draw values that the {p} of the model "
                f"has no density for. Expected values in {theirs}, got {ours}. Try a distribution "
                f"with the support of the model's, such as "
                f"dist.TransformedDistribution(dist.Normal(...), "
                f"biject_to(dist.{p}(...).support)), or AutoNormal, which does so."
            )


def _support(site: dict) -> constraints.Constraint | None:
    """The support of an element of a site, or None where that is not known."""
    try:
        support = site["fn"].support
    except NotImplementedError:
        return None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _leaves(ours: constraints.Constraint, theirs: constraints.Constraint) -> bool:
    """Whether one support has values that another has not; False where that is not known."""
    if theirs is constraints.simplex:
        return ours is constraints.real_vector or _range(ours) is not None
    mine, its = _range(ours), _range(theirs)
    if mine is None or its is None:
        return False
    if mine.whole != its.whole:
        return True
    return _is_less(mine.low, its.low) or _is_less(its.high, mine.high)


def _is_less(one: Tensor | float, other: Tensor | float) -> bool:
    try:
        return bool((torch.as_tensor(one) < torch.as_tensor(other)).any())
    except RuntimeError:  # ends of other shapes, as of programs that do not fit
        return False


def _range(support: constraints.Constraint) -> Range | None:
    """The ends of a support of single numbers; None of any other."""
    if support in (constraints.real, constraints.real_vector):
        return Range(-torch.inf, torch.inf, whole=False)
    if support is constraints.boolean:
        return Range(0, 1, whole=True)
    ends = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    if ends == [None, None]:
        return None
    low, high = ends
    return Range(
        -torch.inf if low is None else low,
        torch.inf if high is None else high,
        whole=bool(support.is_discrete),
    )
