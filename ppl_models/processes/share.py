"""Which rows of a batch a process holds, for whoever needs to know more than that they are rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """The part of a batch that is here."""

    places: Tensor  # in the batch, of the rows that are here
    total: int  # the rows of the batch, on all processes


_shares: list[Share] = []  # those of the batches that are evaluated now


@contextmanager
def sharing(share: Share | None) -> Iterator[None]:
    """A context in which rows are a share of a batch; None where they are all of it."""
    if share is None:
        yield
        return
    _shares.append(share)
    try:
        yield
    finally:
        _shares.pop()


def places_of(rows: int, device: torch.device) -> Share:
    """Where so many rows are in their batch, which may be more than what is here.

    For what depends on the place of a row, such as numbers that are spread evenly over a batch.

    Example:
        >>> places_of(3, torch.device("cpu"))
        Share(places=tensor([0, 1, 2]), total=3)
    """
    if _shares and len(_shares[-1].places) == rows:
        return _shares[-1]
    return Share(torch.arange(rows, device=device), rows)
