"""Which arguments of a program are its data: what it returns, or sites of their names."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_models.infer.programs import sites

Place = Callable[[poutine.Trace], Tensor]  # gives what stands there of a run without data


def returned(trace: poutine.Trace, free: dict[str, int]) -> dict[int, Place]:
    """The places of what a program returns, which are its rows.

    Arguments:
        trace: A run without data.
        free: The arguments that may be data, and their places.
    """
    values, left = _returned(trace), dict(free)
    if not all(isinstance(x, Tensor) for x in values) or len(values) > len(free):
        return {}
    drawn = sites.latent_sites(trace)
    places: dict[int, Place] = {}
    for n, value in enumerate(values):
        name = next((k for k in left if k in drawn and drawn[k]["value"] is value), None)
        places[left.pop(next(iter(left)) if name is None else name)] = partial(_nth, n)
    return places


def named(trace: poutine.Trace, free: dict[str, int]) -> dict[int, Place]:
    """The places of arguments with the names of sites."""
    drawn = sites.latent_sites(trace)
    return {place: partial(_value, name) for name, place in free.items() if name in drawn}


def _returned(trace: poutine.Trace) -> tuple[Any, ...]:
    found = trace.nodes["_RETURN"]["value"]
    return found if isinstance(found, tuple) else (found,)


def _nth(n: int, trace: poutine.Trace) -> Tensor:
    return _returned(trace)[n]


def _value(name: str, trace: poutine.Trace) -> Tensor:
    return trace.nodes[name]["value"]


def why_no_data(drawn: poutine.Trace, observing: poutine.Trace) -> str | None:
    """Why a run with data is not the one that drew them, or None."""
    before, observed = sites.latent_sites(drawn), sites.observed_sites(observing)
    if not observed:
        return "given as data, it observes nothing"
    for name, site in observed.items():
        if name not in before or not torch.equal(before[name]["value"], site["value"]):
            return f"site {name!r} observes something else than was drawn there"
    after = observed.keys() | sites.latent_sites(observing).keys()
    if other := sorted(after ^ before.keys()):
        return f"site {other[0]!r} is there with data alone, or without them alone"
    return None
