"""Which dimension of a site holds the rows.

Pyro's plates go by position: the plate `"data"` takes the last batch dimension for the rows. Where
`.to_event(1)` is missing that is the dimension of the features, and where there are as many of
them as rows, nothing shows it but what is left over: a dimension that belongs to no plate.
"""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_models.infer.programs.sites import (
    has_entries,
    in_data_plate,
    kind,
    latent_sites,
    observed_sites,
    random_sites,
)


def replayed(model: Callable[..., Any], guide: poutine.Trace, *args: Any, size: int) -> Any:
    """Runs a model on what its guide drew; where it fails for latents of another shape, says so."""
    handler = poutine.trace(poutine.replay(model, trace=guide))
    try:
        trace = handler.get_trace(*args, size=size)
    except Exception:
        check_latents(handler.trace, guide)  # those before the failure
        raise
    check_latents(trace, guide)
    return trace


def check_latents(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Raises where a latent is of one shape in the guide, and of another in the model.

    Such shapes may broadcast without an error, and a plate of another size scales what is in it.
    """
    others = latent_sites(guide)
    for name, site in latent_sites(model).items():
        if name in others:
            _check_plates(name, site, others[name])
            _check_shape(name, site, others[name])


def _check_plates(name: str, model: dict, guide: dict) -> None:
    sizes = {frame.name: frame.full_size for frame in guide["cond_indep_stack"]}
    for plate in model["cond_indep_stack"]:
        size = sizes.get(plate.name, plate.full_size)
        if size != plate.full_size and plate.name != "data":  # which has checks of its own
            raise ValueError(
                f"site {name!r}: the plate {plate.name!r} holds {plate.full_size} entries in the "
                f"model, and {size} in the guide. Expected as many in both. Try a guide made for "
                f"{plate.full_size}."
            )


def _check_shape(name: str, model: dict, guide: dict) -> None:
    own, other = model["fn"].shape(), guide["fn"].shape()
    if any(a != b for a, b in zip_longest(reversed(own), reversed(other), fillvalue=1)):
        raise ValueError(
            f"site {name!r}: the {kind(guide['fn'])} of the guide has shape {tuple(other)}, and "
            f"the {kind(model['fn'])} of the model {tuple(own)}. Expected the same shape. Try the "
            f"plates, the .to_event(1) and the number of latents of the model in the guide."
        )


def check_rows(trace: poutine.Trace, program: str, batch: tuple[Tensor, ...]) -> None:
    """Raises where the plate `"data"` takes another dimension for that of the rows.

    Arguments:
        trace: A trace of the program on the batch, without enumeration.
        program: How to call it.
        batch: The rows, along the first dimension of each tensor.
    """
    for site in filter(in_data_plate, random_sites(trace) if batch else ()):
        frames = {frame.name: frame for frame in site["cond_indep_stack"]}
        rows, dim = len(batch[0]), frames["data"].dim
        if frames["data"].size != rows or rows == 1 or not isinstance(site["value"], Tensor):
            continue
        shape = _batch_shape(site)
        plated = {frame.dim for frame in frames.values() if frame.vectorized}
        left = range(-len(shape), dim)
        first = len(site["value"].shape) - site["fn"].event_dim + dim
        turned = first != 0 and any(site["value"] is x for x in batch)
        if turned or any(shape[d] > 1 for d in left if d not in plated):
            raise ValueError(
                f"site {site['name']!r} of the {program}: the plate 'data' takes dimension {dim} "
                f"of the batch shape {tuple(shape)} of its {kind(site['fn'])} for the {rows} "
                f"rows, and there is another on the left of it that belongs to no plate, or "
                f"holds the rows. Expected the rows there, and what belongs to one row in the "
                f"event. "
                + (
                    _of_columns(site, batch)
                    or f"Try dist.{kind(site['fn'])}(...).to_event(1), or parameters of shape "
                    f"({rows},) where a row is a single number."
                )
            )


def _of_columns(site: dict, batch: tuple[Tensor, ...]) -> str | None:
    """What to try where numbers of rows meet a column of them, so that N of each become N x N."""
    rows, value = len(batch[0]), site["value"]
    if _batch_shape(site) != (rows, rows):
        return None
    columns = [n for n, x in enumerate(batch) if x.shape == (rows, 1)]
    own = next((n for n, x in enumerate(batch) if x is value), None)
    name = site["name"]
    if own in columns and len(columns) == 1:
        where = f"data[{own}] has shape ({rows}, 1) where the site has ({rows},)"
        return f"{where}: try {name}.squeeze(1)."
    if columns:
        found = " and ".join(f"data[{n}]" for n in columns)
        has = "has" if len(columns) == 1 else "have"
        return (
            f"{found} {has} shape ({rows}, 1) where one number of each row has ({rows},): try "
            f"x.squeeze(1), or mean.squeeze(-1) of what is computed from it."
        )
    if own is not None and value.shape == (rows,):
        where = f"data[{own}] has shape ({rows},) where the site has ({rows}, 1)"
        return f"{where}: try mean.squeeze(-1) where a network gives one number for a row."
    return None


def check_no_outer(trace: poutine.Trace, program: str) -> None:
    """Raises where a value meets its distribution as a row does a column: N numbers become N x N.

    Each is then compared with each, and summed inside of an event no shape shows it.
    """
    for site in random_sites(trace):
        if not isinstance(site["value"], Tensor):
            continue
        value, own = site["value"].shape, site["fn"].shape()
        try:
            both = torch.broadcast_shapes(value, own)
        except RuntimeError:  # which says so by itself
            continue
        if both.numel() > max(value.numel(), own.numel()):
            raise ValueError(
                f"site {site['name']!r} of the {program}: its value has shape {tuple(value)} and "
                f"its {kind(site['fn'])} {tuple(own)}, and each number of one would be compared "
                f"with each of the other, {both.numel()} pairs. Expected the same shape, got "
                f"{tuple(both)} of both together. Try mean.squeeze(-1) where a network gives one "
                f"number for a row, or x.unsqueeze(-1)."
            )


def check_placed(trace: poutine.Trace, program: str, depth: int) -> None:
    """Raises where a batch dimension of a site belongs to no plate.

    Arguments:
        trace: A trace of the program.
        program: How to call it.
        depth: How many dimensions, from the right, are those of plates in all of the program.
    """
    for site in random_sites(trace):
        shape = _batch_shape(site)
        plated = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
        left = [d for d in range(-min(depth, len(shape)), 0) if d not in plated and shape[d] > 1]
        if left:
            raise ValueError(
                f"site {site['name']!r} of the {program}: dimension {left[-1]} of the batch shape "
                f"{tuple(shape)} of its {kind(site['fn'])} belongs to no plate around it. Expected "
                f"a plate for each dimension of the batch, and the rest in the event. Try "
                f"dist.{kind(site['fn'])}(...).to_event(1) where {shape[left[-1]]} numbers are one "
                f"vector, or `with data_plate(x, size):` around it where they are rows."
            )


def check_entries(trace: poutine.Trace, batch: tuple[Tensor, ...]) -> None:
    """Raises where data in the plate `"data"` are no rows, of which a minibatch could be drawn.

    Arguments:
        trace: A trace of the model on a minibatch.
        batch: Its rows.
    """
    rows = len(batch[0])
    for name, site in observed_sites(trace).items():
        if in_data_plate(site) and not has_entries(site, rows):
            raise ValueError(
                f"site {name!r} of the model: a batch of {rows} rows is no {rows} entries of the "
                f"plate 'data' there, so that rows depend on those that the batch has beside them. "
                f"Expected an entry for each row. Try batch_size=None, or data whose rows are "
                f"entries, such as x.reshape(-1, 2, ...) where two are a pair."
            )


def _batch_shape(site: dict) -> torch.Size:
    """The shape of the log-density of a site, or of its distribution where they do not fit."""
    value, fn = site["value"], site["fn"]
    try:
        return torch.broadcast_shapes(value.shape[: value.dim() - fn.event_dim], fn.batch_shape)
    except RuntimeError:
        return fn.batch_shape
