"""Which dimension of a site holds the rows.

Pyro's plates go by position: the plate `"data"` takes the last batch dimension for the rows. Where
`.to_event(1)` is missing that is the dimension of the features, and where there are as many of
them as rows, nothing shows it but what is left over: a dimension that belongs to no plate.
"""

import torch
from pyro import poutine
from torch import Tensor

from ppl_models.infer.programs.sites import (
    has_entries,
    in_data_plate,
    kind,
    observed_sites,
    random_sites,
)


def check_rows(trace: poutine.Trace, program: str, batch: tuple[Tensor, ...]) -> None:
    """Raises where the plate `"data"` takes another dimension for that of the rows.

    Arguments:
        trace: A trace of the program on the batch, without enumeration.
        program: How to call it.
        batch: The rows, along the first dimension of each tensor.
    """
    for site in filter(in_data_plate, random_sites(trace)):
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
                f"event. Try dist.{kind(site['fn'])}(...).to_event(1), or parameters of shape "
                f"({rows},) where a row is a single number."
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
